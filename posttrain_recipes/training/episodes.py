"""Episodes of an environment: the policy reads turns and writes replies until they are over.

What a seat has read and written stays one sequence of tokens as long as the chat template only
adds to a conversation: the policy's own tokens are never rendered again from their text, so what it
is trained on is what it wrote, token by token. Where a template rewrites earlier turns, or a turn
is `fresh`, a reply begins a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import Message, Renderer, Waiter
from posttrain_recipes.records import Episode, Messages, Sample, Task, Turn
from posttrain_recipes.training.groups import Segment, derive

if TYPE_CHECKING:
    import tinker


@dataclass
class Seat:
    """What one player has read and written."""

    messages: list[Message] = field(default_factory=list)
    opening: int = 0
    """How many of the messages were there before it first wrote."""
    segments: list[Segment] = field(default_factory=list)
    reward: float = 0.0
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


@dataclass
class Play:
    """One episode at work."""

    episode: Episode
    turn: Turn | None
    seats: list[Seat]
    turns: int = 0
    unfinished: bool = False
    """Whether it was still going on when no more turns were allowed."""

    @classmethod
    def of(cls, task: Task) -> Play:
        """Begin an episode of `task`."""
        episode = task.start()
        return cls(episode, episode.turn(), [Seat() for _ in range(episode.seats)])

    def sample(self, seat: int) -> Sample:
        """What a seat went through, to read."""
        played = self.seats[seat]
        opening, rest = played.messages[: played.opening], played.messages[played.opening :]
        said = [m.content if m.role == "assistant" else f"[{m.role}] {m.content}" for m in rest]
        if shown := self.episode.show():
            said.append(shown)
        return Sample(
            prompt=tuple(opening),
            completion="\n".join(said),
            truncated=played.cut or self.unfinished,
            scores=dict(self.episode.metrics()),
        )


@dataclass(frozen=True)
class Limits:
    """How far an episode may go, and how replies are sampled."""

    max_turns: int
    """Replies in one episode, of all seats together."""
    max_tokens: int
    temperature: float


def play(
    tasks: Sequence[Task],
    seed: int,
    sampler: tinker.SamplingClient,
    renderer: Renderer,
    wait: Waiter,
    limits: Limits,
) -> list[Play]:
    """Play an episode of each task, all at once, one turn after another.

    Episodes in which the same is to be said next are one request. What comes back depends on
    the arguments alone.
    """
    plays = [Play.of(task) for task in tasks]
    for number in range(limits.max_turns):
        asked: dict[tuple[int, ...], list[Play]] = {}
        for one in plays:
            if one.turn is not None:
                seat = one.seats[one.turn.seat]
                asked.setdefault(tuple(seat.prompt(renderer, one.turn)), []).append(one)
        if not asked:
            return plays
        futures = [
            _submit(sampler, renderer, prompt, len(same), derive(seed, number, place), limits)
            for place, (prompt, same) in enumerate(asked.items())
        ]
        for (tokens, same), future in zip(asked.items(), futures, strict=True):
            answer: Any = wait(future)
            for one, sequence in zip(same, answer.sequences, strict=True):
                _act(one, renderer, list(tokens), sequence)
    for one in plays:
        one.unfinished = one.turn is not None
    return plays


def _submit(
    sampler: tinker.SamplingClient,
    renderer: Renderer,
    prompt: tuple[int, ...],
    count: int,
    seed: int,
    limits: Limits,
) -> Future[tinker.SampleResponse]:
    import tinker

    return sampler.sample(  # type: ignore[no-any-return]
        tinker.ModelInput.from_ints(list(prompt)),
        count,
        tinker.SamplingParams(
            max_tokens=limits.max_tokens,
            temperature=limits.temperature,
            seed=seed,
            stop=renderer.stop,
        ),
    )


def _act(
    one: Play, renderer: Renderer, prompt: list[int], sequence: tinker.SampledSequence
) -> None:
    assert one.turn is not None
    seat = one.seats[one.turn.seat]
    reply = seat.write(renderer, prompt, list(sequence.tokens), list(sequence.logprobs or ()))
    one.episode.truncated = not seat.ended
    rewards = one.episode.act(reply)
    if len(rewards) != len(one.seats):
        raise ValueError(f"act() returned {len(rewards)} rewards for {len(one.seats)} seats")
    for player, reward in zip(one.seats, rewards, strict=True):
        player.reward += reward
    one.turns += 1
    one.turn = one.episode.turn()
