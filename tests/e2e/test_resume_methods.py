"""Killed in the midst of a stage, each method goes on to the result of a run that was not.

One small recipe a method, with what it holds beside the policy: a teacher, a reference, a reward's
words, a critic. The runner is killed in its third step, where the checkpoint of the second is safe.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import posttrain_recipes as ptl
from posttrain_recipes import engines
from posttrain_recipes.engine import launch
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.store import RunRecord, Store
from tests import adapters, engine_model, forks
from tests.conftest import ROOT
from tests.e2e import kills
from tests.e2e.kills import Point

pytestmark = pytest.mark.nightly

RULES = """\
def near(sample):
    return -abs(len(sample.completion) - 4) / 10

def say(sample):
    return "Be brief." if len(sample.completion) > 4 else None

def digits(sample):
    return float(sample.completion[-1:].isdigit())
"""
NEAR = "reward: {use: function, call: 'rules:near'}"
METHODS = {
    "gkd": ("use: gkd, teacher: {model: ptl/tiny}", ""),
    "gkd_teacher": ("use: gkd, teacher: {model: ptl/tiny}, others: teacher, group_size: 2", ""),
    "sdpo": (
        "use: sdpo, group_size: 3, template: '{question} {feedback}{success}'",
        "reward: {use: function, call: 'rules:near', feedback: 'rules:say'}",
    ),
    "sdpo_start": (
        "use: sdpo, group_size: 3, teacher: start, success: -0.1",
        "reward: {use: function, call: 'rules:near', feedback: 'rules:say'}",
    ),
    "spans": ("use: distill_on_policy, teacher: {model: ./bytes}, align: spans", ""),
    "online_dpo": (
        "use: online_dpo, opponent: reference, ld_alpha: 0.5, loss: ipo, group_size: 2",
        NEAR,
    ),
    "online_dpo_xpo": (
        "use: online_dpo, opponent: reference, xpo_alpha: 0.01, updates_per_batch: 2",
        NEAR,
    ),
    "importance_weights": (
        "use: grpo, group_size: 4, importance_weights: token_truncate, updates_per_batch: 2",
        NEAR,
    ),
    "entropy_bonus": ("use: grpo, group_size: 4, entropy_bonus: 0.1", NEAR),
    "top_entropy": ("use: grpo, group_size: 4, top_entropy: 0.3", NEAR),
    "remax": ("use: grpo, group_size: 1, advantage: remax", NEAR),
    "steps": (
        "use: grpo, group_size: 4",
        "reward: [{use: function, call: 'rules:near'},"
        " {use: steps, ends_with: ' ', of: {use: function, call: 'rules:digits'}}]",
    ),
    "stale": ("use: grpo, group_size: 4, max_staleness: 1, loss: ppo", NEAR),
}


@dataclass(frozen=True)
class Lab:
    """An engine that outlives runs, where its checkpoints lie, and where recipes are written."""

    folder: Path
    environment: dict[str, str]
    header: str


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("methods")
    (folder / "rules.py").write_text(RULES)
    models = {name: str(BUNDLED[name]) for name in ("ptl/nano", "ptl/tiny")}
    models["./bytes"] = str(bytes_model(folder / "bytes"))
    with (
        forks.engines(),
        pytest.MonkeyPatch.context() as patch,
        launch.start(models, folder / "served", folder / "engine.log") as engine,
    ):
        patch.setenv("LAB_KEY", engine.api_key)
        patch.setattr(engines, "_probed", kills.lacks_nothing)
        served = f"{{use: server, base_url: '{engine.base_url}', api_key: '${{env:LAB_KEY}}'}}"
        header = f"model: ptl/nano\nlora: {{rank: 4}}\nseed: 3\nengine: {served}\n"
        yield Lab(folder, {"LAB_KEY": engine.api_key}, header)


def bytes_model(folder: Path) -> Path:
    """A model whose tokens are bytes, with a chat template and a window for conversations."""
    config = json.loads((engine_model.build(folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")),
        eos_token="<|end|>",
        model_max_length=512,
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    fast.save_pretrained(folder)
    return folder


def adapter(lab: Lab, record: RunRecord) -> dict[str, torch.Tensor]:
    [stage] = record.stages
    assert stage.checkpoint
    assert stage.checkpoint.sampler_uri
    served, uri = lab.folder / "served", stage.checkpoint.sampler_uri
    place = served / adapters.folder_of(uri)
    assert json.loads((place / "checkpoint.json").read_text())["step"] == 4
    return adapters.adapter(served, uri)


@pytest.mark.parametrize("name", METHODS)
def test_killed_in_its_third_step_it_ends_in_the_same_weights(lab: Lab, name: str) -> None:
    method, reward = METHODS[name]
    recipe = lab.folder / f"{name}.yaml"
    recipe.write_text(
        f"name: {name}\n{lab.header}stages:\n  - name: learn\n"
        f"    dataset: {{use: jsonl, path: {ROOT}/recipes/data/chat.jsonl, limit: 12}}\n"
        f"    method: {{{method}, learning_rate: 5e-3, batch_size: 4, max_tokens: 8,"
        f" max_length: 120, epochs: 2, max_steps: 4, save_every: 2}}\n    {reward}\n"
    )
    if method.startswith(("use: grpo", "use: online_dpo")):
        recipe.write_text(recipe.read_text().replace(" max_length: 120,", ""))
    heard: list[str] = []
    whole, killed = lab.folder / "whole" / name, lab.folder / "killed" / name
    expected = ptl.run(recipe, home=whole, reporter=kills.hearing(heard.append)).record
    third = [moment for moment, what in enumerate(heard) if what == "step"][2]
    killed.mkdir(parents=True)
    point = Point(third, 0.0, signal.SIGKILL)
    arguments = (str(recipe), str(killed), lab.environment, point)
    process = forks.context().Process(target=kills.drive, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, (killed / "driven.log").read_text()
    [stopped] = Store(killed).runs()
    assert stopped.stages[0].resume is not None
    assert stopped.stages[0].resume.step == 2
    result = ptl.run(recipe, home=killed)
    assert result.run_id == stopped.id

    [mine], [theirs] = result.record.stages, expected.stages
    assert (mine.total_steps, mine.tokens) == (theirs.total_steps, theirs.tokens)
    ours, other = adapter(lab, result.record), adapter(lab, expected)
    assert max(tensor.abs().max().item() for n, tensor in other.items() if "lora_B" in n) > 1e-3
    for tensor_name, tensor in ours.items():
        assert (tensor - other[tensor_name]).abs().max().item() < 1e-5, tensor_name
