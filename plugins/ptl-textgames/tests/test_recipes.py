"""The recipes of this package, run."""

from pathlib import Path

import pytest

import posttrain_recipes as ptl

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_runs(path: Path, tmp_path: Path) -> None:
    result = ptl.run(path, preset="tiny", home=tmp_path)
    assert result.status == "finished"
    assert result["play"].after["chance"]["legal"].count == 4
