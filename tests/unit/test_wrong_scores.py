"""Rewards that return something else than a score for each reply, or that end the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.plugin import PluginConfig, Reward, Sample
from posttrain_recipes.rewards.function import Function
from posttrain_recipes.training.rl.scoring import Scorer, WrongScores, scores_of, within
from posttrain_recipes.waiting import in_thread

SAMPLES = [Sample((), text, None) for text in ("a", "bb", "ccc", "dddd")]


class Returns(Reward):
    name = "returns"

    def __init__(self, make: Callable[[int], Any]) -> None:
        super().__init__(PluginConfig())
        self.make, self.calls = make, 0

    def score(self, samples: Sequence[Sample]) -> Any:
        self.calls += 1
        return self.make(len(samples))


WRONG: dict[str, tuple[Callable[[int], Any], str]] = {
    "one score": (lambda n: 0.5, "a float (0.5) for 4 replies"),
    "one in a list": (lambda n: [0.5], "1 scores for 4 replies"),
    "too many": (lambda n: [0.5] * (n + 1), "5 scores for 4 replies"),
    "a dict": (lambda n: dict.fromkeys(range(n), 0.5), "a dict ({0: 0.5"),
    "a set": (lambda n: {0.1, 0.2, 0.3, 0.4}, "a set ("),
    "a generator": (lambda n: (0.5 for _ in range(n)), "a generator ("),
    "a string": (lambda n: "1234", "a str ('1234')"),
    "nothing": (lambda n: None, "a NoneType (None)"),
    "a row": (lambda n: np.ones((1, n)), "of shape (1, 4)"),
    "a column": (lambda n: torch.ones(n, 1), "of shape (4, 1)"),
    "a number in a tensor": (lambda n: torch.tensor(0.5), "of shape ()"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("policy", ["drop", "zero", "stop"])
def test_what_is_no_score_for_each_ends_the_stage_and_is_told(kind: str, policy: Any) -> None:
    make, says = WRONG[kind]
    reward = Returns(make)
    with pytest.raises(WrongScores) as caught:
        Scorer([(reward, 1.0)], policy).score(SAMPLES)
    assert says in caught.value.what
    assert "return a list with a number for each reply" in (caught.value.hint or "")
    assert reward.calls == 1, "never asked again, one by one"


@pytest.mark.parametrize(
    "make",
    [
        lambda n: [0, 1, 2, 3], lambda n: (0, 1, 2, 3), lambda n: np.arange(4),
        lambda n: torch.arange(4.0),
        lambda n: [np.float32(0), True, torch.tensor(2.0), 3],
    ],
)  # fmt: skip
def test_what_is_one_score_for_each(make: Callable[[int], Any]) -> None:
    assert scores_of(Returns(make), SAMPLES) == [0.0, 1.0, 2.0, 3.0]
    assert scores_of(Returns(lambda n: [None] * n), SAMPLES) == [None] * 4


def function(folder: Path, body: str) -> Function:
    (folder / "mine.py").write_text(body)
    made = Function(Function.Config(call="mine:score"))
    made.base_dir = folder
    return made


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def score(samples):\n    return 0.5\n", "a float (0.5) for 4 replies"),
        ("def score(samples):\n    return {1: 2}\n", "a dict ({1: 2})"),
        ("def score(samples):\n    yield 1\n", "a generator"),
    ],
)
def test_a_function_of_the_users_own_too(tmp_path: Path, body: str, says: str) -> None:
    with pytest.raises(WrongScores) as caught:
        Scorer([(function(tmp_path, body), 1.0)]).score(SAMPLES)
    assert says in caught.value.what
    assert caught.value.what.startswith("'score' returned")


@pytest.mark.parametrize("seconds", [None, 30.0])
@pytest.mark.parametrize(
    ("error", "says"),
    [(SystemExit(0), "end of the process"), (KeyboardInterrupt(), "KeyboardInterrupt"),
     (GeneratorExit(), "end of the process")],
)  # fmt: skip
def test_code_that_ends_the_process_has_failed(
    error: BaseException, says: str, seconds: float | None
) -> None:
    def exits() -> None:
        raise error

    with pytest.raises(RuntimeError, match=says):
        in_thread(lambda: within(seconds, exits)).result(30)


def test_a_reward_that_exits_fails_by_the_policy_and_on_its_reply_alone(tmp_path: Path) -> None:
    body = "def score(sample):\n    return exit() if sample.completion == 'bb' else 1.0\n"
    scorer = Scorer([(function(tmp_path, body), 1.0)])
    found = in_thread(lambda: scorer.score(SAMPLES)).result(30)
    assert found.totals == [1.0, None, 1.0, 1.0]
    assert found.counts["failed"] == 1
    assert "called for the end of the process: SystemExit" in found.error
