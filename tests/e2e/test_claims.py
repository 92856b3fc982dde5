"""A few shipped recipes still show what they claim: the others take `benchmarks/effects.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from posttrain_recipes.cli.run import run

pytestmark = pytest.mark.usefixtures("quick_engines")

ROOT = Path(__file__).resolve().parents[2]
KEPT = json.loads((ROOT / "benchmarks" / "effects.json").read_text(encoding="utf-8"))
TORCH = 0.05
"""How far another torch build or processor may come from what was found; less than any claim."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("best_of_n", marks=pytest.mark.nightly),
        pytest.param("cpo", marks=pytest.mark.nightly),
        pytest.param("grpo_arithmetic", marks=pytest.mark.nightly),
    ],
)
def test_a_recipe_shows_what_it_claims(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a bare `ptl run` trains and measures it: its bounds hold, by the values that are kept."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe = str(ROOT / "recipes" / f"{name}.yaml")
    done = CliRunner().invoke(
        run, [recipe, "--home", str(tmp_path), "--json"], standalone_mode=False
    )
    assert done.exception is None, done.output
    assert done.return_value == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["status"] == "finished"
    assert record["passed"]

    kept = KEPT[name]
    seed = kept["seeds"].index(record["seed"])
    expected = {}
    for effect in kept["effects"]:
        before, after = effect["before"][seed], effect["after"][seed]
        value = after - before if effect["subject"].endswith(" change") else after
        expected[effect["stage"], effect["subject"], effect["bound"]] = value
    found = {(g["stage"], g["subject"], g["bound"]): g["value"] for g in record["gates"]}
    assert found == pytest.approx(expected, abs=TORCH)
