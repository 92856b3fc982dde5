"""Stages merged by a recipe: trained on from there, evaluated, exported; refused where it must."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

import posttrain_recipes as ptl
from posttrain_recipes.cli.export import export
from posttrain_recipes.errors import RecipeError
from posttrain_recipes.tracking import curves
from tests.conftest import ROOT

RECIPE = """\
name: merged
model: ptl/nano
lora: {rank: 3}
stages:
  - name: a
    dataset: &data {use: jsonl, path: DATA/chat.jsonl, limit: 16}
    method: &sft {use: sft, learning_rate: 1e-2, batch_size: 8, max_steps: 2}
  - {name: b, init_from: base, seed: 1, dataset: *data, method: *sft}
  - name: both
    init_from: base
    lora: {rank: 6}
    method: {use: merge, of: [{stage: a}, {stage: b}], weights: [1, -0.5]}
    eval: [{use: nll, dataset: {use: jsonl, path: DATA/held_out.jsonl, limit: 8}}]
  - {name: on, dataset: *data, method: *sft, eval: [nll]}
"""


def update(folder: Path) -> dict[str, np.ndarray]:
    """What an exported adapter adds to each matrix."""
    config = json.loads((folder / "adapter_config.json").read_text())
    held = load_file(folder / "adapter_model.safetensors")
    ends = (".lora_A.weight", ".lora_B.weight")
    names = {name.removesuffix(ends[0]) for name in held if name.endswith(ends[0])}
    scale = config["lora_alpha"] / config["r"]
    return {n: scale * held[n + ends[1]] @ held[n + ends[0]] for n in names}


@pytest.mark.usefixtures("quick_engines")
def test_a_merged_stage_is_a_checkpoint_as_any_other(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(RECIPE.replace("DATA", str(ROOT / "recipes" / "data")))
    found = ptl.run(path, home=tmp_path)
    both, on = found.record.stages[2:]
    assert (both.status, both.total_steps, both.records) == ("finished", 1, 0)
    told = curves.read(tmp_path / "runs/merged-1", "both")
    assert told["merge/lost"][0][1] < 1e-6, "its rank is that of both"
    # It is what the next stage starts from, and what that one measured before.
    assert on.before[0].metrics == both.after[0].metrics
    assert on.checkpoint
    assert on.checkpoint.step == 2

    for name in ("a", "b", "both"):
        args = [f"merged-1/{name}", str(tmp_path / name), "--home", str(tmp_path)]
        assert CliRunner().invoke(export, args).exit_code == 0
    a, b, whole = (update(tmp_path / name) for name in ("a", "b", "both"))
    assert whole.keys() == a.keys()
    for name, found_there in whole.items():
        np.testing.assert_allclose(found_there, a[name] - 0.5 * b[name], atol=1e-5)


def test_what_no_engine_takes_back_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(RECIPE.replace("DATA", str(ROOT / "recipes" / "data")))
    with pytest.raises(RecipeError, match="no upload") as caught:
        ptl.validate(path, overrides=["engine=tinker", "model=Qwen/Qwen3-8B"])
    assert "ptl export" in str(caught.value)
    own = "    method: {use: merge"
    path.write_text(path.read_text().replace(own, f"    dataset: *data\n{own}"))
    with pytest.raises(RecipeError, match="takes no dataset"):
        ptl.validate(path)
