"""The best and the worst of n replies, and training on them for as many tokens as there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.store import StageRecord
from posttrain_recipes.tracking import curves

pytestmark = pytest.mark.usefixtures("quick_engines")

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"
RECIPE = f"""\
name: budget
model: ptl/nano
lora: {{rank: 4}}
stages:
  - name: best
    dataset: {{use: jsonl, path: {DATA}/sums.jsonl, limit: 24}}
    method: {{use: best_of_n, n: 4, batch_size: 8, max_tokens: 12}}
    reward: {{use: length, unit: characters, most: 2, slack: 20}}
  - name: ways
    init_from: base
    budget: {{tokens: 500}}
    compare:
      - name: imitate
        dataset: {{use: collected, stage: best}}
        method: {{use: sft, batch_size: 4, epochs: 50}}
      - name: prefer
        dataset: {{use: collected, stage: best}}
        method: {{use: dpo, batch_size: 4, epochs: 50}}
      - name: reward
        dataset: {{use: jsonl, path: {DATA}/sums.jsonl, limit: 24}}
        method: {{use: grpo, batch_size: 2, group_size: 4, max_tokens: 12, epochs: 50}}
        reward: {{use: length, unit: characters, most: 2, slack: 20}}
"""


@pytest.mark.nightly
def test_every_branch_ends_with_the_step_that_takes_the_last_of_its_tokens(tmp_path: Path) -> None:
    recipe = tmp_path / "budget.yaml"
    recipe.write_text(RECIPE)
    done = ptl.run(recipe, home=tmp_path / "home").record
    best, *branches = done.stages
    assert best.total_steps == 3
    assert best.made["conversation"] == 24, "one of every four is kept"
    assert 0 < best.made["preference"] <= 24
    folder = tmp_path / "home" / "runs" / best.made_in
    pair = json.loads((folder / "preference.jsonl").read_text().splitlines()[0])
    assert len(pair["chosen"][0]["content"]) < len(pair["rejected"][0]["content"])
    told = json.loads((folder / "provenance.json").read_text())
    assert told["method"]["use"] == "best_of_n"
    for stage in branches:
        used = tokens(tmp_path / "home" / "runs" / done.id, stage)
        assert sum(used) >= 500 > sum(used[:-1]), stage.name
        assert stage.total_steps == len(used)
        assert stage.checkpoint
        assert stage.checkpoint.step == stage.total_steps


def tokens(run: Path, stage: StageRecord) -> list[float]:
    """What each step trained on and wrote."""
    found = curves.read(run, stage.name)
    trained = dict(found["train/tokens"])
    written = dict(found.get("rollouts/tokens", []))
    return [trained[step] + written.get(step, 0) for step in sorted(trained)]
