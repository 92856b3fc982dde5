"""What is edited or deleted while and after a run: no result is kept under a false name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning.plans import PlannedStage
from posttrain_recipes.planning.reuse import Scope, decisions
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import StageRecord, Store
from tests.conftest import CHAT

pytestmark = pytest.mark.usefixtures("quick_engines")

RECIPE = """\
name: edited
model: ptl/nano
lora: {rank: 4}
stages:
  - name: first
    dataset: {use: jsonl, path: first.jsonl}
    method: {use: sft, batch_size: 4, max_steps: 1}
  - name: second
    dataset: {use: jsonl, path: second.jsonl}
    method: {use: sft, batch_size: 4, max_steps: 1}
"""


class Editor(Reporter):
    """Edits the second stage's data while the first one is trained."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stage_finished(self, stage: PlannedStage, record: StageRecord) -> None:
        if stage.name == "first":
            self.path.write_text(CHAT.replace("1+1?", "2+2?") * 4)


def test_edited_data_are_refused_and_a_run_without_its_checkpoint_is_not_finished(
    tmp_path: Path,
) -> None:
    recipe, home = tmp_path / "edited.yaml", tmp_path / "home"
    recipe.write_text(RECIPE)
    for name in ("first.jsonl", "second.jsonl"):
        (tmp_path / name).write_text(CHAT * 4)
    planned = ptl.plan(recipe)
    with pytest.raises(PtlError, match="second.jsonl has changed since this run was planned"):
        ptl.run(recipe, home=home, reporter=Editor(tmp_path / "second.jsonl"))
    (run,) = Store(home).runs()
    assert [stage.status for stage in run.stages] == ["finished", "failed"]

    done = ptl.run(recipe, home=home).record
    assert [stage.status for stage in done.stages] == ["reused", "finished"]
    assert done.stages[1].fingerprint != planned.stages[1].fingerprint

    assert ptl.run(recipe, home=home).record.finished == done.finished, "there is nothing to do"
    for weights in (home / "engine").glob("runs/*/weights/second*"):
        shutil.rmtree(weights)
    plan = ptl.plan(recipe)
    ahead = [d.action for _, d in decisions(plan, Scope(), Store(home).runs(), home)]
    assert ahead == ["reuse", "run"]
    again = ptl.run(recipe, home=home).record
    assert [stage.status for stage in again.stages] == ["reused", "finished"]
    saved = again.stages[1].checkpoint
    assert saved is not None
    assert plan.engine.holds(saved.state_uri or "", home / "engine")
