"""`watch.jsonl`: what a stage shows while it goes on, for `ptl watch`; see docs/watch.md.

    .ptl/runs/sft_then_dpo-1/watch/sft/watch.jsonl

One JSON object a line, behind a header that names the version. Lines are only ever appended: a step
that is trained again after a crash has a second line, and readers keep the last one. A line that a
killed process left unfinished is no JSON, and is passed over.

The file is bounded. Steps and rollouts each have a budget of bytes that is paced over the stage, so
that a long one is thinned evenly; what was left out is counted in the next line of its kind.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from posttrain_recipes.errors import PtlError, writing
from posttrain_recipes.shown import plain, redact_all

VERSION = 1
"""Raised where a reader of an older version would show something wrong."""
NAME = "watch.jsonl"
BUDGETS = {"step": 4 << 20, "rollouts": 8 << 20}
"""Bytes of a stage's lines of these kinds; all others are few, and bounded one by one."""
AHEAD = 8
"""The part of a budget, one over this, that may be used before its time."""
SHAPES: Mapping[str, Mapping[str, type]] = {
    "step": {"step": int, "metrics": dict},
    "eval": {"step": int, "when": str, "metrics": dict},
    "film": {"step": int, "replies": list},
    "rollouts": {"step": int, "rollouts": list},
}
"""What a line of a kind has at least; one without it is passed over, as half of a line is."""
LONGEST = 4000
"""Characters of one text."""
Line = dict[str, Any]


def watch_path(run: Path, stage: str) -> Path:
    """Where the file of a stage lies."""
    return run / "watch" / stage / NAME


class WatchVersionError(PtlError):
    """The file is of a version that this one cannot read."""


class WatchLog:
    """Appends to the file of one stage. What cannot be written is told once, and ends no run.

    Args:
        warn: told why nothing more is written.
        budgets: bytes by kind of line.
    """

    def __init__(
        self,
        path: Path,
        warn: Callable[[str], None],
        budgets: Mapping[str, int] = BUDGETS,
    ) -> None:
        self.path = path
        self._warn = warn
        self._budgets = budgets
        self._used = dict.fromkeys(budgets, 0)
        self._left_out = dict.fromkeys(budgets, 0)
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._failed = False

    def add(self, kind: str, part: float = 1.0, **content: Any) -> bool:
        """Append a line; whether it was, which one that is over its budget is not.

        Args:
            part: of the stage that is done, from 0 to 1.
        """
        with self._lock:
            if self._failed:
                return False
            try:
                return self._add(kind, part, content)
            except Exception as error:  # a run is worth more than what is shown of it
                self._failed = True
                said = error.what if isinstance(error, PtlError) else str(error)
                why = f": {error.why}" if isinstance(error, PtlError) and error.why else ""
                self._warn(f"'ptl watch' shows no more of this stage: {said}{why}")
                return False

    def _add(self, kind: str, part: float, content: Line) -> bool:
        if self._file is None:
            self._file = self._opened()
        left_out = self._left_out.get(kind, 0)
        more = {"left_out": left_out} if left_out else {}
        line = _dumped({"kind": kind, **more, **content})
        if (budget := self._budgets.get(kind)) is not None:
            first = budget / AHEAD
            room = first + (budget - first) * min(1.0, part)
            if self._used[kind] + len(line) > room:
                self._left_out[kind] += 1
                return False
            self._used[kind] += len(line)
            self._left_out[kind] = 0
        with writing(self.path):
            self._file.write(line)
        return True

    def _opened(self) -> IO[bytes]:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = self.path.read_bytes() if self.path.is_file() else b""
            lines = before.split(b"\n")
            for line in lines:
                kind = next((k for k in self._used if line.startswith(_begins(k))), None)
                if kind is not None:
                    self._used[kind] += len(line) + 1
            if before:
                check(parsed(lines[0]), self.path)
            file = self.path.open("ab", buffering=0)
            if lines[-1]:  # a process that was killed in the middle of a line
                file.write(b"\n")
            if not before:
                file.write(_dumped({"kind": "header", "version": VERSION}))
        return file

    def close(self) -> None:
        """Nothing more comes for now; a later `add` goes on."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
                self._used = dict.fromkeys(self._used, 0)


def _begins(kind: str) -> bytes:
    return f'{{"kind": "{kind}"'.encode()


def _dumped(line: Line) -> bytes:
    return (json.dumps(clean(line), ensure_ascii=False) + "\n").encode()


def clean(data: Any) -> Any:
    """Data as they may be shown and kept: no secrets, no characters that nobody sees, no text that
    is longer than `LONGEST`, and numbers of six digits, None for one that is not finite."""
    return _clean(redact_all(data))


def _clean(data: Any) -> Any:
    if isinstance(data, str):
        cut = len(data) - LONGEST
        return plain(data if cut <= 0 else f"{data[:LONGEST]} … ({cut:,} characters more)")
    if isinstance(data, float):
        return float(f"{data:.6g}") if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {plain(str(key)): _clean(value) for key, value in data.items()}
    return [_clean(value) for value in data] if isinstance(data, list | tuple) else data


# --- reading -------------------------------------------------------------------------------------


def parsed(line: bytes) -> Line | None:
    """A line as it was appended; None for anything else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        return None
    has = SHAPES.get(found["kind"], {})
    return found if all(isinstance(found.get(key), kind) for key, kind in has.items()) else None


def check(header: Line | None, path: Path) -> None:
    """Refuse what this version cannot read.

    Raises:
        WatchVersionError: no header, or one of a later version.
    """
    version = header.get("version") if header and header["kind"] == "header" else None
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        said = f"version {version}" if version is not None else "no version"
        raise WatchVersionError(
            f"{path.parent.name}/{path.name} has {said}, and this ptl reads version {VERSION}",
            hint="read it with the ptl that wrote it, or a later one",
        )


def tail(path: Path, offset: int = 0, most: int = 1 << 20) -> tuple[list[Line], int]:
    """The whole lines of a file from a byte on, and where the next ones begin.

    Args:
        most: bytes that are read at once; the lines of a longer file come with further calls.

    Raises:
        WatchVersionError: see `check`.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(offset if offset <= size else 0)
            offset = file.tell()
            block = file.read(most)
            if len(block) == most and b"\n" not in block:
                block += file.readline()
    except OSError:
        return [], offset
    whole, newline, _ = block.rpartition(b"\n")
    if not newline:
        return [], offset
    lines = [line for line in map(parsed, whole.split(b"\n")) if line is not None]
    if offset == 0:
        check(lines[0] if lines else None, path)
    return lines, offset + len(whole) + 1


def read(path: Path) -> list[Line]:
    """What a file says, each step and each frame once, as it was said last.

    Raises:
        WatchVersionError: see `check`.
    """
    found: dict[Any, Line] = {}
    for number, line in enumerate(_all(path)):
        again = line["kind"] in ("step", "film", "rollouts") or None
        key = (line["kind"], line.get("step")) if again else number
        found.pop(key, None)
        found[key] = line
    return list(found.values())


def _all(path: Path) -> Iterator[Line]:
    offset = 0
    while True:
        lines, after = tail(path, offset)
        yield from lines
        if after == offset:
            return
        offset = after
