"""What is edited or deleted while and after a run: no result is kept under a false name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning.plans import Plan, PlannedStage
from posttrain_recipes.planning.reuse import Scope, decisions
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import RunRecord, StageRecord, Store
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
    assert plan.engine.lost(saved.state_uri or "", home / "engine") is None


class Heard(Reporter):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.said = ""

    def run_started(self, plan: Plan, record: RunRecord, resumed: bool) -> None:
        self.said = record.status

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
def test_weights_that_were_damaged_are_trained_again_and_the_reason_is_told(
    tmp_path: Path, kind: str
) -> None:
    recipe, home = tmp_path / "edited.yaml", tmp_path / "home"
    recipe.write_text(RECIPE)
    for name in ("first.jsonl", "second.jsonl"):
        (tmp_path / name).write_text(CHAT * 4)
    first, second = (stage.checkpoint for stage in ptl.run(recipe, home=home).record.stages)
    assert first is not None
    (folder,) = (home / "engine").glob(f"runs/*/{kind}/first*")
    adapter = folder / "adapter_model.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-5000:-1] = bytes(byte ^ 1 for byte in content[-5000:-1])
    adapter.write_bytes(content)

    ahead = [d for _, d in decisions(ptl.plan(recipe), Scope(), Store(home).runs(), home)]
    assert [d.action for d in ahead] == ["run", "reuse"]
    assert "is damaged: it does not hold the bytes that were saved" in ahead[0].why
    heard = Heard()
    again = ptl.run(recipe, home=home, reporter=heard).record
    assert [stage.status for stage in again.stages] == ["finished", "finished"]
    assert again.stages[1].checkpoint == second
    assert any("stage 'first'" in text and "is damaged" in text for text in heard.warnings)
    assert heard.said == "running"  # not "already finished", which it was
    new = again.stages[0].checkpoint
    assert new is not None
    assert new.state_uri != first.state_uri
