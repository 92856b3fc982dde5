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
    merge = "method: {use: merge"
    path.write_text(path.read_text().replace(merge, f"dataset: *data
    {merge}"))
    with pytest.raises(RecipeError, match="takes no dataset"):
        ptl.validate(path)
