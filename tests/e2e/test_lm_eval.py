"""lm-eval's own program, unmodified, against the engine, where it is installed: multiple choice
over `local-completions`, as `lm_eval --tasks ... --include_path ...` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain_recipes import models
from posttrain_recipes.engine import launch

pytest.importorskip("lm_eval")

TASK = """
task: sums_mc
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: label
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_multiple_choice_is_scored(tmp_path: Path) -> None:
    """Sums that the bundled model knows, in which the first choice is the right one."""
    rows = [
        {"question": f"What is {a} + {b}?", "choices": [f" {a + b}", f" {a + b + 3}"], "label": 0}
        for a in range(1, 4)
        for b in range(4, 7)
    ]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "sums.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    tiny = models.resolve("ptl/tiny")
    with launch.start({"ptl/tiny": tiny}, tmp_path / "data", tmp_path / "log") as engine:
        asked = (
            f"model=ptl/tiny,base_url={engine.base_url}/v1/completions,tokenizer={tiny},"
            "num_concurrent=2,tokenized_requests=True"
        )
        done = subprocess.run(
            [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", asked,
             "--tasks", "sums_mc", "--include_path", str(tmp_path),
             "--output_path", str(tmp_path / "out")],
            env={**os.environ, "OPENAI_API_KEY": engine.api_key, "HF_HUB_OFFLINE": "1",
                 "HF_HOME": str(tmp_path / "hub")},
            capture_output=True, text=True, timeout=300, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (tmp_path / "out").rglob("results_*.json")
    accuracy = json.loads(found.read_text(encoding="utf-8"))["results"]["sums_mc"]["acc,none"]
    assert accuracy >= 0.75
