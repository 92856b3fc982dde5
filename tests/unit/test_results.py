"""Runs from Python: as tables, curves and samples of pandas, and in a notebook."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import posttrain_recipes as ptl
from posttrain_recipes import typed
from posttrain_recipes.errors import RecipeError, UsageError
from posttrain_recipes.exporting.writing import Exported
from posttrain_recipes.inference.conversation import ChatClient, Talk
from posttrain_recipes.store import RunRecord, StageRecord
from tests.conftest import Project
from tests.unit.test_page import Tags, home, run

__all__ = ["home", "run"]  # the fixtures
RECIPE = """\
name: mine
model: ./model
stages: [{name: sft, dataset: {use: jsonl, path: chat.jsonl}, method: {use: sft}}]
"""


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


def test_what_a_program_makes_is_read_as_what_it_stands_for() -> None:
    class Name(StrEnum):
        SFT = "sft"

    method = {"use": Name.SFT, "learning_rate": np.float64(1e-3), "batch_size": np.int64(4)}
    with pytest.raises(RecipeError) as caught:
        ptl.validate({"name": "x", "model": "ptl/nano", "stages": [
            {"name": "sft", "dataset": {"use": "jsonl", "path": Path("no.jsonl")}, "method": method}
        ]})  # fmt: skip
    (fault,) = caught.value.faults
    # No line and column: nobody sees the text that they would be of.
    assert str(fault).startswith("the recipe  stages.sft.dataset.path\n")
    with pytest.raises(UsageError) as said:
        ptl.validate({"name": "x", "stages": [{"seed": {1, 2}}]})
    assert said.value.why == "stages[0].seed is of type set"
    with pytest.raises(UsageError) as said:
        ptl.validate({"name": "x", "stages": [{"method": typed.method.sft}]})
    assert said.value.why == "stages[0].method is the function sft: call it, as sft(...)"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ptl.run(None), "a recipe is a path, a name or a mapping, and no NoneType"),
        (lambda: ptl.plan("a.yaml", preset=3), "preset is a name, and no int"),
        (lambda: ptl.plan("a.yaml", overrides={"seed": 1}), "overrides is a list of texts"),
        (lambda: ptl.show(5), "by no int"),
        (lambda: ptl.compare(["a-1", "b-1"]), "compare\\(\\*runs\\)"),
        (lambda: ptl.export("a-1", "out", gguf="q4"), "gguf is 'q4'"),
        (lambda: ptl.export("a-1", "out", merge=True, dtype="fp8"), "dtype is 'fp8'"),
        (lambda: ptl.export("a-1", 5), "directory is 5"),
        (lambda: ptl.serve("ptl/nano", port=99999), "port is 99999"),
        (lambda: ptl.serve("ptl/nano", dtype="int4"), "dtype is 'int4'"),
        (lambda: ptl.chat("a-1", temperature=-1), "it is a number from 0 to 2"),
        (lambda: ptl.chat("a-1", max_tokens=0), "it is a whole number from 1"),
    ],
)
def test_a_wrong_argument_is_told_by_its_name(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call()


def test_things_are_shown_shortly(home: Path, run: RunRecord, project: Project) -> None:
    result = ptl.show(run.id, home=home)
    assert repr(ptl.compare(result, home=home)) == f"Comparison({run.id})"
    assert ptl.show(result, home=home) in {result}
    with pytest.raises(KeyError, match=f"{run.id} has no stage 'nope'; there is: "):
        result["nope"]
    planned = project.plan(RECIPE)
    assert repr(planned) == "Plan(mine: ./model on engine local; sft)"
    made = Exported(Path("out"), "a-1/sft", "adapter", "ptl/tiny", ["a note"], None, None, None)
    assert repr(made) == "Exported(a-1/sft: adapter on ptl/tiny in out)"
    assert str(made) == "a-1/sft: adapter on ptl/tiny in out\na note"
    talk = Talk(ChatClient("http://127.0.0.1:1", "the-key"), "m", {}, said="a-1/sft")
    assert repr(talk) == "Talk(a-1/sft: 0 messages, at http://127.0.0.1:1/v1)"


def test_a_run_that_measured_nothing_does_not_say_that_it_had_no_evals(
    home: Path, run: RunRecord
) -> None:
    failed = replace(run, status="failed", stages=[StageRecord("sft", "f", "sft", {})])
    for shown in (str(ptl.Result(failed)), ptl.Result(failed)._repr_html_()):
        assert "Nothing was measured: the run is failed." in shown
        assert "±" not in shown


def test_a_report_is_written_in_the_form_of_its_name(home: Path, run: RunRecord) -> None:
    assert ptl.report(run.id, home=home) == home / "runs" / run.id / "report.html"
    page = ptl.report(run.id, home / "mine.md", home=home)
    assert page.read_text(encoding="utf-8").startswith("# ")
    with pytest.raises(UsageError, match="says no form"):
        ptl.report(run.id, home / "mine.pdf", home=home)
