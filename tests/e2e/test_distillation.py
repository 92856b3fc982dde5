"""Distillation through the real SDK and engine: a crash in any stage changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import posttrain_recipes as ptl
from posttrain_recipes.errors import RecipeError
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.planning.plans import PlannedStage
from posttrain_recipes.records import Checkpoint
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import StageRecord, Store
from tests import adapters

pytestmark = pytest.mark.usefixtures("quick_engines")

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"

RECIPE = f"""\
name: pupils
model: ptl/nano
lora: {{rank: 4}}
stages:
  - name: sft
    dataset: {{use: jsonl, path: {DATA}/chat.jsonl, limit: 64}}
    method: {{use: sft, learning_rate: 2e-3, batch_size: 16, max_steps: 3}}
  - name: soft
    init_from: base
    dataset: {{use: jsonl, path: {DATA}/chat.jsonl, limit: 24}}
    method:
      use: distill_off_policy
      teacher: {{stage: sft}}
      learning_rate: 1e-3
      batch_size: 8
      epochs: 2
      max_steps: 5
      save_every: 2
  - name: on_policy
    init_from: base
    dataset: {{use: jsonl, path: {DATA}/held_out.jsonl, limit: 24}}
    method:
      use: distill_on_policy
      teacher: [{{stage: sft, weight: 2}}, {{model: ptl/tiny}}]
      learning_rate: 1e-3
      batch_size: 8
      group_size: 2
      max_tokens: 12
      max_steps: 5
      save_every: 2
      epochs: 2
  - name: mixture
    init_from: base
    dataset: {{use: jsonl, path: {DATA}/chat.jsonl, limit: 24}}
    method:
      use: gkd
      teacher: {{stage: sft}}
      learning_rate: 1e-3
      batch_size: 8
      max_tokens: 12
      max_steps: 5
      save_every: 2
      epochs: 2
  - name: prompted
    dataset: {{use: jsonl, path: {DATA}/held_out.jsonl, limit: 24}}
    method:
      use: prompt_distill
      system: Reply with the answer alone.
      learning_rate: 1e-3
      batch_size: 8
      max_tokens: 12
      max_steps: 5
      save_every: 2
      epochs: 2
  - name: sdft
    dataset: {{use: jsonl, path: {DATA}/chat.jsonl, limit: 24}}
    method:
      use: sdft
      learning_rate: 1e-3
      batch_size: 8
      max_tokens: 12
      max_steps: 5
      save_every: 2
      epochs: 2
"""


class Crash(Reporter):
    """Fails in the fourth step of stages, once the checkpoint of the second is safe."""

    def __init__(self, *stages: str) -> None:
        self.where = stages

    def stage_started(self, stage: PlannedStage, record: StageRecord, count: int) -> None:
        self.stage = stage.name

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        if self.stage in self.where and number == 4:
            raise SystemExit("crash")


def adapter(home: Path, checkpoint: Checkpoint | None) -> dict[str, torch.Tensor]:
    assert checkpoint is not None
    assert checkpoint.sampler_uri is not None
    return adapters.adapter(home / "engine", checkpoint.sampler_uri)


@pytest.mark.nightly
def test_a_crash_in_any_of_the_methods_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pupils.yaml"
    path.write_text(RECIPE)
    crashed = tmp_path / "crashed"
    for stage in ("soft", "on_policy", "mixture", "prompted", "sdft"):
        with pytest.raises(SystemExit, match="crash"):
            ptl.run(path, home=crashed, reporter=Crash(stage))
    ours = ptl.run(path, home=crashed).record
    theirs = ptl.run(path, home=tmp_path / "whole").record
    for mine, other in zip(ours.stages, theirs.stages, strict=True):
        assert mine.tokens == other.tokens, mine.name
        assert mine.total_steps == other.total_steps
        left = adapter(crashed, mine.checkpoint)
        right = adapter(tmp_path / "whole", other.checkpoint)
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            assert (tensor - right[name]).abs().max().item() < 1e-5, (mine.name, name)


def test_a_teacher_whose_checkpoint_is_of_another_tokenizer_ends_the_run(tmp_path: Path) -> None:
    copy = shutil.copytree(BUNDLED["ptl/nano"], tmp_path / "other")
    written = json.loads((copy / "tokenizer.json").read_text())
    words = written["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    (copy / "tokenizer.json").write_text(json.dumps(written))
    (tmp_path / "teacher.yaml").write_text(
        f"name: teacher\nmodel: ./other\nlora: {{rank: 4}}\nstages:\n"
        f"  - name: sft\n"
        f"    dataset: {{use: jsonl, path: {DATA}/chat.jsonl, limit: 8}}\n"
        f"    method: {{use: sft, batch_size: 8}}\n"
    )
    home = tmp_path / "home"
    made = ptl.run(tmp_path / "teacher.yaml", home=home).record.stages[0].checkpoint
    assert made is not None
    (tmp_path / "student.yaml").write_text(
        f"name: student\nmodel: ptl/nano\nlora: {{rank: 4}}\nstages:\n"
        f"  - name: sft\n"
        f"    dataset: {{use: jsonl, path: {DATA}/chat.jsonl, limit: 8}}\n"
        f"    method: {{use: sft, batch_size: 8}}\n"
        f"  - name: learn\n"
        f"    dataset: {{use: jsonl, path: {DATA}/held_out.jsonl, limit: 8}}\n"
        f"    method: {{use: distill_on_policy, teacher: {{checkpoint: '{made.sampler_uri}'}}}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        ptl.run(tmp_path / "student.yaml", home=home)
    [fault] = caught.value.faults
    assert fault.location.line == 10
    assert fault.key == "stages.learn.method.teacher"
    assert "is of './other', which has another tokenizer than 'ptl/nano' (2 of " in fault.message
    record = Store(home).runs()[-1]
    assert record.recipe == "student"
    assert [stage.status for stage in record.stages] == ["waiting", "waiting"]
