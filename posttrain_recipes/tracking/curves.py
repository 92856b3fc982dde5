"""The metrics of every step of a stage, kept beside the run so that a report needs no server.

One JSON object a line; a step that a resumed stage does again replaces what was written before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from posttrain_recipes.errors import writing

RENAMED = {"groups/flat_share": "groups/zero_variance_share"}
"""Metrics of older runs, and what they are called now."""
Series = list[tuple[int, float]]
"""`(step, value)` in the order of the steps."""


def curve_path(run: Path, stage: str) -> Path:
    """Where the metrics of a stage lie."""
    return run / "curves" / f"{stage}.jsonl"


class CurveWriter:
    """Appends a stage's metrics as they come; what is written survives the process."""

    def __init__(self, run: Path, stage: str) -> None:
        self.path = path = curve_path(run, stage)
        with writing(path):
            self._file = self._opened(path)

    def _opened(self, path: Path) -> IO[str]:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.is_file() and not path.read_bytes().endswith(b"\n")
        file = path.open("a", encoding="utf-8", buffering=1)
        if torn:
            # A process that was killed in the middle of a line.
            file.write("\n")
        return file

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of one step."""
        # JSON has no NaN; a gap in the curve says the same.
        finite = {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        with writing(self.path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        """Nothing more comes."""
        with suppress(OSError):  # what could not be written was told
            self._file.close()


def steps(run: Path, stage: str) -> dict[int, dict[str, float]]:
    """A stage's metrics of each step, in their order; empty where none were kept."""
    steps: dict[int, dict[str, float]] = {}
    try:
        text = curve_path(run, stage).read_text(encoding="utf-8")
    except OSError:
        return {}
    for line in text.splitlines():
        try:
            found = json.loads(line)
            number = int(found.pop("step"))
            steps[number] = {RENAMED.get(name, name): float(v) for name, v in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return dict(sorted(steps.items()))


def read(run: Path, stage: str) -> dict[str, Series]:
    """A stage's metrics by name; empty where none were kept."""
    curves: dict[str, Series] = {}
    for step, metrics in steps(run, stage).items():
        for name, value in metrics.items():
            curves.setdefault(name, []).append((step, value))
    return curves
