"""Exit codes by cause: one table, and what is told of it."""

from __future__ import annotations

import pytest

from posttrain_recipes import exits
from posttrain_recipes.errors import PtlError, RecipeError, UsageError
from posttrain_recipes.waiting import EngineLostError
from tests.conftest import ROOT, Ptl


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (PtlError("x"), 1),
        (PtlError("x", code="stages-failed"), 1),
        (UsageError("x"), 2),
        (RecipeError([]), 2),
        (PtlError("x", code="limit-reached"), 4),
        (PtlError("x", code="engine-unreachable"), 5),
        (EngineLostError("x"), 5),
        (EngineLostError("x", code="out-of-memory"), 5),
        (EngineLostError("x", code="bad-key"), 1),
    ],
)
def test_each_cause_has_its_code(error: PtlError, number: int) -> None:
    assert error.exit_code == number


def test_the_page_and_the_help_have_the_table(ptl: Ptl) -> None:
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    told = ptl("run", "--help").out
    for one in exits.EXITS:
        meaning = one.meaning.replace("'", "`")
        assert f"| {one.number} | `{one.status}` | {meaning} | {one.again} |" in page
        assert f"{one.number:>5}  {one.meaning}\n" in told
