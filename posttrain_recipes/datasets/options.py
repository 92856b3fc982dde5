"""What the built-in datasets have in common: rows, and options that say how to take them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import Literal

from pydantic import Field

from posttrain_recipes.datasets.faults import FileError, RowError
from posttrain_recipes.datasets.formats import RowParser
from posttrain_recipes.datasets.json_rows import Line
from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import Conversation, DatasetConfig, Record

log = logging.getLogger(__name__)
_TOLD = 10
"""Rows that are left out and told with their line; the others are only counted."""


class RowsConfig(DatasetConfig):
    """Options of datasets that are made of rows."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Fields that go by another name there, as `{question: problem, answer: solution}`."""
    system: str | None = None
    """A system prompt for records that have none of their own."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """A row that cannot be used stops the run, or is left out (and their number is logged)."""


def records(
    lines: Iterable[Line],
    parser: RowParser,
    config: RowsConfig,
    hint: str,
    wants: type[Record] | None = None,
) -> Iterator[Record]:
    """Rows as records, at most `limit` of them; `wants` is what they are handed over as.

    Raises:
        UsageError: a row that cannot be used (unless those are skipped), or no record at all.
    """
    made = skipped = 0
    told: list[str] = []
    for line, row in lines:
        try:
            if isinstance(row, RowError):
                raise row
            record = parser.parse(row, line)
        except RowError as error:
            where = f"{parser.name}:{line}" if line else parser.name
            if config.bad_rows == "skip" and line and not isinstance(error, FileError):
                skipped += 1
                if len(told) < _TOLD:
                    told.append(f"{where}  {error}")
                continue
            raise UsageError(f"{where}  {error}", hint=hint, code="bad-row") from None
        yield record
        made += 1
        if made == config.limit:
            break
    if skipped:
        log.warning(
            "%s: %d rows cannot be used and were left out:\n  %s%s",
            parser.name,
            skipped,
            "\n  ".join(told),
            "\n  ..." if skipped > _TOLD else "",
        )
    tell_unused(parser, wants)
    if not made:
        raise UsageError(f"{parser.name} has no records", hint=hint, code="no-records")


def tell_unused(parser: RowParser, wants: type[Record] | None, told: Collection[str] = ()) -> None:
    """Say which fields of the rows that were parsed nothing is made of, but for those `told`."""
    imitated = tuple(parser.metadata) if wants is Conversation else ()
    if unused := tuple(name for name in (*parser.unused, *imitated) if name not in told):
        _tell_unused(parser.name, unused)


@lru_cache
def _tell_unused(name: str, fields: tuple[str, ...]) -> None:
    """Once in a run: stages and evals read one file again and again."""
    log.warning("%s: these fields are not used: %s", name, ", ".join(fields))
