"""The time of a plan before anything was run: by a model's shape and this machine's speed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain_recipes import content
from posttrain_recipes.engine import calibrate
from posttrain_recipes.engine.model import precision
from posttrain_recipes.engines import Local
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.planning import costs, pricing
from posttrain_recipes.planning.reuse import Decision
from posttrain_recipes.plugin import PluginConfig, Usage
from posttrain_recipes.store import Estimated, Spent, StageRecord
from tests.conftest import Project, real_speed


@pytest.fixture(autouse=True)
def measured_anew() -> None:
    calibrate._measured.cache_clear()


SPEED = {"train": 0.5, "prefill": 0.25, "sample": 2.0, "products": 1.0}
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}


def config(folder: Path, **more: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**LLAMA, **more}))
    return folder


def test_the_shape_is_that_of_the_config(tmp_path: Path) -> None:
    assert calibrate.shape(config(tmp_path)) == {
        "hidden": 64, "intermediate": 128, "layers": 2, "heads": 4, "kv_heads": 4,
        "head_dim": 16, "vocab": 300,
    }  # fmt: skip
    found = calibrate.shape(config(tmp_path, num_key_value_heads=2, head_dim=32))
    assert found is not None
    assert (found["kv_heads"], found["head_dim"]) == (2, 32)
    nested = {"text_config": {**LLAMA, "hidden_size": 32}}
    found = calibrate.shape(config(tmp_path, **nested))
    assert found is not None
    assert found["hidden"] == 32


@pytest.mark.parametrize(
    "more",
    [
        {"hidden_size": None},
        {"hidden_size": "64"},
        {"num_hidden_layers": -1},
        {"vocab_size": 10**9},
        {"num_attention_heads": 0},
        {"num_experts": 8},
    ],
)
def test_what_is_no_such_model_has_no_shape(tmp_path: Path, more: dict[str, Any]) -> None:
    assert calibrate.shape(config(tmp_path, **more)) is None
    (tmp_path / "config.json").write_text("[1]")
    assert calibrate.shape(tmp_path) is None
    assert calibrate.shape(tmp_path / "nowhere") is None


def test_it_is_measured_once_for_a_shape_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked: list[Any] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(json.loads(command[-1]))
        return subprocess.CompletedProcess(command, 0, json.dumps(SPEED), "")

    monkeypatch.setattr(calibrate.subprocess, "run", run)
    for _ in range(2):  # as for the stages of a plan
        assert real_speed(config(tmp_path)) == SPEED
    assert len(asked) == 1
    assert not (tmp_path / "cache").exists(), "a plan that is only looked at makes no directory"
    content.make_cache_dir()
    calibrate._measured.cache_clear()
    asked.clear()
    for _ in range(2):
        assert real_speed(config(tmp_path)) == SPEED
    assert len(asked) == 1
    real_speed(config(tmp_path, hidden_size=128))
    assert len(asked) == 2
    monkeypatch.setattr(calibrate, "cores", lambda: 977)
    real_speed(config(tmp_path))
    assert len(asked) == 3


@pytest.mark.parametrize("said", ["", "no", "[]", '{"train": 1}'])
def test_a_machine_that_cannot_measure_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answer = subprocess.CompletedProcess([], 1, said, "")
    monkeypatch.setattr(calibrate.subprocess, "run", lambda *_, **__: answer)
    assert real_speed(config(tmp_path)) is None
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_more_of_a_model_takes_longer() -> None:
    small = {"hidden": 16, "intermediate": 32, "layers": 2, "heads": 2, "kv_heads": 1}
    small |= {"head_dim": 8, "vocab": 50}
    one, other = calibrate.measure(small), calibrate.measure({**small, "layers": 2000})
    assert all(other[name] > one[name] > 0 for name in calibrate.OVER)


def test_writing_is_measured_as_the_engine_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By packed weights, and logits in float32: reading and training are by plain ones."""
    packed: list[tuple[torch.dtype, tuple[int, ...]]] = []
    monkeypatch.setattr(precision, "packed", lambda w: packed.append((w.dtype, tuple(w.shape))))
    sizes = {"hidden": 16, "intermediate": 32, "layers": 2, "heads": 2, "kv_heads": 1}
    sizes |= {"head_dim": 8, "vocab": 50}
    calibrate.measure({**sizes, "dtype": "bfloat16"})
    if torch.cuda.is_available():
        return
    assert {dtype for dtype, shape in packed if shape[0] != 50} == {torch.bfloat16}
    assert [dtype for dtype, shape in packed if shape[0] == 50] == [torch.float32]


RECIPE = """\
name: demo
model: ptl/tiny
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft, batch_size: 2, epochs: 3}
    eval: [{use: nll}]
"""


def test_a_plan_has_a_time_before_anything_was_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def speed(folder: Path, dtype: str) -> dict[str, float]:
        asked.append(folder)
        return SPEED

    monkeypatch.setattr(calibrate, "speed", speed)
    plan = project.plan(RECIPE)
    [stage] = plan.stages
    estimator = costs.Estimator(plan, pricing.load(project.path))
    found = estimator.stage(stage, Decision("run", ""))
    training, _ = estimator._training(stage)
    assert training
    evals = found.tokens - training.usage.tokens
    tokens = 0.5 * training.usage.train + 0.25 * evals
    rest = costs.START_S + costs.STEP_S * found.steps + costs.CHECKPOINT_S + 2 * costs.EVAL_S
    assert found.seconds == pytest.approx(tokens + rest)
    assert found.calibrated
    assert costs.describe(found, False).endswith(" by this machine's speed")
    assert set(asked) == {BUNDLED["ptl/tiny"]}


def test_steps_evals_and_checkpoints_of_a_tiny_model_are_not_forgotten(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens take no time: `0 s` was told of a run of 14 s."""
    monkeypatch.setattr(calibrate, "speed", lambda *_: dict.fromkeys(SPEED, 0.0))
    text = RECIPE.replace("epochs: 3", "epochs: 30, max_steps: 30, save_every: 5")
    text = text.replace("{use: nll}", "{use: nll, every: 3}")
    plan = project.plan(text)
    [stage] = plan.stages
    found = costs.Estimator(plan, pricing.load(project.path)).stage(stage, Decision("run", ""))
    assert found.steps == 30
    saves = len({3, 6, 9, 12, 15, 18, 21, 24, 27, 5, 10, 20, 25, 30})
    rest = costs.START_S + 30 * costs.STEP_S + saves * costs.CHECKPOINT_S + 11 * costs.EVAL_S
    assert found.seconds == pytest.approx(rest)


def test_a_time_is_no_bound_and_never_nothing() -> None:
    found = Estimated(tokens=100, exact=True, at_most=True, seconds=0.2, calibrated=True)
    said = "at most 100 tokens, about 1 s by this machine's speed"
    assert costs.describe(found, False) == said
    kept = StageRecord("sft", "", "sft", estimate=found, training=Spent(8.0, train=100))
    assert costs.took(kept) == "100 tokens (at most 100 expected), 8 s (1 s expected)"


def test_a_model_that_is_not_here_has_no_time(tmp_path: Path) -> None:
    assert Local(PluginConfig()).seconds(tmp_path, Usage(train=5)) is None
