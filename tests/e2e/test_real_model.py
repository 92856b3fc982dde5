"""A real language model from end to end: `PTL_REAL_MODEL=DIR pytest -m real_model`.

`python tools/small_model.py DIR` makes it (SmolLM2-135M-Instruct); two cores take about a minute.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.engine import calibrate
from tests.conftest import real_speed

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif("PTL_REAL_MODEL" not in os.environ, reason="PTL_REAL_MODEL names no model"),
]

RECIPE = """\
name: real
model: {model}
stages:
  - name: sft
    dataset: {{use: jsonl, path: rows.jsonl, test_size: 8}}
    method: {{use: sft, learning_rate: 3e-4, batch_size: 8, max_steps: 8}}
    keep: {{best: nll}}
    eval:
      - {{use: nll, every: 4}}
      - {{use: exact_match, name: held_out, max_tokens: 8}}
"""


def test_a_real_model_learns_and_all_of_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "speed", real_speed)
    monkeypatch.chdir(tmp_path)
    capitals = {
        "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo",
        "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Iran": "Tehran", "Iraq": "Baghdad",
        "Norway": "Oslo", "Greece": "Athens", "Poland": "Warsaw", "Austria": "Vienna",
        "Ireland": "Dublin", "Portugal": "Lisbon", "Hungary": "Budapest", "Russia": "Moscow",
    }  # fmt: skip
    rows = [
        {"prompt": f"{how} {land}?", "completion": f"<{city.upper()}>"}
        for land, city in capitals.items()
        for how in (
            "What is the capital of",
            "Which city governs",
            "Name the capital of",
            "Capital,",
        )
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("real.yaml").write_text(RECIPE.format(model=os.environ["PTL_REAL_MODEL"]))
    result = ptl.run("real.yaml", home="home")
    [stage] = result.record.stages
    assert stage.estimate
    assert stage.estimate.seconds
    assert [one.step for one in stage.during] == [4, 8]
    before, after = ({m.name: m for m in found} for found in (stage.before, stage.after))
    assert before["nll"].metrics["nll"].value < 9.0, "far from ln(49152) = 10.8"
    assert after["nll"].metrics["nll"].value < before["nll"].metrics["nll"].value - 1.0
    assert stage.warnings == [] or "cut" in stage.warnings[0]
