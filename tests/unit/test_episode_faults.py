"""Environments that raise, hang or abstain: what is done again, left out and counted."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.evals.episodes import Episodes as EpisodesEval
from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.plugin import Episode, EvalContext, EvalResult, Message, Task, Turn
from posttrain_recipes.training.rl.episodes import EpisodeLimits, Play, play
from posttrain_recipes.training.rl.rollout import Group
from tests.rollout_engine import Engine, run, trained
from tests.scripted import END, Renderer, Sampler, source, spell, wait

Fault = Callable[[int, str], Any]
"""Of the number of the episode, in the order they began, and of what it is at (`start`, `turn 2`,
`act 1`, `metrics`); it may raise, hang, or return what `act` gives in place of the reward."""


def at(begun: int | range, place: str, what: Exception | Callable[[], Any]) -> Fault:
    """A fault of some episodes at one place."""
    episodes = begun if isinstance(begun, range) else range(begun, begun + 1)

    def fault(number: int, where: str) -> Any:
        if number in episodes and where == place:
            if isinstance(what, Exception):
                raise what
            return what()
        return None

    return fault


LOST = ConnectionError("lost")


@dataclass
class Talk(Episode):
    """Hears three replies; each is worth its letters. What it tells repeats what it heard."""

    number: int
    fault: Fault
    heard: list[str] = field(default_factory=list)
    tells: str = ""

    def turn(self) -> Turn | None:
        self.fault(self.number, f"turn {len(self.heard)}")
        if len(self.heard) == 3:
            return None
        return Turn((Message("user", f"go on {self.tells}{''.join(self.heard)}"),))

    def act(self, reply: str) -> Sequence[float | None]:
        self.heard.append(reply)
        said: Sequence[float | None] | None = self.fault(self.number, f"act {len(self.heard)}")
        return said or [float(sum(map(ord, reply)))]

    def metrics(self) -> Mapping[str, float]:
        self.fault(self.number, "metrics")
        return {"replies": float(len(self.heard))}


def harmless(number: int, where: str) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class TalkTask(Task):
    source: str = "talk:1"
    fault: Fault = harmless
    begun: list[Talk] = field(default_factory=list)

    def start(self) -> Episode:
        episode = Talk(len(self.begun), self.fault)
        self.begun.append(episode)
        self.fault(episode.number, "start")
        return episode


def letters(tokens: list[int], index: int, seed: int) -> list[int]:
    rng = random.Random(f"{tokens} {index} {seed}")
    return [*spell("".join(rng.choices("abcdefgh", k=3))), END]


def played(fault: Fault, retries: int = 2, seconds: float | None = None) -> tuple[list[Play], Any]:
    """Four episodes of one task, and what was sampled for them."""
    sampler = Sampler(letters)
    limits = EpisodeLimits(
        max_turns=6, max_tokens=4, temperature=1.0, retries=retries, seconds=seconds
    )
    tasks = [TalkTask(fault=fault)] * 4
    return play(tasks, 7, sampler, Renderer(), wait, limits), sampler.asked  # type: ignore[arg-type]


def course(one: Play) -> Any:
    seat = one.players[0]
    return seat.segments, seat.reward, seat.conversations, one.metrics


@pytest.mark.parametrize("place", ["start", "turn 0", "act 1", "turn 2", "act 3", "metrics"])
def test_the_episode_that_failed_is_begun_again_and_told_what_was_said(place: str) -> None:
    """Nothing is sampled a second time, for it or for the others."""
    calm, asked = played(harmless)
    shaken, asked_then = played(at(1, place, LOST))
    assert [one.retried for one in shaken] == [0, 1, 0, 0]
    assert asked_then == asked
    assert [course(one) for one in shaken] == [course(one) for one in calm]
    assert not any(one.error for one in shaken)
    assert len({str(course(one)) for one in calm}) == 4


def test_it_may_fail_again_while_it_is_told() -> None:
    """The second beginning fails too, at an earlier reply than the first."""
    calm, asked = played(harmless)

    def fault(number: int, where: str) -> None:
        if (number, where) in ((1, "act 3"), (4, "act 2")):
            raise LOST

    shaken, asked_then = played(fault)
    assert [one.retried for one in shaken] == [0, 2, 0, 0]
    assert asked_then == asked
    assert [course(one) for one in shaken] == [course(one) for one in calm]


def test_an_environment_that_tells_something_else_then_is_answered_anew() -> None:
    """What it told the same stays as it was said; the rest is sampled, for this episode alone."""
    task = TalkTask(fault=at(2, "act 3", LOST))

    class Moody(Talk):
        def turn(self) -> Turn | None:
            self.tells = "!" if self.number == 4 and len(self.heard) == 1 else ""
            return super().turn()

    @dataclass(frozen=True, kw_only=True)
    class MoodyTask(TalkTask):
        def start(self) -> Episode:
            episode = Moody(len(self.begun), self.fault)
            self.begun.append(episode)
            return episode

    calm, asked = played(harmless)
    sampler = Sampler(letters)
    limits = EpisodeLimits(max_turns=6, max_tokens=4, temperature=1.0, retries=1)
    moody = MoodyTask(fault=task.fault)
    shaken = play([moody] * 4, 7, sampler, Renderer(), wait, limits)  # type: ignore[arg-type]
    others = (0, 1, 3)
    assert [course(shaken[n]) for n in others] == [course(calm[n]) for n in others]
    assert sampler.asked[: len(asked)] == asked
    assert len(sampler.asked) == len(asked) + 2
    one = shaken[2]
    assert one.said[0] == calm[2].said[0]
    assert one.said[1] != calm[2].said[1]
    assert (one.turns, one.retried, one.thrown_away) == (3, 1, 8)
    assert "!" in one.said[1].turn.messages[0].content


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (at(range(9), "act 1", LOST), "ConnectionError: lost"),
        (at(range(9), "start", LOST), "ConnectionError: lost"),
        (at(range(9), "act 1", TimeoutError("its own")), "TimeoutError: its own"),
        (at(range(9), "act 1", lambda: [1.0, 0.0]), "act() returned 2 rewards for 1 seats"),
        (at(range(9), "act 1", lambda: [float("nan")]), "returned nan, which is not a finite"),
        (at(range(9), "act 1", UsageError("no such tool")), "UsageError: no such tool"),
    ],
)
def test_what_an_environment_raises_is_kept_and_not_passed_on(fault: Fault, told: str) -> None:
    plays, _ = played(fault, retries=1)
    assert [one.retried for one in plays] == [1] * 4
    assert all(told in one.error and not one.late for one in plays)


# --- in training ---------------------------------------------------------------------------------


def roll(fault: Fault, **options: Any) -> Group:
    made = source(GRPO(GRPO.Config(group_size=4, **options)), [TalkTask(fault=fault)])
    made.source.tasks[0].begun.clear()  # type: ignore[attr-defined]
    [group] = made.roll(0, 7, Sampler(letters))  # type: ignore[arg-type]
    return group


LAST = at(1, "act 3", LOST)
"""In its last reply: whatever becomes of the episode, the others go on as they would have."""


def test_retries_spent_drop_leaves_the_episode_out_of_its_group() -> None:
    group = roll(LAST, retries=0)
    assert [rollout.reward is None for rollout in group.rollouts] == [False, True, False, False]
    assert group.rewards == roll(harmless).rewards[:1] + roll(harmless).rewards[2:]
    assert group.counts["failed"] == 1
    assert "ConnectionError: lost" in group.error
    assert "return" not in group.rollouts[1].parts


def test_zero_counts_it_as_nothing_whatever_it_had() -> None:
    group = roll(LAST, retries=0, on_reward_error="zero")
    calm = roll(harmless).rewards
    assert group.rewards == [calm[0], 0.0, *calm[2:]]
    assert group.rollouts[1].length == 12, "it is learned from up to where it failed"
    assert group.counts["failed"] == 1


def test_stop_ends_the_stage_once_the_retries_are_spent() -> None:
    assert not roll(LAST, retries=1, on_reward_error="stop").error
    with pytest.raises(PtlError, match="failed 3 times in an episode of talk:1") as caught:
        roll(at(range(1, 99), "act 2", LOST), retries=2, on_reward_error="stop")
    assert caught.value.why == "ConnectionError: lost"


def test_an_environment_that_is_late_is_not_waited_for() -> None:
    never = threading.Event()
    group = roll(at(range(1, 3), "act 2", never.wait), retries=0, reward_timeout=0.05)
    assert [rollout.reward is None for rollout in group.rollouts] == [False, True, True, False]
    assert (group.counts["timed_out"], group.counts["failed"]) == (2, 0)
    assert "took more than 0.05 s" in group.error
    never.set()


def test_one_that_is_late_once_goes_on_as_it_would_have() -> None:
    never = threading.Event()
    group = roll(at(1, "act 2", never.wait), reward_timeout=0.05)
    assert group.rewards == roll(harmless).rewards
    assert group.counts["retried"] == 1
    never.set()


def test_an_environment_that_abstains_leaves_its_episode_out() -> None:
    """Whatever it gives before or after, and whatever is done about errors."""
    for policy in ("drop", "zero", "stop"):
        group = roll(at(2, "act 2", lambda: [None]), on_reward_error=policy)
        assert [rollout.reward is None for rollout in group.rollouts] == [False, False, True, False]
        assert group.counts["abstained"] == 1
        assert group.counts["failed"] == group.counts["retried"] == 0
        assert group.rollouts[2].parts == {"replies": 3.0}


def test_an_environment_that_cannot_be_begun_at_all_ends_the_stage() -> None:
    with pytest.raises(PtlError, match="failed 3 times") as caught:
        source(GRPO(GRPO.Config()), [TalkTask(fault=at(range(99), "start", LOST))])
    assert "lost" in str(caught.value.why)
    assert source(GRPO(GRPO.Config()), [TalkTask(fault=at(0, "start", LOST))]).seats == 1


# --- in the rollout loop -------------------------------------------------------------------------


@dataclass
class Number(Episode):
    """One reply, worth 1 where it begins with an even number."""

    said: int
    fault: Callable[[str], Any]
    over: bool = False

    def turn(self) -> Turn | None:
        return None if self.over else Turn((Message("user", str(self.said)),), fresh=True)

    def act(self, reply: str) -> Sequence[float | None]:
        self.over = True
        given: Sequence[float | None] | None = self.fault(reply)
        return given or [float(int(reply.split()[0]) % 2 == 0)]


@dataclass(frozen=True, kw_only=True)
class NumberTask(Task):
    said: int
    fault: Callable[[str], Any] = lambda reply: None

    def start(self) -> Episode:
        return Number(self.said, self.fault)


def numbers(fault: Callable[[str], Any] = lambda reply: None) -> list[NumberTask]:
    return [NumberTask(said=number, fault=fault) for number in range(100, 110)]


def test_a_service_that_fails_now_and_then_changes_nothing_that_is_learned() -> None:
    calm, shaken = Engine(), Engine()
    run(calm, rewards=(), train=numbers())
    asked: set[tuple[int, str]] = set()
    lock = threading.Lock()

    def fault(reply: str) -> None:
        """The first time that this reply is heard at these weights."""
        with lock:
            new = (shaken.version, reply) not in asked
            asked.add((shaken.version, reply))
        if new and len(reply) % 2:
            raise LOST

    run(shaken, rewards=(), train=numbers(fault))
    assert trained(shaken) == trained(calm)
    told = [metrics for metrics, _ in shaken.log]
    assert all(metrics["rollouts/retried"] > 0 for metrics in told)
    assert all(metrics["reward_errors/failed"] == 0 for metrics in told)
    assert [metrics["rollouts/retried"] for metrics, _ in calm.log] == [0, 0, 0]


def test_what_went_wrong_is_counted() -> None:
    def fault(reply: str) -> Sequence[float | None] | None:
        first = int(reply.split()[0])
        if first % 3 == 0:
            raise LOST
        return [None] if first % 3 == 1 else None

    engine = Engine()
    run(engine, rewards=(), train=numbers(fault), max_steps=1, retries=1)
    [(metrics, _)] = engine.log
    failed, abstained = metrics["reward_errors/failed"], metrics["reward_errors/abstained"]
    assert failed > 0
    assert abstained > 0
    assert failed + abstained < 24
    assert metrics["rollouts/retried"] == failed
    assert len(engine.asked) == 4, "a group is one request, whatever becomes of its episodes"


def test_an_environment_that_never_works_ends_the_stage() -> None:
    def fault(reply: str) -> None:
        raise LOST

    with pytest.raises(PtlError, match="no reply of a whole batch") as caught:
        run(Engine(), rewards=(), train=numbers(fault), max_steps=1)
    assert "ConnectionError: lost" in str(caught.value.why)


# --- at the same time ----------------------------------------------------------------------------


def test_episodes_act_at_the_same_time_where_their_task_says_so() -> None:
    """Each waits for the three others: one after another they would wait for ever."""
    meet = threading.Barrier(4)

    class Together(TalkTask):
        concurrent: ClassVar[bool] = True

    sampler, limits = Sampler(letters), EpisodeLimits(max_turns=6, max_tokens=4, temperature=1.0)
    tasks = [Together(fault=at(range(4), "act 2", lambda: meet.wait(10) and None))] * 4
    plays = play(tasks, 7, sampler, Renderer(), wait, limits)  # type: ignore[arg-type]
    assert [course(one) for one in plays] == [course(one) for one in played(harmless)[0]]
    assert not any(one.error for one in plays)


def test_otherwise_they_act_one_after_another_in_the_groups_own_thread() -> None:
    seen = []

    def fault(number: int, where: str) -> None:
        seen.append((number, where, threading.current_thread()))

    played(fault)
    assert {thread for _, _, thread in seen} == {threading.current_thread()}
    assert [number for number, where, _ in seen if where == "act 1"] == [0, 1, 2, 3]


# --- in evals ------------------------------------------------------------------------------------


def evaluated(fault: Fault, **options: Any) -> EvalResult:
    context = EvalContext(
        name="e",
        seed=0,
        records=[TalkTask(fault=fault)] * 4,
        renderer=Renderer(),  # type: ignore[arg-type]
        sampler=Sampler(letters),  # type: ignore[arg-type]
        wait=wait,
    )
    return EpisodesEval(EpisodesEval.Config(**options)).evaluate(context)


def test_an_eval_tries_again_and_leaves_no_failed_episode_out() -> None:
    assert evaluated(at(range(2), "act 2", LOST)) == evaluated(harmless)
    with pytest.raises(PtlError, match="the environment failed in an episode of talk:1") as caught:
        evaluated(at(1, "act 2", LOST), retries=0)
    assert caught.value.why == "ConnectionError: lost"


def test_an_eval_leaves_episodes_out_of_the_mean_that_have_no_reward() -> None:
    result = evaluated(at(range(2), "act 3", lambda: [None]))
    assert result.metrics["return"].count == 2
    assert result.metrics["replies"].count == 4
    assert ["return" in sample.scores for sample in result.samples] == [False, False, True, True]
    with pytest.raises(UsageError, match="abstains in every episode"):
        evaluated(at(range(9), "act 3", lambda: [None]))
