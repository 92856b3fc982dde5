"""Where the rows of a JSONL file begin: one pass over its bytes, and any row can be read alone."""

from __future__ import annotations

import codecs
import os
import threading
import weakref
from array import array
from pathlib import Path

from posttrain_recipes.errors import UsageError, display_path

_MARKS = (
    codecs.BOM_UTF32_LE,
    codecs.BOM_UTF32_BE,
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
)
_AHEAD = 1 << 16
"""Bytes that are read at once where rows are asked for in order."""


class LineIndex:
    """The rows of one file, by their place; blank lines are none.

    It holds 8 bytes a row, and 4 more in a file with blank lines. A file that is replaced is read
    to its end as it was; one that is edited in place is refused.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        self._lock = threading.Lock()
        self._state = file_state(os.fstat(self._file))
        starts, lines = array("Q"), array("I")
        at = number = 0
        with open(self._file, "rb", closefd=False) as stream:
            for raw in stream:
                if not number and raw.startswith(codecs.BOM_UTF8):
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                    at = len(codecs.BOM_UTF8)
                number += 1
                if raw.startswith(b"{") or not _blank(raw):
                    starts.append(at)
                    lines.append(number)
                at += len(raw)
        self._lines = lines if len(lines) < number else None
        starts.append(at)
        self._starts = starts
        self._next = starts[0]
        self._ahead = (0, b"")

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def changed(self) -> bool:
        """Whether the file that lies there now is another one than was indexed."""
        try:
            status = self.path.stat()
        except OSError:
            return True
        mine = os.fstat(self._file)
        return file_state(status) != self._state or not os.path.samestat(status, mine)

    def line(self, place: int) -> int:
        """The line that a row stands on, from 1."""
        return place + 1 if self._lines is None else self._lines[place]

    def size(self, place: int) -> int:
        """Bytes of a row, with the blank lines that follow it."""
        return self._starts[place + 1] - self._starts[place]

    def read(self, place: int) -> bytes:
        """The line of a row.

        Raises:
            UsageError: the file was edited since it was indexed.
        """
        begin, end = self._starts[place], self._starts[place + 1]
        at, block = self._ahead
        if at <= begin and end <= at + len(block):
            raw = block[begin - at : end - at]
        else:
            raw = self._read(begin, end - begin)
        self._next = end
        # What else is told of is another name or other rights: the rows are as they were.
        if file_state(os.fstat(self._file))[:2] != self._state[:2]:
            raise UsageError(
                f"{display_path(self.path)} was edited while it was read",
                hint="run it again; a run keeps to what the file held as it began",
                code="changed",
            )
        return raw if self._lines is None else raw.partition(b"\n")[0]

    def _read(self, begin: int, size: int) -> bytes:
        """So many bytes; where they follow those of the last row, what comes next is kept."""
        in_order = begin == self._next
        with self._lock:  # stages may read side by side
            os.lseek(self._file, begin, os.SEEK_SET)
            block = os.read(self._file, max(size, _AHEAD) if in_order else size)
        if in_order:
            self._ahead = begin, block
        return block[:size]


def file_state(status: os.stat_result) -> tuple[int, ...]:
    """What tells that a file was not edited since: its size, and when what it holds and what is
    known of it changed."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def indexable(path: Path) -> bool:
    """Whether a file is JSON lines as far as its beginning tells: an object on the first line."""
    with path.open("rb") as stream:
        first = stream.readline()
        if first.startswith(_MARKS):
            return False
        first = first.removeprefix(codecs.BOM_UTF8)
        while first and _blank(first):
            first = stream.readline()
    text = first.strip()
    return text.startswith(b"{") and text != b"{"


def _blank(raw: bytes) -> bool:
    raw = raw.strip()
    try:
        return not raw or not raw.decode().strip()
    except UnicodeDecodeError:
        return False
