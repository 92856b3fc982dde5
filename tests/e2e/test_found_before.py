"""What would waste a run is told as it starts, before any eval: with the real engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.errors import UsageError
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.running import preflight
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import Store

pytestmark = pytest.mark.usefixtures("quick_engines")

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """\
name: before
model: MODEL
lora: {rank: 4}
stages:
  - name: sft
    dataset: {use: jsonl, path: DATA, limit: 16}
    method: {use: sft, batch_size: 8, max_length: 64}
    eval: [{use: nll, dataset: {use: jsonl, path: DATA, limit: 4}}]
"""


class Heard(Reporter):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def warning(self, text: str) -> None:
        self.told.append(text)


def recipe(folder: Path, model: str, data: Path) -> Path:
    path = folder / "before.yaml"
    path.write_text(RECIPE.replace("MODEL", model).replace("DATA", str(data)))
    return path


def test_a_record_that_is_too_long_ends_a_run_before_its_evals(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2 " * 90}]
    data = tmp_path / "long.jsonl"
    data.write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(UsageError, match=r"long.jsonl:1: \d+ tokens are more than max_length=64"):
        ptl.run(recipe(tmp_path, "ptl/nano", data), home=tmp_path / "home")
    [kept] = Store(tmp_path / "home").runs()
    assert kept.stages[0].before == []


def test_weights_that_are_not_those_of_the_model_are_told(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(BUNDLED["ptl/nano"], folder)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    made = {
        name: 0.02 * torch.randn_like(one) if one.ndim > 1 else one for name, one in weights.items()
    }
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    path = recipe(tmp_path, "./model", ROOT / "recipes" / "data" / "chat.jsonl")

    found = {f.check: f for f in preflight.engine(ptl.plan(path), tmp_path / "home")}
    assert found["weights of ./model"].verdict == "warning"
    heard = Heard()
    ptl.run(path, home=tmp_path / "home", reporter=heard)
    [told] = [text for text in heard.told if "reads the data no better than a guess" in text]
    assert told.startswith("the base model ./model reads")
    assert "a guess has ln(1,024) = 6.93; its weights or its tokenizer are not what" in told


def test_weights_that_are_well_are_not(tmp_path: Path) -> None:
    path = recipe(tmp_path, "ptl/nano", ROOT / "recipes" / "data" / "chat.jsonl")
    plan = ptl.plan(path)
    [finding] = [
        f for f in preflight.engine(plan, tmp_path / "home") if f.check == "weights of ptl/nano"
    ]
    assert (finding.verdict, "a guess has" in finding.message) == ("ok", True)
