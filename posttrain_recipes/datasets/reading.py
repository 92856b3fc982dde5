"""Files of rows -> rows with line numbers, one at a time.

A line that cannot be read is yielded as the `RowError` that says why, and reading goes on where it
can: whoever loads raises it, whoever checks collects it. Line 0 stands for the file as a whole.
Every reader but that of a JSON array, or of one JSON object, keeps one line in memory.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, cast

from posttrain_recipes.datasets.faults import FileError, RowError
from posttrain_recipes.datasets.json_rows import Line, decoded, json_lines, json_whole
from posttrain_recipes.datasets.misnamed import compressed, misnamed
from posttrain_recipes.datasets.numbers import plain
from posttrain_recipes.errors import MissingExtraError

FileFormat = Literal["jsonl", "json", "csv", "tsv", "parquet"]
"""How rows are written in a file."""

_SUFFIXES: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_BATCH = 1024
"""Rows of a parquet file that are in memory at once."""


def file_format(path: Path) -> FileFormat | None:
    """The format that a file's name tells, `.gz` or not; None where it tells none."""
    path = path.with_suffix("") if compressed(path) else path
    return _SUFFIXES.get(path.suffix.lower())


def read_rows(path: Path, form: FileFormat | None = None) -> Iterator[Line]:
    """Rows of `path` as `(line, row)`, and `(line, RowError)` for what cannot be read.

    Args:
        form: how the file is written; None: as its suffix says.

    Raises:
        MissingExtraError: a parquet file, and pyarrow is not installed.
    """
    form = form or file_format(path)
    try:
        if said := misnamed(path, form):
            yield 0, FileError(said)
            return
    except OSError as error:
        yield 0, FileError(f"cannot be read: {error.strerror or error}")
        return
    if form is None:
        suffixes = ", ".join(_SUFFIXES)
        yield (
            0,
            RowError(f"cannot tell its format by its name; name it {suffixes}, or give its format"),
        )
        return
    line = 0
    try:
        lines = _parquet(path) if form == "parquet" else _text_file(path, form)
        for line, row in lines:
            yield line, row
    except (EOFError, gzip.BadGzipFile, zlib.error):
        yield line + 1, RowError("the file breaks off or is damaged from here on; copy it again")
    except OSError as error:
        yield 0, RowError(f"cannot be read: {error.strerror or error}")


def _text_file(path: Path, form: FileFormat) -> Iterator[Line]:
    with gzip.open(path) if compressed(path) else path.open("rb") as stream:
        yield from _text_rows(cast(BinaryIO, stream), form)


def _text_rows(stream: BinaryIO, form: FileFormat) -> Iterator[Line]:
    first = stream.readline()
    if first.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        yield 0, FileError("is UTF-32; save it as UTF-8: iconv -f UTF-32 -t UTF-8")
        return
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield 0, FileError("is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8")
        return
    first = first.removeprefix(codecs.BOM_UTF8)
    lines = _chain(first, stream)
    if form in ("csv", "tsv"):
        yield from _csv(lines, "\t" if form == "tsv" else ",")
    elif form == "json":
        yield from json_whole(lines)
    else:
        yield from json_lines(lines)


def _chain(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


# --- CSV and parquet -----------------------------------------------------------------------------


def _csv(lines: Iterable[bytes], delimiter: str) -> Iterator[Line]:
    faults: list[RowError] = []

    def texts() -> Iterator[str]:
        for raw in lines:
            try:
                yield decoded(raw)
            except RowError as error:
                faults.append(error)
                yield raw.replace(b"\0", b"").decode(errors="replace")

    _allow_long_fields()
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield line, RowError(f"is not CSV: {error}; is a quote not closed or not doubled?")
            if header is None:
                return
            continue
        if cells is None:
            return
        if faults:
            yield line, faults[0]
            faults.clear()
        elif header is None:
            if twice := _twice(cells):
                yield line, FileError(f"has the column {twice} twice; rename one of them")
                return
            header = cells
        elif not cells:
            continue
        elif len(cells) != len(header):
            remedy = "add what is missing"
            if len(cells) > len(header):
                remedy = f"quote a value that has {delimiter!r} in it"
            yield (
                line,
                RowError(f"columns: {len(cells)} here, {len(header)} in the header; {remedy}"),
            )
        else:
            yield line, dict(zip(header, cells, strict=True))
        if header is None:
            return


def _allow_long_fields() -> None:
    """The limit is one for the process, 131,072 characters; it is raised and never lowered."""
    for limit in (sys.maxsize, 2**31 - 1):  # a C long, which has 32 bits on Windows
        try:
            if csv.field_size_limit() < limit:
                csv.field_size_limit(limit)
            return
        except OverflowError:
            continue


def _twice(names: Sequence[str]) -> str | None:
    """The first name that stands twice."""
    return next((f"'{name}'" for at, name in enumerate(names) if name in names[:at]), None)


def _parquet(path: Path) -> Iterator[Line]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(
            f"{path} is a parquet file, and pyarrow is not installed here",
            hint="pip install pyarrow",
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if twice := _twice(schema.names):
                yield 0, FileError(f"has the column {twice} twice; rename one of them")
                return
            types = {name: str(schema.field(name).type) for name in schema.names}
            numbers = {
                name: re.search(r"\bfloat\b", kind) is not None and "double" not in kind
                for name, kind in types.items()
                if re.search(r"float|double|decimal", kind)
            }
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    try:
                        for name, narrow in numbers.items():
                            row[name] = plain(row[name], name, narrow)
                    except RowError as error:
                        yield number, error
                    else:
                        yield number, row
    except pyarrow.ArrowException as error:
        reason = str(error).strip().split("\n")[0]
        yield 0, RowError(f"is not a parquet file that can be read: {reason}")
