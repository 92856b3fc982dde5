"""Methods of distillation through the real SDK and engine, for two steps each."""

from __future__ import annotations

from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.errors import PtlError

pytestmark = pytest.mark.usefixtures("quick_engines")

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"


def trained(tmp_path: Path, method: str, data: str = "chat", more: str = "") -> ptl.Result:
    """What a stage of two steps came to."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: pupil\nmodel: ptl/nano\nlora: {rank: 4}\nstages:\n  - name: learn\n"
        f"    dataset: {{use: jsonl, path: {DATA}/{data}.jsonl, limit: 8}}\n"
        f"    method: {{{method}, learning_rate: 1e-3, batch_size: 4, max_tokens: 12}}\n{more}"
    )
    result = ptl.run(path, home=tmp_path / "home")
    assert result.record.stages[0].total_steps == 2
    return result


@pytest.mark.parametrize("others", ["data", "teacher"])
def test_gkd_mixes_who_writes(tmp_path: Path, others: str) -> None:
    method = f"use: gkd, teacher: {{model: ptl/tiny}}, others: {others}, top_k: 8"
    curves = trained(tmp_path, method).curves
    found = {name: rows["value"].tolist() for name, rows in curves.groupby("metric")}
    assert 0 < sum(found["completions/student_share"]) < 2
    assert all(0 < value < 1 for value in found["train/loss"])


def test_gkd_says_that_prompts_have_no_replies(tmp_path: Path) -> None:
    with pytest.raises(PtlError, match="a prompt without a reply to learn from"):
        trained(tmp_path, "use: gkd, teacher: {model: ptl/tiny}", data="requests")
