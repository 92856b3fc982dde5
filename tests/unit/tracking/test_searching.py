"""`ptl runs --where`: MLflow's own search over what it has of the recipes' runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain_recipes.store import Store
from posttrain_recipes.tracking.tracker import MlflowTracker
from tests.conftest import Project, Ptl, flat
from tests.tracked import recipe_run, result
from tests.unit.test_page import finish
from tests.unit.tracking.test_registered import RECIPE


@pytest.fixture
def home(project: Project) -> Path:
    """`demo-1` and `demo-2`, which MLflow has, found 0.2 and 0.9; of `demo-3` it has nothing."""
    home = project.path / "home"
    for number, value in ((1, 0.2), (2, 0.9)):
        record = finish(home, project.plan(RECIPE), {"dpo": [True] * 12})
        tags = {"ptl.run": record.id, "ptl.gates": "passed" if value > 0.5 else "failed"}
        with (
            recipe_run(
                MlflowTracker(home), run_name=record.id, tags=tags, params={"seed": number}
            ) as run,
            run.stage(name="dpo", index=1) as stage,
        ):
            stage.log_eval("held_out", "before", result(0.1), 0)
            stage.log_eval("held_out", "after", result(value), 3)
        with Store(home).open(record) as directory:
            record.tracking_id = run.run_id
            directory.save()
    finish(home, project.plan(RECIPE), {"dpo": [True] * 12})
    return home


def test_runs_are_found_as_mlflow_finds_them(home: Path, ptl: Ptl) -> None:
    for where, found in (
        ("metrics.`eval/held_out/accuracy` > 0.5", ["demo-2"]),
        ("metrics.`stages/dpo/held_out/accuracy_before` < 0.5", ["demo-1", "demo-2"]),
        ("tags.`ptl.gates` = 'failed'", ["demo-1"]),
        ("status = 'FINISHED' and params.seed = '1'", ["demo-1"]),
        ("attributes.status = 'FAILED'", []),
        ("tags.`ptl.stage` = 'dpo'", []),  # a stage is no run of 'ptl runs'
    ):
        said = ptl("runs", "--where", where, "--home", str(home), "--json")
        assert said.code == 0, said.err
        assert [run["id"] for run in json.loads(said.out)] == found, where
        assert "not searched, as MLflow has nothing of them: demo-3" in said.err


def test_what_is_no_filter_is_told(home: Path, ptl: Ptl) -> None:
    said = ptl("runs", "--where", "accuracy better than 0.5", "--home", str(home))
    assert said.code == 2
    assert "no filter of MLflow's search" in said.err
    assert 'write "metrics.`eval/held_out/exact_match` > 0.8' in flat(said.err)
    none = ptl("runs", "--where", "status = 'FAILED'", "--home", str(home))
    assert none.out == "no run is like that\n"
