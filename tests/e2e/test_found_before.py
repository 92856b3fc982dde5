"""What would waste a run is told as it starts, before any eval: with the real engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.errors import RecipeError, UsageError
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.running import preflight
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import Store
from tests.adapters import folder_of

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


NAMING = """\
name: naming
model: ptl/nano
lora: {rank: 4}
stages:
  - name: first
    dataset: {use: jsonl, path: DATA, limit: 16}
    method: {use: sft, batch_size: 8, max_steps: 1}
  - name: second
    init_from: START
    dataset: {use: jsonl, path: DATA, limit: 16}
    method: {use: gkd, teacher: TEACHER, batch_size: 8, max_steps: 1, max_tokens: 4}
"""


def naming(folder: Path, start: str, teacher: str) -> Path:
    path = folder / "naming.yaml"
    data = str(ROOT / "recipes" / "data" / "chat.jsonl")
    path.write_text(
        NAMING.replace("DATA", data).replace("START", start).replace("TEACHER", teacher)
    )
    return path


def test_weights_that_are_not_there_are_told_where_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = naming(
        tmp_path, "tinker://no/weights/x", '{checkpoint: "tinker://no/sampler_weights/x"}'
    )
    with pytest.raises(RecipeError) as caught:
        ptl.run(path, home=tmp_path / "home")
    assert [(fault.location.line, fault.key, fault.code) for fault in caught.value.faults] == [
        (9, "stages.second.init_from", "no-such-checkpoint"),
        (11, "stages.second.method.teacher.checkpoint", "no-such-checkpoint"),
    ]
    assert "'no' is no training run of this engine" in caught.value.faults[1].message
    found = [f for f in preflight.engine(ptl.plan(path), tmp_path / "home") if f.verdict != "ok"]
    assert [finding.check for finding in found] == ["checkpoint of second"] * 2
    assert "stages.second.init_from" in found[0].message

    path = naming(tmp_path, "base", "{model: nobody/nothing}")
    with pytest.raises(RecipeError, match=r"naming\.yaml:11:.*teacher\.model") as caught:
        ptl.run(path, home=tmp_path / "home")
    [fault] = caught.value.faults
    assert "check the model's name and the network" in fault.message
    kept = Store(tmp_path / "home").runs()
    assert [stage.status for run in kept for stage in run.stages] == ["waiting"] * 4


def test_a_run_that_is_done_does_without_what_it_named(tmp_path: Path) -> None:
    first = ptl.run(naming(tmp_path, "base", "{stage: first}"), home=tmp_path / "home")
    made = first["first"].checkpoint
    assert made is not None
    assert made.state_uri is not None
    assert made.sampler_uri is not None
    named = naming(tmp_path, made.state_uri, f'{{checkpoint: "{made.sampler_uri}"}}')
    trained = ptl.run(named, home=tmp_path / "home")["second"]
    shutil.rmtree(tmp_path / "home" / "engine" / folder_of(made.sampler_uri).parents[1])
    assert ptl.run(named, home=tmp_path / "home")["second"].checkpoint == trained.checkpoint
