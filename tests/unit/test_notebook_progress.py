"""What a cell shows while the run goes on in it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from posttrain_recipes import progress
from posttrain_recipes.progress.lines import Lines
from posttrain_recipes.progress.notebook import EVERY_S, SHOWN_WARNINGS, Notebook, is_notebook
from posttrain_recipes.records import Estimate, EvalResult
from posttrain_recipes.running.events import SamplingProgress
from posttrain_recipes.store import StageRecord

PLAN = cast(
    Any, SimpleNamespace(model="ptl/nano", engine=SimpleNamespace(name="local"), preset="tiny")
)
RUN = cast(Any, SimpleNamespace(id="demo-1", status="running"))
STAGE = cast(
    Any,
    SimpleNamespace(
        name="sft<b>", start="base", method=SimpleNamespace(name="sft"), index=1, evals=()
    ),
)


class Cell:
    """The output of a cell, and a clock that moves when it is told to."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.now = 0.0
        self.reporter = Notebook(self.shown.append, lambda: self.now)

    @property
    def last(self) -> str:
        return self.shown[-1]


@pytest.fixture
def cell() -> Cell:
    made = Cell()
    made.reporter.run_started(PLAN, RUN, False)
    made.reporter.stage_started(STAGE, StageRecord("sft<b>", "", "sft"), 1)
    return made


def test_a_stage_moves_in_its_line_and_ends_with_its_results(cell: Cell) -> None:
    cell.reporter.training(STAGE, 0, 20)
    for step in range(1, 21):
        cell.now += EVERY_S
        cell.reporter.step(step, 20, {"train/loss": 2.0 / step, "train/tokens_per_second": 50.0})
    assert '<progress value="20" max="20">' in cell.last
    assert "loss 0.1000" in cell.last
    named = SimpleNamespace(name="exact_match")
    planned = cast(Any, SimpleNamespace(name="held_out", eval=named, fingerprint="e"))
    for when, value in (("before", 0.25), ("after", 0.75)):
        found = EvalResult({"exact_match": Estimate(value, value - 0.1, value + 0.1, 64)})
        cell.reporter.evaluated(STAGE, planned, when, found)
    cell.reporter.stage_finished(STAGE, cast(Any, SimpleNamespace(seconds=12.0)))
    assert "held_out 25.0% ±10.0 → 75.0% ±10.0. done in 12 s" in cell.last
    assert "sft&lt;b&gt;" in cell.last
    assert "sft<b>" not in cell.last


def test_the_browser_is_not_told_more_often_than_it_can_show(cell: Cell) -> None:
    cell.reporter.training(STAGE, 0, 100)
    before = len(cell.shown)
    for step in range(1, 101):
        cell.reporter.step(step, 100, {"train/loss": 1.0})
    assert len(cell.shown) == before
    cell.reporter.close()
    assert '<progress value="100" max="100">' in cell.last


def test_what_is_under_way_is_told_and_gone_at_the_end(cell: Cell) -> None:
    cell.now += EVERY_S
    cell.reporter.sampling(SamplingProgress("evaluating", 8, 64, "replies", 64, 8, 80, 160, 2.0))
    assert "evaluating: 8 of 64 replies" in cell.last
    cell.reporter.close()
    assert "evaluating" not in cell.last


def test_warnings_stand_below_without_secrets_and_their_number_is_bounded(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-abcdefghijklmnopqrstuvwxyz")
    for number in range(SHOWN_WARNINGS + 3):
        cell.reporter.warning(f"number {number}: tml-abcdefghijklmnopqrstuvwxyz")
    cell.reporter.close()
    assert "warning: number 0" in cell.last
    assert "abcdefghijklmnop" not in cell.last
    assert "and 3 more" in cell.last


def test_no_note_takes_the_place_of_a_warning(cell: Cell) -> None:
    for number in range(SHOWN_WARNINGS):
        cell.reporter.note(f"note {number}")
    cell.reporter.warning("look here")
    cell.reporter.close()
    assert "warning: look here" in cell.last
    assert "and 1 more" in cell.last


def test_who_tells_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_notebook()
    with progress.told(None) as nobody:  # the output of a test is no terminal
        assert nobody is None
    with progress.told(False) as nobody:
        assert nobody is None
    with progress.told(True) as lines:
        assert type(lines) is Lines
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(
        sys.modules, "IPython", cast(Any, SimpleNamespace(get_ipython=lambda: shell))
    )
    assert is_notebook()
    monkeypatch.setattr("posttrain_recipes.progress.notebook._displayed", lambda: lambda html: None)
    with progress.told(None) as cell:
        assert isinstance(cell, Notebook)
