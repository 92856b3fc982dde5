"""An ensemble of reward models: what it makes of its members' scores."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from posttrain_recipes.plugin import ModelRef, Sample
from posttrain_recipes.rewards.reward_model import RewardModelReward
from posttrain_recipes.training.judges import verdicts

Config = RewardModelReward.Config
THREE = [ModelRef(stage=name) for name in ("a", "b", "c")]
SCORES = {"a": [1.0, -2.0], "b": [3.0, -2.0], "c": [-1.0, -2.0]}
"""Of two replies, by member; they agree on the second one."""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model": THREE[:1]}, SCORES["a"]),
        ({"model": THREE[0]}, SCORES["a"]),
        ({"model": THREE}, [1.0, -2.0]),
        ({"model": THREE, "combine": "worst"}, [-1.0, -2.0]),
        ({"model": THREE, "combine": "uncertainty"}, [1.0 - 8 / 3, -2.0]),
        ({"model": THREE, "combine": "uncertainty", "penalty": 0.5}, [1.0 - 4 / 3, -2.0]),
    ],
)
def test_scores_of_members_become_one(
    options: dict[str, Any], expected: Sequence[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        verdicts, "score", lambda sampler, renderer, wait, conversations: SCORES[sampler]
    )
    reward = RewardModelReward(Config(**options))
    context: Any = SimpleNamespace(
        wait=None, resolve=lambda ref: SimpleNamespace(sampler=ref.stage, renderer=None)
    )
    reward.open(context)
    assert reward.score([Sample((), "x", None)] * 2) == pytest.approx(expected)


def test_the_careful_ones_never_score_more_than_the_mean() -> None:
    """Coste et al., equations 3 to 5."""
    scores = np.random.default_rng(0).normal(size=(50, 4))
    mean, worst, careful = (
        [Config(model=THREE, combine=how).combined(row.tolist()) for row in scores]
        for how in ("mean", "worst", "uncertainty")
    )
    np.testing.assert_allclose(mean, scores.mean(1))
    np.testing.assert_allclose(worst, scores.min(1))
    np.testing.assert_allclose(careful, scores.mean(1) - scores.var(1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": []}, "the list of models is empty"),
        ({"model": THREE[0], "combine": "worst"}, "combine: worst is of several models"),
        ({"model": THREE, "penalty": 2.0}, "penalty is for combine: uncertainty"),
    ],
)
def test_options_that_do_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(**options)
