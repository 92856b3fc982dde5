"""The recipes of this package, run; and the methods as a reviewer checks them."""

from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.testing import check_plugin

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_runs(path: Path, tmp_path: Path) -> None:
    result = ptl.run(path, preset="tiny", home=tmp_path)
    assert result.status == "finished"


def test_cartpole_reaches_the_known_levels(tmp_path: Path) -> None:
    result = ptl.run(RECIPES / "cartpole.yaml", home=tmp_path)
    chance = result["chance"].after["random_policy"]["return"]
    before = result["table"].before["q_learning"]["return"].value
    after = result["table"].after["q_learning"]["return"]
    assert chance.count == after.count == 100
    assert chance.value == pytest.approx(22, abs=3)
    assert before < 20
    assert after.low > 195
    shown = tmp_path / "runs" / result.run_id / "artifacts" / "table" / "episode.md"
    assert shown.read_text().startswith("# CartPole-v1, seed 1000000")


def test_there_are_recipes() -> None:
    assert len(list(RECIPES.glob("*.yaml"))) >= 2


@pytest.mark.parametrize("name", ["random_policy", "q_learning"])
def test_the_methods_can_be_read(name: str) -> None:
    check_plugin("method", name, work=False)
