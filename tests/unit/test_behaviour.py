"""What a server tells with its samples: copies of one reply are noticed, noise is read away."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.records import Sample
from posttrain_recipes.training import requests
from posttrain_recipes.training.rl.advantages import k1
from posttrain_recipes.training.rl.behaviour import GAP, Behaviour
from posttrain_recipes.training.rl.metrics import batch_metrics
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment
from posttrain_recipes.waiting import CancellableWaiter
from tests.scripted import wait


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


# --- copies --------------------------------------------------------------------------------------


class Server:
    """A connection to a server whose tokens are drawn alike from `width` of them."""

    def __init__(self, repeats: bool, width: int = 50, length: int = 10) -> None:
        self.repeats, self.width, self.length = repeats, width, length
        self.asked: list[tuple[int, int | None]] = []
        self.holder = self

    def sample(self, prompt: Any, count: int, params: Any) -> Future[Any]:
        self.asked.append((count, params.seed))
        told = [-math.log(self.width)] * self.length
        sequences = []
        for number in range(count):
            draw = random.Random(f"{params.seed} {0 if self.repeats else number}")
            tokens = [draw.randrange(self.width) for _ in range(self.length)]
            sequences.append(SimpleNamespace(tokens=tokens, logprobs=told))
        return done(SimpleNamespace(sequences=sequences))


def group(server: Server, count: int = 8, seed: int | None = 3, **options: Any) -> list[Any]:
    asked = requests.sample(server, [1], count, max_tokens=9, seed=seed, **options)  # type: ignore[arg-type]
    return list(wait(asked).sequences)  # type: ignore[arg-type]


def test_copies_are_drawn_again_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(repeats=True)
    first = group(server)
    assert len({tuple(one.tokens) for one in first}) == 8
    assert server.asked[0] == (8, 3)
    assert [count for count, _ in server.asked[1:]] == [1] * 7
    assert len({seed for _, seed in server.asked}) == 8
    again = group(server)
    assert len({tuple(one.tokens) for one in again}) == 8
    assert [count for count, _ in server.asked[8:]] == [1] * 8, "from now on each for itself"
    assert [one.tokens for one in again] == [one.tokens for one in first], "by the seed"
    (told,) = caplog.messages
    assert "7 of 8 samples of one request are copies" in told


def test_another_sampler_of_the_connection_knows() -> None:
    server = Server(repeats=True)
    group(server)
    other = SimpleNamespace(holder=server, sample=server.sample)
    group(other, 4)  # type: ignore[arg-type]
    assert [count for count, _ in server.asked[8:]] == [1] * 4


@pytest.mark.parametrize(
    ("options", "count"),
    [({"temperature": 0.0}, 8), ({"temperature": 0.7}, 8), ({"seed": None}, 8), ({}, 1)],
)
def test_where_replies_may_agree_or_nothing_can_be_done_they_are_taken(
    options: dict[str, Any], count: int
) -> None:
    server = Server(repeats=True)
    group(server, count, **options)
    assert len(server.asked) == 1


@pytest.mark.parametrize(("width", "length"), [(2, 1), (2, 4), (50, 1), (50, 10), (1, 9)])
def test_independent_samples_are_no_copies(width: int, length: int) -> None:
    for seed in range(300):
        server = Server(repeats=False, width=width, length=length)
        group(server, 16, seed)
        assert len(server.asked) == 1


def test_short_replies_are_copies_where_too_many_agree() -> None:
    def said(*replies: int) -> list[Any]:
        return [SimpleNamespace(tokens=[one], logprobs=[math.log(0.05)]) for one in replies]

    assert requests.copies(said(1, 1, 1, 2, 3, 4, 5, 6)) == []
    assert requests.copies(said(*[7] * 16)) == list(range(1, 16))
    unknown = [SimpleNamespace(tokens=[1, 2], logprobs=None)] * 9
    assert requests.copies(unknown) == [], "of which nothing is known"


# --- log-probabilities ---------------------------------------------------------------------------


class Noisy:
    """Reads every token at -1 nat; `rollout` tells of its samples what it reads, and noise."""

    def __init__(self, noise: float, length: int = 20, seed: int = 0) -> None:
        self.noise, self.length, self.read = noise, length, 0
        self.draw = random.Random(seed)

    def compute_logprobs(self, prompt: Any) -> Future[Any]:
        self.read += 1
        return done([None] + [-1.0] * (prompt.length - 1))

    def rollout(self) -> Rollout:
        told = [-1.0 + self.draw.gauss(-0.0015, self.noise) for _ in range(self.length)]
        segment = Segment.reply([5, 6, 7], [8] * self.length, told)
        return Rollout([segment], Sample((), "a"), [])

    def rollouts(self) -> list[Rollout]:
        return [self.rollout() for _ in range(4)]


def settled(how: Any, server: Noisy, groups: int = 3, **options: Any) -> list[list[Rollout]]:
    behaviour = Behaviour(how, CancellableWaiter(), **options)
    made = []
    for _ in range(groups):
        rollouts = server.rollouts()
        behaviour.take(rollouts, behaviour.ask(rollouts, server))  # type: ignore[arg-type]
        made.append(rollouts)
    return made


def own(rollouts: Sequence[Rollout]) -> list[float]:
    return [p for one in rollouts for s in one.segments for p in s.own(s.logprobs)]


def test_noise_is_read_away_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    server = Noisy(0.05)
    for rollouts in settled("auto", server):
        assert own(rollouts) == [-1.0] * 80
        assert k1(own(rollouts), [-1.0] * 80) == [0.0] * 80, "KL to the same weights"
        assert all(len(one.gaps) == 20 for one in rollouts)
    assert server.read == 12
    (told,) = caplog.messages
    assert "are off by 0.0" in told
    assert "each reply is read again" in told


def test_where_there_is_none_one_group_is_read(caplog: pytest.LogCaptureFixture) -> None:
    server = Noisy(1e-5)
    first, *others = settled("auto", server)
    assert server.read == 4
    assert own(first) != [-1.0] * 80, "as they were told"
    assert all(one.gaps for one in first)
    assert not any(one.gaps for rollouts in others for one in rollouts)
    assert caplog.messages == []


def test_short_replies_are_measured_until_there_are_enough_of_them() -> None:
    for seed in range(100):
        noisy, exact = Noisy(0.05, 1, seed), Noisy(1e-3, 1, seed)
        assert own(settled("auto", noisy, 40)[-1]) == [-1.0] * 4
        settled("auto", exact, 40)
        assert exact.read == 64
    silent = Noisy(0.05, 0)
    settled("auto", silent)
    assert silent.read == 12, "of nothing nothing is known"


@pytest.mark.parametrize(
    ("how", "noise", "read", "words"),
    [
        ("sampled", 0.05, 4, ["'behaviour_logprobs: recomputed' reads them again"]),
        ("sampled", 1e-5, 4, []),
        ("recomputed", 0.05, 12, []),
        ("recomputed", 1e-5, 12, []),
    ],
)
def test_a_recipe_has_the_last_word(
    how: str, noise: float, read: int, words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    server = Noisy(noise)
    for rollouts in settled(how, server):
        assert (own(rollouts) == [-1.0] * 80) is (how == "recomputed")
    assert server.read == read
    assert len(caplog.messages) == len(words)
    assert all(word in caplog.text for word in words)


def test_of_an_engine_that_is_known_nothing_is_read_unless_asked_for() -> None:
    server = Noisy(0.05)
    settled("auto", server, measure=False)
    settled("sampled", server, measure=False)
    assert server.read == 0
    for rollouts in settled("recomputed", server, measure=False):
        assert own(rollouts) == [-1.0] * 80


def test_at_another_temperature_nothing_is_read() -> None:
    server = Noisy(0.5)
    settled("auto", server, measure=False)
    assert server.read == 0
    with pytest.raises(ValueError, match="recomputed needs temperature 1"):
        GRPO.Config(behaviour_logprobs="recomputed", temperature=0.7)


def test_the_gap_is_a_metric() -> None:
    (rollouts,) = settled("auto", Noisy(0.05), 1)
    metrics = batch_metrics([Group(rollouts)])
    gaps = [gap for one in rollouts for gap in one.gaps]
    assert metrics["policy/sampled_gap_rms"] == pytest.approx(
        math.sqrt(sum(gap * gap for gap in gaps) / 80)
    )
    assert metrics["policy/sampled_gap_rms"] > GAP
    assert metrics["policy/sampled_gap_mean"] == pytest.approx(sum(gaps) / 80)
    assert "policy/sampled_gap_rms" not in batch_metrics([Group(Noisy(0.1).rollouts())])


def test_a_conversation_of_several_turns_keeps_what_others_said() -> None:
    server = Noisy(0.2)
    turns = Segment.reply([5, 6], [8, 8], [-2.0, -3.0]).extended(
        Segment.reply([5, 6, 8, 8, 9, 9], [8], [-4.0])
    )
    assert turns is not None
    rollout = Rollout([turns], Sample((), "a"), [])
    behaviour = Behaviour("recomputed", CancellableWaiter())
    behaviour.take([rollout], behaviour.ask([rollout], server))  # type: ignore[arg-type]
    (segment,) = rollout.segments
    assert segment.logprobs == [0, 0, -1.0, -1.0, 0, 0, -1.0]
    assert segment.sampled == turns.sampled
    assert rollout.gaps == [-1.0, -2.0, -3.0]
