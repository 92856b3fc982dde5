"""Options of imitation through the embedded engine: what a token weighs, and what answers do."""

from __future__ import annotations

from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.tracking import curves
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quick_engines")


@pytest.mark.nightly
def test_what_an_opponent_answered_is_learned_beside_the_reward(tmp_path: Path) -> None:
    ptl.run(
        ROOT / "recipes/self_play.yaml",
        preset="tiny",
        home=tmp_path,
        overrides=["stages.play.method.observation_weight=0.5"],
    )
    told = curves.read(tmp_path / "runs/self_play-1", "play")
    assert len(told["observations/nll"]) == 2
    assert all(nll > 0 for _, nll in told["observations/nll"])


@pytest.mark.nightly
def test_answers_of_tools_and_turns_that_weigh_the_same(tmp_path: Path) -> None:
    more = ["sft.method.tool_weight=0.1", "sft.method.average=turns", "rl.method.max_steps=1"]
    found = ptl.run(
        ROOT / "recipes/tool_use.yaml",
        preset="tiny",
        home=tmp_path,
        overrides=[f"stages.{one}" for one in more],
    )
    assert found.status == "finished"
