"""Everything that is wrong with a data file, line by line, in memory that hardly grows.

What is kept for each record is the 8-byte hash and the 4-byte line number that find duplicates;
lengths are counted by value, and faults are kept up to a limit and then only counted.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain_recipes.conversion import REPLY, conversations
from posttrain_recipes.datasets.faults import RowError
from posttrain_recipes.datasets.formats import Format, RowParser, column_problems
from posttrain_recipes.datasets.jsonl import missing_file
from posttrain_recipes.datasets.reading import FileFormat, file_format, read_rows
from posttrain_recipes.errors import Fault, Location, UsageError, display_path
from posttrain_recipes.records import (
    Labelled,
    Message,
    Messages,
    Prompt,
    Record,
)

MAX_CHARACTERS = 200_000
"""Longer records are a fault where tokens are not counted: some 50,000 tokens, which few models
are trained on and few people mean."""
KEPT_FAULTS = 1000
"""Faults that a report keeps; the rest are only counted."""

TokenCounter = Callable[[Messages], int]


@dataclass
class Lengths:
    """How long the records of a file are."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, length: int) -> None:
        """Count one record."""
        self.counts[length] += 1

    def quantile(self, share: float) -> int:
        """The length that `share` of the records do not exceed; 0 where there are none."""
        wanted = share * self.counts.total()
        passed = 0
        length = 0
        for length in sorted(self.counts):
            passed += self.counts[length]
            if passed >= wanted:
                break
        return length

    @property
    def mean(self) -> float:
        """The mean length; 0 where there are none."""
        total = self.counts.total()
        return sum(n * count for n, count in self.counts.items()) / total if total else 0.0

    def as_dict(self) -> dict[str, float]:
        """min, mean, median, 95th percentile, max."""
        return {
            "min": min(self.counts, default=0),
            "mean": round(self.mean, 1),
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "max": max(self.counts, default=0),
        }


@dataclass
class Report:
    """What was found in one file."""

    path: str
    form: Format | None = None
    """The form of its rows; None where no row was recognised."""
    records: int = 0
    """Rows that can be used, duplicates and over-long ones among them."""
    bad_lines: int = 0
    """Lines with a fault."""
    faults: list[Fault] = field(default_factory=list)
    """The first `KEPT_FAULTS` faults, in the order of the file."""
    fault_count: int = 0
    """How many faults there are in all."""
    unused: dict[str, int] = field(default_factory=dict)
    """Fields that nothing is made of -> the rows that have them."""
    characters: Lengths = field(default_factory=Lengths)
    tokens: Lengths | None = None
    """Where tokens were counted."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.fault_count == 0

    @property
    def record_type(self) -> type[Record] | None:
        """The type of its records; None where no row was recognised."""
        return None if self.form is None else self.form.record

    def add(self, line: int, *messages: str) -> None:
        """Note what is wrong with one line; line 0 is the file as a whole."""
        self.bad_lines += line > 0
        for message in messages:
            self.fault_count += 1
            if len(self.faults) < KEPT_FAULTS:
                self.faults.append(Fault(Location(self.path, line), "", message, code="bad-row"))

    def as_dict(self) -> dict[str, Any]:
        """The report as `ptl data check --json` prints it."""
        return {
            "file": self.path,
            "ok": self.ok,
            "format": self.form.name if self.form else None,
            "record_type": self.form.record.__name__ if self.form else None,
            "records": self.records,
            "bad_lines": self.bad_lines,
            "fault_count": self.fault_count,
            "faults": [{"line": f.location.line, "message": f.message} for f in self.faults],
            "unused_fields": self.unused,
            "characters": self.characters.as_dict(),
            "tokens": self.tokens.as_dict() if self.tokens else None,
        }


def check_file(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    form: FileFormat | None = None,
    max_tokens: int | None = None,
    count_tokens: TokenCounter | None = None,
    name: str | None = None,
) -> Report:
    """Read all of `path` and report every line that cannot be used or should be looked at.

    Args:
        columns: our field name -> the file's.
        form: how the file is written; None: as its suffix says.
        max_tokens: longer records are a fault.
        count_tokens: the length of a conversation in tokens; without it, records are measured in
            characters.
        name: what the file is called in what is told; None: its path.

    Raises:
        UsageError: `max_tokens` without `count_tokens`, or `columns` that name no known field.
    """
    if max_tokens is not None and count_tokens is None:
        raise UsageError(
            "a limit in tokens needs a tokenizer", hint="name the model whose tokenizer counts"
        )
    if problems := column_problems(columns or {}):
        raise UsageError(f"columns: {problems[0]}", code="wrong-value")
    report = Report(name or display_path(path), tokens=Lengths() if count_tokens else None)
    if missing := missing_file(path, str(path)):
        report.add(0, missing)
        return report
    text_only = (form or file_format(path)) in ("csv", "tsv")
    parser = RowParser(report.path, columns or {}, text_only=text_only)
    seen = _Seen()
    for line, row in read_rows(path, form):
        try:
            if isinstance(row, RowError):
                raise row
            record = parser.parse(row, line)
        except RowError as error:
            report.add(line, *error.messages)
            continue
        report.records += 1
        faults = _length_faults(record, report, max_tokens, count_tokens)
        first = seen.line_of(_hash(record), line)
        if first is not None:
            faults.append(f"repeats line {first}; remove one of them")
        if faults:
            report.add(line, *faults)
    report.form, report.unused = parser.form, dict(parser.unused)
    if not report.records and report.ok:
        report.add(0, "has no records")
    return report


def _measured(record: Record) -> tuple[Messages, ...]:
    if isinstance(record, Prompt) and record.answer is not None:
        whole = str(record.metadata.get(REPLY, record.answer))
        return ((*record.messages, Message("assistant", whole)),)
    return conversations(record)


def _length_faults(
    record: Record, report: Report, max_tokens: int | None, count_tokens: TokenCounter | None
) -> list[str]:
    conversations = _measured(record)
    characters = max(
        sum(len(m.content) + len(m.reasoning) for m in messages) for messages in conversations
    )
    report.characters.add(characters)
    if count_tokens is None or report.tokens is None:
        if characters > MAX_CHARACTERS:
            return [
                f"is {characters:,} characters long, over {MAX_CHARACTERS:,}; shorten it, or count "
                "its tokens with a model's tokenizer"
            ]
        return []
    try:
        tokens = max(count_tokens(messages) for messages in conversations)
    except UsageError as error:  # the chat template refuses it
        return [error.what + (f" ({error.why})" if error.why else "")]
    report.tokens.add(tokens)
    if max_tokens is not None and tokens > max_tokens:
        return [f"is {tokens:,} tokens long, over {max_tokens:,}; shorten or split it"]
    return []


def _hash(record: Record) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for messages in _measured(record):
        for message in messages:
            digest.update(f"{message.role}\x1f{message.content}\x1e".encode())
            digest.update(repr((message.reasoning, message.tool_calls, message.tools)).encode())
        digest.update(b"\x1d")
    if isinstance(record, Labelled):
        digest.update(b"1" if record.label else b"0")
    if isinstance(record, Prompt) and record.answer is None:
        # Without an answer, the other fields are what tells one task from another.
        digest.update(json.dumps(record.metadata, sort_keys=True, default=str).encode())
    return int.from_bytes(digest.digest()) or 1


class _Seen:
    """Hash -> line, by open addressing in two arrays: 12 bytes a slot, where a dict takes 100."""

    def __init__(self) -> None:
        self._hashes = array("Q", bytes(8 * 1024))
        self._lines = array("I", [0]) * 1024
        self._used = 0

    def line_of(self, value: int, line: int) -> int | None:
        """The line where `value` (not 0) was first seen; None, and it is kept, where this is it."""
        slot = self._slot(value)
        if self._hashes[slot]:
            return self._lines[slot]
        self._hashes[slot], self._lines[slot] = value, line
        self._used += 1
        if self._used * 3 > len(self._hashes) * 2:
            self._grow()
        return None

    def _slot(self, value: int) -> int:
        mask = len(self._hashes) - 1
        slot = value & mask
        while self._hashes[slot] not in (0, value):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        hashes, lines = self._hashes, self._lines
        self._hashes = array("Q", [0]) * (2 * len(hashes))
        self._lines = array(lines.typecode, [0]) * (2 * len(lines))
        for value, line in zip(hashes, lines, strict=True):
            if value:
                slot = self._slot(value)
                self._hashes[slot], self._lines[slot] = value, line
