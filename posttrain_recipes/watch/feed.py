"""What the page is told of a run: its record, and the lines of `watch.jsonl` as they come.

A `RunFeed` remembers how far it has told each stage, as a cursor that a page hands back when it
connects again. Stages that were reused are told from the run that trained them. Of runs older than
`watch.jsonl` the curves are told that they have, and replies of their evals as two frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain_recipes import store
from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning import costs, gates
from posttrain_recipes.reporting import report
from posttrain_recipes.store import Measured, RunRecord, StageRecord, Store
from posttrain_recipes.tracking import curves
from posttrain_recipes.watchlog import Line, WatchVersionError, clean, tail, watch_path

BLOCK = 256 << 10
"""Bytes of a stage that are told at once."""
TOLD = -1
"""The cursor of a stage that is told whole."""
FRAMES = 3
"""Prompts of an eval that stand in for a filmstrip."""
Event = tuple[str, Any]


@dataclass
class RunFeed:
    """Follows one run."""

    home: Path
    run: str
    cursor: dict[str, int] = field(default_factory=dict)
    """By stage, the byte up to which it was told."""
    _seen: tuple[Any, ...] | None = None
    _record: RunRecord | None = None

    @classmethod
    def resumed(cls, home: Path, run: str, cursor: str) -> RunFeed:
        """One that goes on from what `cursor_text` said; from the beginning where that is empty, or
        anything else."""
        try:
            told = json.loads(cursor)
            offsets = {str(stage): max(TOLD, int(offset)) for stage, offset in told.items()}
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            offsets = {}
        return cls(home, run, offsets)

    @property
    def cursor_text(self) -> str:
        """How far it is, for `resumed`."""
        return json.dumps(self.cursor)

    def poll(self) -> Iterator[Event]:
        """What there is to tell since the last call: `run`, `lines` and `refused` events."""
        kept = Store(self.home)
        path = kept.path(self.run) / "run.json"
        try:
            found = path.stat()
            # A run that is killed writes nothing: that nobody holds it is all there is.
            seen = (found.st_mtime_ns, found.st_size, kept.locked(self.run))
            if seen != self._seen:
                self._record, self._seen = kept.find(self.run), seen
                yield "run", view(self._record)
        except (OSError, PtlError) as error:
            if self._record is None:
                yield "refused", {"why": clean(str(error))}
            elif isinstance(error, FileNotFoundError) and self._seen is not None:
                self._seen = None
                yield "refused", {"why": f"{self.run} was deleted; this is what it had by then"}
        for stage in self._record.stages if self._record else ():
            yield from self._stage(stage)

    def _stage(self, stage: StageRecord) -> Iterator[Event]:
        assert self._record is not None
        begun = self.cursor.get(stage.name, 0)
        if begun == TOLD:
            return
        runs = self.home / "runs"
        folder = runs / (stage.reused_from or self.run)
        path = watch_path(folder, stage.name)
        try:
            while True:
                lines, after = tail(path, self.cursor.get(stage.name, 0), BLOCK)
                if after == self.cursor.get(stage.name, 0):
                    break
                self.cursor[stage.name] = after
                if lines:
                    yield "lines", {"stage": stage.name, "lines": lines}
        except WatchVersionError as error:
            self.cursor[stage.name] = TOLD
            yield "refused", {"stage": stage.name, "why": clean(str(error))}
            return
        if stage.done and not begun and not self.cursor.get(stage.name):
            self.cursor[stage.name] = TOLD
            yield "lines", {"stage": stage.name, "lines": clean(list(_older(folder, stage)))}


def view(record: RunRecord) -> dict[str, Any]:
    """A run for the page: what it is, its stages, what each needs, and what it cost."""
    names = {stage.fingerprint: stage.name for stage in reversed(record.stages)}
    usd = [stage.usd for stage in record.stages if stage.usd is not None]
    return clean(
        {
            "id": record.id,
            "recipe": record.recipe,
            "description": record.resolved.get("description", ""),
            "model": record.model,
            "engine": record.engine,
            "preset": record.preset,
            "status": record.status,
            "error": record.error,
            "missed": [str(gate) for gate in gates.check(record) if not gate.passed],
            "warnings": [
                f"{stage.name}: {text}" for stage in record.stages for text in stage.warnings
            ],
            "created": record.created,
            "cost": {
                "tokens": sum(stage.paid.usage.tokens for stage in record.stages),
                "seconds": record.seconds or sum(stage.seconds for stage in record.stages),
                "usd": sum(usd) if usd else None,
            },
            "stages": [
                {
                    "name": stage.name,
                    "method": stage.method,
                    "model": stage.model if stage.model != record.model else "",
                    "status": stage.status,
                    "error": stage.error,
                    "reused_from": stage.reused_from,
                    "steps": stage.total_steps,
                    "from": _named(stage.inputs.get("start"), names),
                    "needs": [n for n in _named(stage.inputs, names) if n != stage.name],
                    "took": costs.took(stage),
                    "notes": [*stage.warnings, *stage.notes],
                }
                for stage in record.stages
            ],
        }
    )  # type: ignore[no-any-return]


def _named(inputs: Any, names: Mapping[str, str]) -> list[str]:
    """The stages whose fingerprints stand in what another one depends on."""
    if isinstance(inputs, Mapping):
        inputs = list(inputs.values())
    if isinstance(inputs, list | tuple):
        return list(dict.fromkeys(n for part in inputs for n in _named(part, names)))
    return [names[inputs]] if isinstance(inputs, str) and inputs in names else []


# --- runs without the file -----------------------------------------------------------------------


def _older(run: Path, stage: StageRecord) -> Iterator[Line]:
    """What the directory of a run tells of a stage, as the lines that it would have."""
    total = stage.total_steps
    for step, metrics in curves.steps(run, stage.name).items():
        yield {"kind": "step", "step": step, "total": total, "metrics": metrics}
    for when, step, results in (("before", 0, stage.before), ("after", total, stage.after)):
        for found in results:
            yield _eval(found, when, step)
    for found in stage.during:
        yield _eval(found, f"step {found.step}", found.step or 0)
    for found in stage.after:
        frames = [_frame(run, stage, found, w, s) for w, s in (("before", 0), ("after", total))]
        if all(frames):
            yield from (frame for frame in frames if frame)
            return


def _eval(found: Measured, when: str, step: int) -> Line:
    metrics = {}
    for name, e in found.metrics.items():
        label = report.metric_label(found.name, found.eval, name)
        values = {"value": e.value, "low": e.low, "high": e.high, "count": e.count}
        metrics[label] = {**values, "share": name in report.SHARES}
    return {"kind": "eval", "when": when, "step": step, "metrics": metrics}


def _frame(run: Path, stage: StageRecord, found: Measured, when: str, step: int) -> Line | None:
    samples = store.load_samples(run, stage.name, found.name, when)[:FRAMES]
    if not samples:
        return None
    main = found.main or ""
    judged = main in report.SHARES and found.higher_is_better.get(main, True)
    replies = [
        {
            "prompt": one.prompt[-1].content if one.prompt else "",
            "answer": one.answer,
            "reply": one.completion,
            "right": one.scores[main] >= 1 if judged and main in one.scores else None,
            "cut": one.truncated,
        }
        for one in samples
    ]
    return {"kind": "film", "step": step, "source": f"the eval {found.name}", "replies": replies}
