"""What is kept of a stage that failed: what happened and why, in one line."""

from __future__ import annotations

import pytest

from posttrain_recipes.errors import PtlError
from posttrain_recipes.running.ending import first_line


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (PtlError("the engine could not do it", why="name 'a,b' cannot be used\nmore", hint="x"),
         "the engine could not do it: name 'a,b' cannot be used"),
        (PtlError("the engine is gone"), "the engine is gone"),
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
    ],
)  # fmt: skip
def test_a_line_tells_what_and_why(error: Exception, kept: str) -> None:
    assert first_line(error) == kept
