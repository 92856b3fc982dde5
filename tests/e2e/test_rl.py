"""Reinforcement learning over the real SDK and engine: it learns, and resumes exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient

import posttrain_recipes as ptl
from posttrain_recipes.cli import cli
from posttrain_recipes.running.events import Reporter
from tests.adapters import adapter

pytestmark = pytest.mark.usefixtures("quick_engines")

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """\
name: rl
model: ptl/tiny
lora: {rank: 8}
stages:
  - name: rl
    dataset: {use: jsonl, path: DATA/sums.jsonl, limit: 400}
    method: {use: grpo, learning_rate: 2e-3, batch_size: 16, max_tokens: 8, max_steps: 16OPTIONS}
    reward: {use: exact_match}
    eval:
      - use: exact_match
        name: held_out
        max_tokens: 8
        dataset: {use: jsonl, path: DATA/sums_held_out.jsonl, limit: 96}
"""


def write(folder: Path, options: str = "") -> Path:
    path = folder / "rl.yaml"
    text = RECIPE.replace("DATA", str(ROOT / "recipes" / "data")).replace("OPTIONS", options)
    path.write_text(text)
    return path


def weights(home: Path, uri: str) -> dict[str, torch.Tensor]:
    return adapter(home / "engine", uri)


@pytest.mark.nightly
def test_a_rule_teaches_the_form_of_the_answer(tmp_path: Path) -> None:
    stage = ptl.run(write(tmp_path), home=tmp_path / "home")["rl"]
    before, after = (found["held_out"]["exact_match"] for found in (stage.before, stage.after))
    assert before.value < 0.65
    assert after.low > before.high


class Stopper(Reporter):
    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == self.at:
            raise SystemExit("stopped by the test")


@pytest.mark.nightly
def test_a_stopped_stage_comes_to_the_same_weights(tmp_path: Path) -> None:
    """Off policy, which has the most to go on with; on policy is among the killed runs."""
    path = write(tmp_path, ", max_staleness: 1, updates_per_batch: 2, loss: cispo, save_every: 2")
    small = ["stages.rl.method.max_steps=6", "stages.rl.eval.held_out.dataset.limit=8"]
    found = []
    for home, stop in ((tmp_path / "whole", None), (tmp_path / "stopped", 4)):
        if stop is not None:
            with pytest.raises(SystemExit, match="stopped by the test"):
                ptl.run(path, home=home, overrides=small, reporter=Stopper(stop))
        result = ptl.run(path, home=home, overrides=small)
        checkpoint = result.record.stages[0].checkpoint
        assert checkpoint
        assert checkpoint.sampler_uri
        found.append(weights(home, checkpoint.sampler_uri))
    whole, stopped = found
    assert whole.keys() == stopped.keys()
    for name, tensor in whole.items():
        assert (tensor - stopped[name]).abs().max().item() < 1e-5, name


class Heard(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def test_a_stage_that_teaches_nothing_says_so_wherever_it_is_looked_at(tmp_path: Path) -> None:
    path, home = write(tmp_path), tmp_path / "home"
    set_to = {
        "name": "nothing",
        "stages.rl.reward": "{use: length, most: 100000}",
        "stages.rl.eval": "[]",
        "stages.rl.method.max_steps": "11",
        "stages.rl.method.batch_size": "2",
        "stages.rl.method.group_size": "2",
        "stages.rl.method.max_tokens": "2",
    }
    heard = Heard()
    overrides = [f"{key}={value}" for key, value in set_to.items()]
    record = ptl.run(path, home=home, overrides=overrides, reporter=heard).record
    (stage,) = record.stages
    learned = next(text for text in stage.warnings if "no group taught anything" in text)
    assert learned.startswith("by step 10 ")
    assert f"stage 'rl': {learned}" in heard.warnings
    assert any("cut at max_tokens=2" in text for text in stage.warnings)
    report = (home / "runs" / record.id / "report.html").read_text()
    assert "no group taught anything" in report
    done = CliRunner().invoke(cli, ["show", record.id, "--home", str(home)])
    assert f"warning: {learned}" in done.output
    assert stage.tracking_id
    note = (
        MlflowClient(record.tracking_uri)
        .get_run(stage.tracking_id)
        .data.tags["mlflow.note.content"]
    )
    assert f"**warning:** {learned}" in note
    again = ptl.run(path, home=home, overrides=[*overrides, "name=other"]).record
    assert again.stages[0].status == "reused"
    assert again.stages[0].warnings == stage.warnings
