"""A part of the rows of a large file, which is looked at before the first step: all that is wrong
with those is told at once, before anything is spent."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import Record
from posttrain_recipes.running.findings import PreflightFinding
from posttrain_recipes.streamed import Streamed

LOOKED_AT = 20_000
"""Rows of one data set."""
LONGEST = 2_000
"""Of these, so many are those with the most bytes; the others are spread over all of them."""
_TOLD = 10


def longest(rows: Streamed[Record], count: int) -> list[int]:
    """The places of those with the most bytes, in their order."""
    return sorted(heapq.nlargest(count, range(len(rows)), key=rows.size))


def look(
    name: str, label: str, rows: Streamed[Record], skips: bool, say: Callable[[str], None]
) -> Iterator[PreflightFinding]:
    """A finding with all that is wrong with `LOOKED_AT` of the rows, where that is anything.

    Args:
        label: what the rows are of.
        skips: whether rows that cannot be used are left out.
        say: is told how many were looked at.
    """
    spread = LOOKED_AT - LONGEST
    places = {place * len(rows) // spread for place in range(spread)}
    places |= set(longest(rows, LONGEST))
    faults = []
    hint = None
    for place in sorted(places):
        try:
            rows[place]
        except UsageError as error:
            hint = error.hint
            faults.append(error.what)
    count = f"{len(places):,} of {len(rows):,} rows of {label} were looked at"
    say(f"{count} before the first step; what is wrong with others is told as it is met")
    if not faults:
        return
    shown = "\n  ".join(faults[:_TOLD]) + ("\n  ..." if len(faults) > _TOLD else "")
    if skips:
        text = f"{count}, and {len(faults):,} of these cannot be used; such rows are left out"
        yield PreflightFinding(name, "warning", f"{text}:\n  {shown}")
    else:
        text = f"{count}, and {len(faults):,} of these cannot be used"
        remedy = "mend or remove them, or leave them out with 'bad_rows: skip' of the data set"
        hint = f"{hint}; {remedy}" if hint else remedy
        yield PreflightFinding(name, "failed", f"{text}:\n  {shown}", hint)
