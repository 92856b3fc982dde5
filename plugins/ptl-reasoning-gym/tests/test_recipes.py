"""The recipes of this package, run; and gone on with."""

import subprocess
import sys
from pathlib import Path

import pytest

import posttrain_recipes as ptl

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_runs_and_a_second_time_everything_is_there(path: Path, tmp_path: Path) -> None:
    result = ptl.run(path, preset="tiny", home=tmp_path)
    assert result.status == "finished"
    again = ptl.run(path, preset="tiny", home=tmp_path)
    assert [stage.status for stage in again.record.stages] == ["reused"] * len(again.record.stages)


def test_a_check_of_a_recipe_imports_nothing_heavy() -> None:
    recipe = str(RECIPES / "curriculum.yaml")
    code = (
        "import sys\n"
        "from posttrain_recipes import api\n"
        f"api.validate({recipe!r})\n"
        "heavy = {'torch', 'sympy', 'numpy', 'reasoning_gym', 'tinker'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
