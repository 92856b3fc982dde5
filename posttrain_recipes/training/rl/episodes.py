"""Episodes of an environment: the policy reads turns and writes replies until they are over.

What a seat has read and written stays one sequence of tokens as long as the chat template only
adds to a conversation: the policy's own tokens are never rendered again from their text, so what it
is trained on is what it wrote, token by token. Where a template rewrites earlier turns, or a turn
is `fresh`, a reply begins a sequence of its own.

An environment is anybody's code, and its services may fail. An episode in which it raises is begun
again on its own, with the replies that were there: nothing is sampled for it a second time, and
the others sample what they would have. A reply on which the environment always fails is therefore
not exchanged for a luckier one; what becomes of it is for the caller to say.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.plugin import Branch, DrivenTask, Message, Played, Renderer, Waiter
from posttrain_recipes.records import Episode, Messages, Sample, Task, Turn
from posttrain_recipes.training.requests import derive_seed, sample
from posttrain_recipes.training.rl.driven import SampledPolicy, played
from posttrain_recipes.training.rl.rollout import Segment
from posttrain_recipes.training.rl.scoring import finite, within
from posttrain_recipes.waiting import in_thread

if TYPE_CHECKING:
    import tinker

AT_ONCE = 16
"""Episodes that are begun or act at the same time, where their task allows it."""


@dataclass
class Player:
    """What one player has read and written."""

    messages: list[Message] = field(default_factory=list)
    opening: int = 0
    """How many of the messages were there before it first wrote."""
    segments: list[Segment] = field(default_factory=list)
    reward: float | None = 0.0
    """What it got so far; None once the environment abstained."""
    cut: bool = False
    """Whether a reply of it ended at the token limit."""
    _begins: list[int] = field(default_factory=lambda: [0])
    """The messages that its conversations begin with: those of fresh turns."""
    _ended: bool = True
    """Whether its last reply ended with a token that the template knows."""

    def prompt(self, renderer: Renderer, turn: Turn) -> list[int]:
        """Take up what it is told now; returns the token ids (P,) that it goes on from."""
        if turn.fresh and self.messages:
            self._begins.append(len(self.messages))
        before = self.messages[self._begins[-1] :]
        self.messages += turn.messages
        if not self.segments:
            self.opening = len(self.messages)
        whole = renderer.prompt(self.messages[self._begins[-1] :])
        if not self.segments or turn.fresh:
            return whole
        try:
            through, _ = renderer.supervised(before)
        except UsageError:  # a template that rewrites earlier turns
            return whole
        if whole[: len(through)] != through:
            return whole
        ending = [] if self._ended else through[-1:]
        return [*self.segments[-1].tokens, *ending, *whole[len(through) :]]

    @property
    def conversations(self) -> list[Messages]:
        """What it read and wrote: one conversation, or one from each fresh turn to the next."""
        ends = [*self._begins[1:], len(self.messages)]
        return [tuple(self.messages[a:b]) for a, b in zip(self._begins, ends, strict=True)]

    @property
    def ended(self) -> bool:
        """Whether its last reply came to its end, rather than to the limit of tokens."""
        return self._ended

    def write(
        self, renderer: Renderer, prompt: list[int], tokens: list[int], logprobs: list[float]
    ) -> str:
        """Take up a reply of its own; returns its text."""
        text = renderer.parse(tokens)
        said = Segment.reply(prompt, tokens, logprobs)
        longer = self.segments[-1].extended(said) if self.segments else None
        if longer is None:
            self.segments.append(said)
        else:
            self.segments[-1] = longer
        self.messages.append(Message("assistant", text))
        self._ended = bool(tokens) and tokens[-1] in renderer.stop
        self.cut = self.cut or not self._ended
        return text

    @classmethod
    def of(cls, branches: Sequence[Branch]) -> Player:
        """Who wrote these, each of which is a conversation of its own."""
        one = cls(_begins=[])
        for branch in branches:
            one._begins.append(len(one.messages))
            one.messages += branch.messages
            logprobs = [
                p if own else 0.0 for p, own in zip(branch.logprobs, branch.sampled, strict=True)
            ]
            one.segments.append(Segment(list(branch.tokens), list(branch.sampled), logprobs))
        roles = [message.role for message in one.messages]
        one.opening = roles.index("assistant") if roles else 0
        return one


@dataclass(frozen=True)
class EpisodeLimits:
    """How far an episode may go, how replies are sampled, and what an environment may do."""

    max_turns: int
    """Replies in one episode, of all seats together."""
    max_tokens: int
    temperature: float
    retries: int = 0
    """How often an episode is begun again in which the environment raised."""
    seconds: float | None = None
    """That an environment may take to begin or to answer a reply; None: as long as it likes."""


class Said(NamedTuple):
    """A reply, with the turn that it is a reply to."""

    turn: Turn
    tokens: list[int]
    logprobs: list[float]


@dataclass
class Play:
    """One episode at work."""

    task: Task
    renderer: Renderer
    limits: EpisodeLimits
    turn: Turn | None = None
    """What is to be answered next; None once it is over, was cut or has failed."""
    players: list[Player] = field(default_factory=list)
    """Who sits in each seat; nobody where the environment could not even begin."""
    said: list[Said] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the environment told of it at its end."""
    shown: str = ""
    """The same, for people."""
    unfinished: bool = False
    """Whether it was still going on when no more turns were allowed."""
    retried: int = 0
    """How often it was begun again."""
    thrown_away: int = 0
    """Tokens of replies to what the environment did not tell again."""
    error: str = ""
    """What the environment raised the last time that it was tried."""
    late: bool = False
    """Whether that was taking too long."""

    @property
    def turns(self) -> int:
        """Replies in it, of all seats together."""
        return len(self.said)

    @classmethod
    def of(cls, task: Task, renderer: Renderer, limits: EpisodeLimits) -> Play:
        """Begin an episode of `task`."""
        one = cls(task, renderer, limits)
        return one.tried(one.begin)

    def begin(self) -> None:
        """Have the environment begin. Raises what it raises."""

        def start() -> tuple[Episode, Turn | None]:
            episode = self.task.start()
            return episode, episode.turn()

        self._episode, turn = within(self.limits.seconds, start)
        self.players = [Player() for _ in range(self._episode.seats)]
        self._go_on(turn)

    def prompt(self) -> list[int]:
        """Have the seat whose turn it is read; returns the token ids (P,) to go on from."""
        assert self.turn is not None
        return self.players[self.turn.seat].prompt(self.renderer, self.turn)

    def say(self, prompt: list[int], tokens: list[int], logprobs: list[float]) -> None:
        """Hand the environment a reply to `prompt`. Raises what it raises."""
        assert self.turn is not None
        seat, episode = self.players[self.turn.seat], self._episode
        reply = seat.write(self.renderer, prompt, tokens, logprobs)
        self.said.append(Said(self.turn, tokens, logprobs))
        episode.truncated, episode.time_limit = not seat.ended, self.limits.seconds
        rewards, turn = within(
            self.limits.seconds, lambda: (list(episode.act(reply)), episode.turn())
        )
        if len(rewards) != len(self.players):
            raise ValueError(f"act() returned {len(rewards)} rewards for {len(self.players)} seats")
        for player, given in zip(self.players, rewards, strict=True):
            reward = finite(given, "act()")
            if player.reward is not None:
                player.reward = None if reward is None else player.reward + reward
        self._go_on(turn)

    def _go_on(self, turn: Turn | None) -> None:
        if turn is not None and not 0 <= turn.seat < len(self.players):
            raise ValueError(f"it is the turn of seat {turn.seat}, of {len(self.players)} seats")
        self.unfinished = turn is not None and self.turns == self.limits.max_turns
        self.turn = None if self.unfinished else turn
        if self.turn is None:
            episode = self._episode
            self.metrics, self.shown = within(
                self.limits.seconds,
                lambda: (_numbers(episode.metrics(), "metrics()"), episode.show()),
            )

    def tried(self, step: Callable[[], None]) -> Play:
        """The play after `step`; where the environment raises, one that was begun again.

        What it raises is never passed on: once `retries` are spent, it is the play's `error`.
        """
        try:
            step()
            return self
        except Exception as error:  # an environment is anybody's code
            self._fail(error)
        while self.retried < self.limits.retries:
            self.retried += 1
            again = Play(self.task, self.renderer, self.limits, retried=self.retried)
            try:
                again._repeat(self.said)
            except Exception as error:
                self._fail(error)
                continue
            lost = self.said[again.turns :]
            again.thrown_away = self.thrown_away + sum(len(one.tokens) for one in lost)
            return again
        return self

    def _repeat(self, said: Sequence[Said]) -> None:
        """Begin, and say what was said for as long as the environment tells the same."""
        self.begin()
        for one in said:
            if self.turn != one.turn:
                return
            self.say(self.prompt(), one.tokens, one.logprobs)

    def _fail(self, error: Exception) -> None:
        self.turn = None
        self.late = isinstance(error, TimeoutError)
        what = f"{type(error).__name__}: {error}"
        self.error = f"it took more than {self.limits.seconds:g} s" if self.late else what

    def failure(self, hint: str) -> PtlError:
        """The error to raise for one that failed."""
        times = f" {self.retried + 1} times" if self.retried else ""
        what = f"the environment failed{times} in an episode of {self.task.source or 'its task'}"
        return PtlError(what, why=self.error, hint=hint, code="environment-failed")

    @classmethod
    def driven(cls, task: DrivenTask, policy: SampledPolicy, limits: EpisodeLimits) -> Play:
        """Have a task drive an episode; begun again where it raises, as any other."""
        one = cls(task, policy.renderer, limits)
        while True:
            try:
                one._take(played(task, policy, limits.seconds))
                one.error, one.late = "", False
            except Exception as error:  # an environment is anybody's code
                one._fail(error)
            one.thrown_away = policy.thrown_away
            if (
                not one.error
                or policy.failed
                or policy.over.is_set()
                or one.retried == limits.retries
            ):
                replies = [policy.replies[key] for key in policy.used]
                heard = [each.result() for each in replies if each.done() and not each.exception()]
                asked = Turn(())
                one.said = [Said(asked, list(h.tokens), list(h.logprobs)) for h in heard]
                return one
            one.retried, policy = one.retried + 1, policy.again()

    def _take(self, found: Played) -> None:
        player = Player.of(found.branches)
        player.reward, player.cut = finite(found.reward, "play()"), found.truncated
        metrics = _numbers(found.metrics, "play()")
        self.players, self.metrics, self.shown = [player], metrics, found.shown

    def sample(self, seat: int) -> Sample:
        """What a seat went through, to read."""
        played = self.players[seat]
        opening, rest = played.messages[: played.opening], played.messages[played.opening :]
        said = [m.content if m.role == "assistant" else f"[{m.role}] {m.content}" for m in rest]
        if self.shown:
            said.append(self.shown)
        return Sample(
            prompt=tuple(opening),
            completion="\n".join(said),
            truncated=played.cut or self.unfinished,
            scores=dict(self.metrics),
        )


def _numbers(metrics: Mapping[str, float], source: str) -> dict[str, float]:
    """What an environment told of an episode. Raises `ValueError` where that is no number: the mean
    over episodes would be none."""
    found = {name: finite(value, f"'{name}' of {source}") for name, value in metrics.items()}
    return {name: value for name, value in found.items() if value is not None}


def play(
    tasks: Sequence[Task],
    seed: int,
    sampler: tinker.SamplingClient,
    renderer: Renderer,
    wait: Waiter,
    limits: EpisodeLimits,
    over: Callable[[int], None] = lambda count: None,
) -> list[Play]:
    """Play an episode of each task, all at once, one turn after another.

    Episodes in which the same is to be said next are one request. What comes back depends on
    the arguments alone. An episode whose environment failed says so, in its `error`.

    Args:
        over: told after each turn how many of them are over.
    """
    room = threading.Semaphore(AT_ONCE)
    if any(isinstance(task, DrivenTask) for task in tasks):
        return _some_driven(tasks, seed, sampler, renderer, wait, limits, over)
    blank = [Play(task, renderer, limits) for task in tasks]
    begun = [_done(one, one.begin, room) for one in blank]
    plays: list[Play] = [wait(one) for one in begun]
    number = 0
    while any(one.turn for one in plays):
        asked: dict[tuple[int, ...], list[int]] = {}
        for index, one in enumerate(plays):
            if one.turn is not None:
                asked.setdefault(tuple(one.prompt()), []).append(index)
        futures = [
            sample(
                sampler,
                prompt,
                len(same),
                max_tokens=limits.max_tokens,
                temperature=limits.temperature,
                seed=derive_seed(seed, number, place),
                stop=renderer.stop,
            )
            for place, (prompt, same) in enumerate(asked.items())
        ]
        acting: dict[int, Future[Play]] = {}
        for (prompt, same), future in zip(asked.items(), futures, strict=True):
            answer: Any = wait(future)
            for index, sequence in zip(same, answer.sequences, strict=True):
                one, logprobs = plays[index], list(sequence.logprobs or ())
                say = partial(one.say, list(prompt), list(sequence.tokens), logprobs)
                acting[index] = _done(one, say, room)
        for index, acted in acting.items():
            plays[index] = wait(acted)
        over(sum(one.turn is None for one in plays))
        number += 1
    return plays


def _done(one: Play, step: Callable[[], None], room: threading.Semaphore) -> Future[Play]:
    """The play after a step, which is done in a thread of its own where its task allows it."""

    def work() -> Play:
        with room:
            return one.tried(step)

    if one.task.concurrent:
        return in_thread(work)
    done: Future[Play] = Future()
    done.set_result(one.tried(step))
    return done


def _some_driven(
    tasks: Sequence[Task],
    seed: int,
    sampler: tinker.SamplingClient,
    renderer: Renderer,
    wait: Waiter,
    limits: EpisodeLimits,
    over: Callable[[int], None],
) -> list[Play]:
    """`play` where some of the tasks, or all of them, drive themselves."""
    room = threading.Semaphore(AT_ONCE)
    begun: dict[int, tuple[SampledPolicy, Future[Play]]] = {}
    plays: dict[int, Play] = {}
    for place, task in enumerate(tasks):
        if not isinstance(task, DrivenTask):
            continue
        policy = SampledPolicy(
            sampler,
            renderer,
            limits.max_turns,
            limits.max_tokens,
            limits.temperature,
            derive_seed(seed, "driven", place),
        )

        def work(task: DrivenTask = task, policy: SampledPolicy = policy) -> Play:
            with room:
                return Play.driven(task, policy, limits)

        begun[place] = policy, in_thread(work)
        if not task.concurrent:
            plays[place] = _driven(*begun[place], wait)
    for place, (policy, course) in begun.items():
        plays[place] = _driven(policy, course, wait)
        over(len(plays))
    others = [place for place in range(len(tasks)) if place not in begun]
    told = play(
        [tasks[place] for place in others],
        seed,
        sampler,
        renderer,
        wait,
        limits,
        lambda count: over(len(begun) + count),
    )
    plays |= dict(zip(others, told, strict=True))
    return [plays[place] for place in range(len(tasks))]


def _driven(policy: SampledPolicy, course: Future[Play], wait: Waiter) -> Play:
    try:
        found: Play = wait(course)
    finally:
        policy.over.set()  # whoever still plays on gets no more replies
    if policy.failed and found.error:
        wait(policy.failed[0])  # the engine's failure, which is not the environment's
    return found
