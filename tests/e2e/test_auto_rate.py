"""A run whose learning rate is `auto` trains with the number, keeps both, and is known by it."""

from __future__ import annotations

from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.store import Store
from posttrain_recipes.tracking import curves

pytestmark = pytest.mark.usefixtures("quick_engines")

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"
RECIPE = f"""\
name: auto
model: ptl/nano
lora: {{rank: 4}}
stages:
  - name: sft
    dataset: {{use: jsonl, path: {DATA}/chat.jsonl, limit: 16}}
    method: {{use: sft, batch_size: 8, max_steps: 1}}
"""
RATE = 0.0018
"""Of a hidden size of 96."""


@pytest.mark.nightly
def test_it_trains_with_the_number_and_keeps_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("auto.yaml").write_text(RECIPE)
    record = ptl.run("auto.yaml", home="home").record
    (stage,) = record.stages
    assert stage.numbers == {"learning_rate": RATE}
    trained = curves.read(Store(Path("home")).path(record.id), "sft")
    assert trained["train/learning_rate"][0][1] == RATE
    again = ptl.run("auto.yaml", home="home", from_stage="sft").record
    assert again.stages[0].numbers == {"learning_rate": RATE}
    named = ptl.run(
        "auto.yaml", home="home", overrides=[f"stages.sft.method.learning_rate={RATE}"]
    ).record
    assert (named.id, named.stages[0].fingerprint) == (again.id, stage.fingerprint)
    assert named.stages[0].numbers == {}
    assert named.resolved["stages"][0]["method"]["learning_rate"] == RATE
