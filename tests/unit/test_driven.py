"""Environments that drive themselves: what they give is trained on as it stands."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from posttrain_recipes.errors import PtlError
from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.plugin import Branch, DrivenTask, Message, Played, Policy
from posttrain_recipes.training.rl.episodes import EpisodeLimits, Play, play
from tests.scripted import END, Renderer, Sampler, source, spell, wait
from tests.unit.test_episode_faults import TalkTask


def letters(tokens: list[int], index: int, seed: int) -> list[int]:
    rng = random.Random(f"{tokens} {seed}")
    return [*spell("".join(rng.choices("abcdefgh", k=3))), END]


def nothing(number: int, turn: int) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Twice(DrivenTask):
    """Asks two things, in a rendering of its own that no chat template knows."""

    source: str = "twice:1"
    fault: Callable[[int, int], Any] = nothing
    """Of how often it was begun before, and of the turn."""
    begun: list[int] = field(default_factory=list)
    turns: int = 2

    def play(self, policy: Policy) -> Played:
        number = len(self.begun)
        self.begun.append(number)
        tokens, sampled, logprobs = [7, 7, 7], [False] * 3, [0.0] * 3
        messages = [Message("user", "?")]
        for turn in range(self.turns):
            self.fault(number, turn)
            reply = policy.sample(tokens).result()
            tokens = [*tokens, *reply.tokens, 9]
            sampled += [*(True for _ in reply.tokens), False]
            logprobs += [*reply.logprobs, 0.0]
            messages.append(Message("assistant", policy.renderer.parse(reply.tokens)))
        self.fault(number, self.turns)
        branch = Branch(tokens, sampled, logprobs, tuple(messages))
        return Played([branch], float(sum(tokens)), {"length": float(len(tokens))})


@dataclass(frozen=True, kw_only=True)
class AtOnce(Twice):
    concurrent: ClassVar[bool] = True


LIMITS = EpisodeLimits(max_turns=4, max_tokens=4, temperature=1.0, retries=2)


def playing(task: DrivenTask, limits: EpisodeLimits = LIMITS) -> tuple[list[Play], Any]:
    sampler = Sampler(letters)
    return play([task] * 4, 7, sampler, Renderer(), wait, limits), sampler.asked  # type: ignore[arg-type]


def course(one: Play) -> Any:
    return one.players[0].segments, one.players[0].reward, one.metrics, one.turns


def test_tokens_flags_and_log_probabilities_go_into_training_as_they_stand() -> None:
    sampler = Sampler(letters)
    method = GRPO(GRPO.Config(group_size=3, max_tokens=4, behaviour_logprobs="sampled"))
    [group] = source(method, [Twice()]).roll(0, 5, sampler)
    assert len(group.rollouts) == 3
    for rollout in group.rollouts:
        [segment] = rollout.segments
        assert segment.tokens[:3] == [7, 7, 7]
        assert segment.sampled == [False] * 3 + ([True] * 4 + [False]) * 2
        assert segment.logprobs == [0.0] * 3 + [-0.1, -0.2, -0.1 * 3, -0.4, 0.0] * 2
        assert rollout.reward == sum(segment.tokens)
        assert rollout.parts == {"return": rollout.reward, "length": 13.0}
        assert [m.role for m in rollout.conversations[0]] == ["user", "assistant", "assistant"]
    assert len({str(one.segments) for one in group.rollouts}) == 3, "each has replies of its own"


def test_the_order_in_which_episodes_ask_changes_nothing() -> None:
    one_by_one, _ = playing(Twice())
    at_once, _ = playing(AtOnce())
    assert [course(one) for one in one_by_one] == [course(one) for one in at_once]


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_one_that_raises_is_begun_again_and_hears_the_same(turn: int) -> None:
    def fault(number: int, at: int) -> None:
        if number == 1 and at == turn:
            raise ConnectionError("lost")

    calm, asked = playing(Twice())
    shaken, asked_then = playing(Twice(fault=fault))
    assert asked_then == asked, "nothing is sampled a second time"
    assert [course(one) for one in shaken] == [course(one) for one in calm]
    assert [one.retried for one in shaken] == [0, 1, 0, 0]
    assert [one.thrown_away for one in shaken] == [0, 0, 0, 0]


def test_one_that_goes_on_raising_costs_itself_alone() -> None:
    def fault(number: int, at: int) -> None:
        if 1 <= number <= 3:
            raise ConnectionError("lost")

    shaken, _ = playing(Twice(fault=fault))
    assert [one.error for one in shaken] == ["", "ConnectionError: lost", "", ""]
    assert shaken[1].retried == 2
    assert not shaken[1].players


def test_one_that_is_late_is_begun_again() -> None:
    hold = threading.Event()

    def fault(number: int, at: int) -> None:
        if number == 0 and at == 1:
            hold.wait(10)

    limits = EpisodeLimits(max_turns=4, max_tokens=4, temperature=1.0, retries=1, seconds=0.2)
    shaken, _ = playing(Twice(fault=fault), limits)
    hold.set()
    assert [one.retried for one in shaken] == [1, 0, 0, 0]
    assert not any(one.error for one in shaken)


def test_asking_beyond_the_bound_is_the_environments_fault() -> None:
    [one, *_], asked = playing(Twice(turns=5))
    assert "more than 4 replies" in one.error
    assert one.retried == 2
    assert len(asked) == 16, "four replies each, however often it was begun"


def test_an_engine_that_fails_is_not_the_environments_fault() -> None:
    class Broken(Sampler):
        def sample(self, prompt: Any, count: int, params: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(PtlError("the engine is gone"))
            return future

    with pytest.raises(PtlError, match="the engine is gone"):
        play([Twice()], 7, Broken(letters), Renderer(), wait, LIMITS)  # type: ignore[arg-type]


def test_it_plays_beside_environments_that_are_told_replies() -> None:
    tasks = [TalkTask(), Twice(), TalkTask()]
    plays = play(tasks, 7, Sampler(letters), Renderer(), wait, LIMITS)  # type: ignore[arg-type]
    assert [one.turns for one in plays] == [3, 2, 3]


@pytest.mark.parametrize(
    ("tokens", "sampled", "logprobs", "told"),
    [
        ([1, 2], [False, True], [0.0], "tokens, flags"),
        ([1, 2], [False, False], [0.0, 0.0], "something that the policy wrote"),
        ([1, 2], [True, True], [0.0, 0.0], "a prompt"),
        ([1, 2], [False, True], [0.0, math.nan], "are none"),
        ([1, 2], [False, True], [0.0, 0.5], "are none"),
        ([1, 2], [False, True], [0.0, None], "are none"),
        ([1, -5], [False, True], [0.0, -0.1], "-5 among its tokens"),
        ([1, 2.7], [False, True], [0.0, -0.1], "2.7 among its tokens"),
        ([None, 2], [False, True], [0.0, -0.1], "None among its tokens"),
    ],
)
def test_a_branch_that_cannot_be_trained_on_is_refused(
    tokens: list[Any], sampled: list[bool], logprobs: list[Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Branch(tokens, sampled, logprobs, (Message("assistant", "a"),))


@dataclass(frozen=True, kw_only=True)
class Measured(Twice):
    value: Any = None

    def play(self, policy: Policy) -> Played:
        found = super().play(policy)
        return Played(found.branches, found.reward, {"success": self.value, "known": 1})


@pytest.mark.parametrize("value", [math.nan, math.inf, "yes"])
def test_a_metric_that_is_no_number_is_the_environments_fault(value: Any) -> None:
    plays, _ = playing(Measured(value=value))
    assert {one.error for one in plays} == {
        f"ValueError: 'success' of play() returned {value!r}, which is not a finite number"
    }


def test_a_metric_that_is_not_known_is_left_out() -> None:
    plays, _ = playing(Measured())
    assert [one.metrics for one in plays] == [{"known": 1.0}] * 4


@dataclass(frozen=True, kw_only=True)
class Forgetful(Twice):
    def play(self, policy: Policy) -> Played:
        found = super().play(policy)
        return found if len(self.begun) == 1 else Played([], found.reward)


def test_episodes_without_branches_are_counted_and_told() -> None:
    method = GRPO(GRPO.Config(group_size=3, max_tokens=4, behaviour_logprobs="sampled"))
    [group] = source(method, [Forgetful()]).roll(0, 5, Sampler(letters))
    assert len(group.rollouts) == 1
    assert group.counts["abstained"] == 2
    assert "gave no branches" in group.error


def test_it_cannot_be_told_replies() -> None:
    with pytest.raises(PtlError, match="twice:1 drives its own episodes"):
        Twice().start()
