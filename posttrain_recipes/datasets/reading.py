"""Files of rows -> rows with line numbers, one at a time.

A line that cannot be read is yielded as the `RowError` that says why, and reading goes on where it
can: whoever loads raises it, whoever checks collects it. Line 0 stands for the file as a whole.
Every reader but that of a JSON array keeps one line in memory.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from posttrain_recipes.datasets.rows import Row, RowError
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
_TRAILING_COMMA = re.compile(r",\s*[}\]]")

Line = tuple[int, Row | RowError]


def file_format(path: Path) -> FileFormat | None:
    """The format that a file's name tells, `.gz` or not; None where it tells none."""
    path = path.with_suffix("") if path.suffix == ".gz" else path
    return _SUFFIXES.get(path.suffix.lower())


def read_rows(path: Path, form: FileFormat | None = None) -> Iterator[Line]:
    """Rows of `path` as `(line, row)`, and `(line, RowError)` for what cannot be read.

    Args:
        form: how the file is written; None: as its suffix says.

    Raises:
        MissingExtraError: a parquet file, and pyarrow is not installed.
    """
    form = form or file_format(path)
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
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        yield from _text_rows(cast(BinaryIO, stream), form)


def _text_rows(stream: BinaryIO, form: FileFormat) -> Iterator[Line]:
    first = stream.readline()
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield 0, RowError("is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8")
        return
    first = first.removeprefix(codecs.BOM_UTF8)
    lines = _chain(first, stream)
    if form in ("csv", "tsv"):
        yield from _csv(lines, "\t" if form == "tsv" else ",")
    elif form == "json" and first.lstrip()[:1] in (b"[", b""):
        yield from _json_array(b"".join(lines))
    else:  # a .json file with an object a line is common too
        yield from _jsonl(lines)


def _chain(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _decode(raw: bytes) -> str:
    if (nul := raw.find(b"\0")) >= 0:
        raise RowError(
            f"has a NUL byte at byte {nul + 1}; the file is damaged, or not text: remove the line"
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RowError(
            f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8, perhaps: iconv -f latin1 -t UTF-8"
        ) from None


# --- JSON ----------------------------------------------------------------------------------------


def _jsonl(lines: Iterable[bytes]) -> Iterator[Line]:
    seen = False
    for number, raw in enumerate(lines, 1):
        try:
            text = _decode(raw).strip()
            if not text:
                continue
            if not seen and text[0] == "[":
                yield number, RowError("is a JSON array; name the file .json to have it read whole")
                return
            if not seen and text == "{":
                yield number, RowError("breaks off after '{'; write each object on one line: jq -c")
                return
            seen = True
            yield number, _row(json.loads(text))
        except json.JSONDecodeError as error:
            yield number, RowError(_not_json(error))
        except (ValueError, RecursionError) as error:  # numbers too long, nesting too deep
            yield number, RowError(f"is not JSON that can be read: {error}")
        except RowError as error:
            yield number, error


def _json_array(raw: bytes) -> Iterator[Line]:
    try:
        text = _decode(raw)
    except RowError as error:
        yield 0, error
        return
    decoder = json.JSONDecoder()
    at, line = 0, 1

    def skip(characters: str) -> str:
        """Pass `characters`; return the one that follows, empty at the end."""
        nonlocal at, line
        while at < len(text) and text[at] in characters:
            line += text[at] == "\n"
            at += 1
        return text[at : at + 1]

    if skip(" \t\r\n") != "[":  # its first line is blank, and objects follow
        yield from _jsonl(raw.split(b"\n"))
        return
    at += 1
    while (following := skip(", \t\r\n")) != "]":
        if not following:
            yield line, RowError("the array is never closed; was the file cut short?")
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            yield error.lineno, RowError(_not_json(error))
            return
        except (ValueError, RecursionError) as error:
            yield line, RowError(f"is not JSON that can be read: {error}")
            return
        try:
            yield line, _row(value)
        except RowError as error:
            yield line, error
        line += text.count("\n", at, end)
        at = end


def _row(value: Any) -> Row:
    if isinstance(value, dict):
        return value
    names = {list: "a list", str: "text", type(None): "null", bool: "a boolean"}
    kind = names.get(type(value), "a number")
    raise RowError(f'is {kind}, not an object; a record reads {{"field": "value", ...}}')


def _not_json(error: json.JSONDecodeError) -> str:
    """Said in our own words: those of the json module differ between Python versions."""
    text, at = error.doc, error.pos
    comma = _TRAILING_COMMA.search(text, max(0, at - 2), at + 3)
    if comma is not None:
        return f"is not JSON: a comma before the closing bracket at {_column(text, comma.start())}"
    if error.msg.startswith("Unterminated") or at >= len(text.rstrip()):
        return f"is not JSON: it breaks off after {_column(text, len(text.rstrip()) - 1)}"
    if text[at] == "'":
        return f"is not JSON: single quotes at {_column(text, at)}; write double quotes"
    if error.msg.startswith("Extra data"):
        where = _column(text, at)
        return f"is not JSON: more follows the object at {where}; write one object a line"
    if error.msg.startswith("Invalid control"):
        return f"is not JSON: a raw control character at {_column(text, at)}; write \\n or \\t"
    return f"is not JSON: did not expect {text[at]!r} at {_column(text, at)}"


def _column(text: str, at: int) -> str:
    return f"column {at - text.rfind(chr(10), 0, at)}"


# --- CSV and parquet -----------------------------------------------------------------------------


def _csv(lines: Iterable[bytes], delimiter: str) -> Iterator[Line]:
    faults: list[RowError] = []

    def decoded() -> Iterator[str]:
        for raw in lines:
            try:
                yield _decode(raw)
            except RowError as error:
                faults.append(error)
                yield raw.replace(b"\0", b"").decode(errors="replace")

    reader = csv.reader(decoded(), delimiter=delimiter, strict=True)
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
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        reason = str(error).strip().split("\n")[0]
        yield 0, RowError(f"is not a parquet file that can be read: {reason}")
