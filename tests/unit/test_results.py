"""Runs from Python: as tables, curves and samples of pandas, and in a notebook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.errors import RecipeError, UsageError
from posttrain_recipes.store import RunRecord
from tests.conftest import Project
from tests.unit.test_page import Tags, home, run

__all__ = ["home", "run"]  # the fixtures


def test_the_table_is_a_frame(home: Path, run: RunRecord) -> None:
    frame = ptl.show(run.id, home=home).to_frame()
    assert len(frame) == 6
    first = frame[frame.stage == "dpo@seed=0"].iloc[0]
    assert (first["eval"], first["metric"], first["n"]) == ("held_out", "exact_match", 10)
    assert (first["before"], first["after"], first["change"]) == (0.0, 0.5, 0.5)
    assert first["after_low"] < 0.5 < first["after_high"]
    assert set(frame["verdict"]) <= {"better", "same"}
    assert "better" in set(frame["verdict"])


def test_curves_and_samples_are_frames(home: Path, run: RunRecord) -> None:
    result = ptl.show(run.id, home=home)
    loss = result.curves.query("stage == 'ipo@seed=2' and metric == 'train/loss'")
    assert loss[["step", "value"]].values.tolist() == [[1, 1.0], [2, 0.5], [3, 1 / 3]]
    after = result.samples.query("stage == 'dpo@seed=1' and when == 'after'")
    assert after["score/exact_match"].sum() == 6
    assert after["prompt"].tolist()[:2] == ["2+0?", "2+1?"]
    assert after["answer"].unique().tolist() == ["4"]


def test_a_notebook_shows_the_table_drawn_and_nothing_of_a_name_is_markup(
    home: Path, run: RunRecord
) -> None:
    result = ptl.show(run.id, home=home)
    result.record.stages[0].name = "<b onclick=x>"
    shown = result._repr_html_()
    assert shown.count("<tr>") == 7
    assert shown.count("<svg") == 6
    assert "&lt;b onclick=x&gt;" in shown
    assert "script" not in Tags(shown).found
    assert str(result).startswith("stage ")
    assert "&lt;" not in str(result)


def test_runs_are_compared_as_a_frame(home: Path, run: RunRecord) -> None:
    found = ptl.compare(run.id, home=home)
    frame = found.to_frame()
    assert {"way", "value", "against", "p"} <= set(frame.columns)
    assert set(frame["way"]) == {"dpo", "ipo"}
    assert "<td>ipo</td>" in found._repr_html_()
    assert "None" not in found._repr_html_()
    with pytest.raises(UsageError, match="nothing to compare"):
        ptl.compare(home=home)


def test_a_recipe_may_be_a_mapping(project: Project) -> None:
    recipe = {
        "name": "mine",
        "model": "./model",
        "stages": [
            {
                "name": "sft",
                "dataset": {"use": "jsonl", "path": "chat.jsonl"},
                "method": {"use": "sft", "learning_rate": 1e-3},
            }
        ],
    }
    assert (
        ptl.plan(recipe).stages[0].fingerprint
        == project.plan(json.dumps(recipe)).stages[0].fingerprint
    )
    assert ptl.validate({"extends": "mine.yaml", "name": "another"}) == []
    with pytest.raises(RecipeError) as caught:
        ptl.validate({**recipe, "modle": 1})
    assert "did you mean 'model'?" in str(caught.value)
    with pytest.raises(UsageError, match="what no recipe can"):
        ptl.validate({"name": object()})


def test_a_report_is_written_in_the_form_of_its_name(home: Path, run: RunRecord) -> None:
    assert ptl.report(run.id, home=home) == home / "runs" / run.id / "report.html"
    page = ptl.report(run.id, home / "mine.md", home=home)
    assert page.read_text(encoding="utf-8").startswith("# ")
    with pytest.raises(UsageError, match="says no form"):
        ptl.report(run.id, home / "mine.pdf", home=home)
