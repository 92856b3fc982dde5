"""Weighted sums of rewards, and what is done where one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from posttrain_recipes.errors import PtlError
from posttrain_recipes.plugin import PluginConfig, Reward, Sample
from posttrain_recipes.training.rl.scoring import OnError, Scorer, WrongScores

Score = Callable[[Sample], float | None]
SAMPLES = [Sample(prompt=(), completion=text) for text in ("a", "bb", "ccc")]


class Made(Reward):
    name = "made"

    def __init__(self, score: Score, label: str = "made") -> None:
        super().__init__(PluginConfig())
        self._score, self._label = score, label

    @property
    def label(self) -> str:
        return self._label

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._score(sample) for sample in samples]


def length(sample: Sample) -> float:
    return float(len(sample.completion))


def scorer(*rewards: tuple[Score, float], on_error: OnError = "drop") -> Scorer:
    return Scorer([(Made(score), weight) for score, weight in rewards], on_error)


def test_a_weighted_sum_keeps_its_parts() -> None:
    scores = scorer((length, 2.0), (lambda s: s.completion == "a", -1.0)).score(SAMPLES)
    assert scores.totals == [1.0, 4.0, 6.0]
    assert scores.parts == [
        {"made": 1.0, "made_2": 1.0},
        {"made": 2.0, "made_2": 0.0},
        {"made": 3.0, "made_2": 0.0},
    ]
    assert not +scores.counts


def test_a_part_that_abstains_on_the_whole_group_counts_nothing() -> None:
    scores = scorer((length, 1.0), (lambda s: None, 5.0)).score(SAMPLES)
    assert scores.totals == [1.0, 2.0, 3.0]
    assert scores.counts["abstained"] == 3


def test_a_reply_that_one_part_abstains_on_is_left_out() -> None:
    scores = scorer((length, 1.0), (lambda s: None if s.completion == "bb" else 1.0, 5.0)).score(
        SAMPLES
    )
    assert scores.totals == [6.0, None, 8.0]
    assert scores.counts["abstained"] == 1


def test_where_everything_abstains_there_is_no_reward() -> None:
    assert scorer((lambda s: None, 1.0)).score(SAMPLES).totals == [None] * 3


def broken(sample: Sample) -> float:
    if sample.completion == "bb":
        raise KeyError("no such word")
    return 1.0


@pytest.mark.parametrize(("on_error", "expected"), [("drop", None), ("zero", 0.0)])
def test_a_reward_that_raises_fails_for_its_own_reply_alone(
    on_error: OnError, expected: float | None
) -> None:
    scores = scorer((broken, 3.0), on_error=on_error).score(SAMPLES)
    assert scores.totals == [3.0, expected, 3.0]
    assert scores.counts == {"failed": 1, "abstained": 0}
    line = broken.__code__.co_firstlineno + 2
    assert scores.error == f"reward 'made': KeyError: 'no such word' (test_scoring.py:{line})"


def test_a_reward_that_raises_may_end_the_stage() -> None:
    with pytest.raises(PtlError, match="reward 'made' failed") as caught:
        scorer((broken, 1.0), on_error="stop").score(SAMPLES)
    assert "no such word" in str(caught.value.why)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", [1]])
def test_what_is_not_a_number_is_a_failure(value: object) -> None:
    scores = scorer((lambda s: value, 1.0)).score(SAMPLES)  # type: ignore[arg-type, return-value]
    assert scores.totals == [None] * 3
    assert scores.counts["failed"] == 3
    assert "not a finite number" in scores.error


def test_too_few_scores_are_nobodys() -> None:
    made = Made(length)
    made.score = lambda samples: []  # type: ignore[method-assign, assignment]
    with pytest.raises(WrongScores, match="returned 0 scores for 3 replies"):
        Scorer([(made, 1.0)]).score(SAMPLES)


def test_a_reward_that_takes_too_long_is_not_waited_for() -> None:
    release = threading.Event()

    def slow(sample: Sample) -> float:
        release.wait(10)
        return 1.0

    try:
        scores = Scorer([(Made(slow), 1.0)], "zero", timeout=0.05).score(SAMPLES)
    finally:
        release.set()
    assert scores.totals == [0.0] * 3
    assert scores.counts["timed_out"] == 3
    assert "took more than 0.05 s" in scores.error


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_a_reward_whose_own_wait_timed_out_has_failed(timeout: float | None) -> None:
    def asks(sample: Sample) -> float:
        raise TimeoutError("no answer from the grader")

    scores = Scorer([(Made(asks), 1.0)], "drop", timeout).score(SAMPLES)
    assert scores.counts == {"failed": 3}
    assert "no answer from the grader" in scores.error


def test_a_reward_within_its_time_is_scored() -> None:
    assert Scorer([(Made(length), 1.0)], timeout=10).score(SAMPLES).totals == [1.0, 2.0, 3.0]


class Locked(Made):
    """A reward whose calls must not overlap."""

    def __init__(self, score: Score) -> None:
        super().__init__(score)
        self.held = threading.Lock()

    @property
    def lock(self) -> threading.Lock:
        return self.held


def test_a_call_that_hangs_costs_no_reply_but_its_own() -> None:
    release = threading.Event()

    def score(sample: Sample) -> float:
        if sample.completion == "hang":
            release.wait(60)
        return 1.0

    made = Scorer([(Locked(score), 1.0)], timeout=0.05)
    try:
        lost = made.score([Sample(prompt=(), completion="hang")])
        later = [made.score([sample]) for sample in SAMPLES]
    finally:
        release.set()
    assert lost.counts["timed_out"] == 1
    assert [scores.totals for scores in later] == [[1.0]] * 3
    assert not any(scores.counts["timed_out"] for scores in later)


def test_waiting_for_the_turn_is_no_part_of_the_time() -> None:
    reward = Locked(length)
    made = Scorer([(reward, 1.0)], timeout=0.05)
    reward.held.acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(made.score, SAMPLES)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.15)  # three times what the call itself may take
        reward.held.release()
        assert waiting.result(timeout=60).totals == [1.0, 2.0, 3.0]


def test_the_sample_reaches_the_reward_whole() -> None:
    sample = Sample(prompt=(), completion="x", metadata={"level": 3})
    assert scorer((lambda s: float(s.metadata["level"]), 1.0)).score([sample]).totals == [3.0]
