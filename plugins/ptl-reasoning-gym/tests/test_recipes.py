"""The recipes of this package, run; and gone on with."""

import subprocess
import sys
from pathlib import Path

import pytest

import posttrain_recipes as ptl

RECIPES = Path(__file__).parents[1] / "recipes"


def test_the_form_then_rl(tmp_path: Path) -> None:
    result = ptl.run(RECIPES / "form_then_rl.yaml", preset="tiny", home=tmp_path)
    assert result.status == "finished"
    assert result["rl"].after["held_out"]["answered"].count == 8


@pytest.mark.nightly
def test_the_curriculum(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run_curriculum(tmp_path)
    assert result.status == "finished"
    assert "chain_sum is at level 0 (pass rates 0: 0%, 1: 0%, 2: 0%)" in caplog.text


@pytest.mark.nightly
def test_a_curriculum_that_is_gone_on_with_is_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole = run_curriculum(tmp_path / "whole")
    run_curriculum(tmp_path / "parts", until="rates-2")
    parts = run_curriculum(tmp_path / "parts")
    assert parts.status == whole.status == "finished"
    for name in ("rl-1", "rl-2", "all_levels"):
        assert parts[name].after == whole[name].after


def run_curriculum(home: Path, until: str | None = None) -> ptl.Result:
    return ptl.run(RECIPES / "curriculum.yaml", preset="tiny", home=home, until=until)


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
