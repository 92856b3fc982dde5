"""Events of a run as lines of JSON, for programs: `ptl run --events FILE|-`. See `event_schema`."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.planning.plans import Plan, PlannedEval, PlannedStage
from posttrain_recipes.plugin import Resume
from posttrain_recipes.records import EvalResult
from posttrain_recipes.reporting import report
from posttrain_recipes.running import outcomes
from posttrain_recipes.running.events import Reporter, SamplingProgress, Stall
from posttrain_recipes.running.outcomes import RunOutcome
from posttrain_recipes.shown import redact_all
from posttrain_recipes.store import Estimated, RunRecord, StageRecord
from posttrain_recipes.waiting import worker

SAMPLING_S = 5.0
"""Between two events of `sampling`."""


class EventLine:
    """Where lines are appended. What cannot be written is lost, told once, and ends nothing.

    Args:
        descriptor: of the file or pipe, which this one closes.
        name: what messages call it.
        tell: called the first time that a line is lost.
        torn: whether the last line there has no end: the next one begins a new one.
    """

    def __init__(
        self, descriptor: int, name: str, tell: Callable[[str], None], torn: bool = False
    ) -> None:
        self._descriptor = descriptor
        self._name = name
        self._tell = tell
        self._torn = torn
        self._closed = False
        self.lost = 0
        """Lines since the last that was written."""

    def write(self, line: str) -> bool:
        """Append a line. Whether it was written, whole."""
        data = (b"\n" if self._torn else b"") + line.encode() + b"\n"
        try:
            while data and not self._closed:
                # One call for the whole line: lines of two runs into one file do not mix.
                data = data[os.write(self._descriptor, data) :]
                self._torn = bool(data)
        except OSError as error:
            # Nobody comes back to a pipe that nobody reads; a disk may have space again.
            self._closed = isinstance(error, BrokenPipeError)
            if not self.lost:
                self._tell(
                    f"warning: events cannot be written to {self._name} ({error.strerror}); the "
                    "run goes on"
                )
        self.lost = self.lost + 1 if data else 0
        return not data

    def close(self) -> None:
        """Nothing more is written."""
        self._closed = True
        os.close(self._descriptor)


def open_events(path: Path, tell: Callable[[str], None]) -> EventLine:
    """The file of events, which is appended to, or a named pipe that somebody reads.

    Raises:
        UsageError: it cannot be written.
    """
    torn = False
    try:
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
        # Without waiting: a pipe that nobody reads is told, and not waited on.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o666)
        os.set_blocking(descriptor, True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        unread = getattr(error, "errno", None) == errno.ENXIO
        raise UsageError(
            f"events cannot be written to {display_path(path)}",
            why="it is a pipe that nobody reads" if unread else why,
            hint="name a file in a directory that is there, or '-' for standard output",
            code="not-writable",
        ) from None
    return EventLine(descriptor, display_path(path), tell, torn)


class EventLog(Reporter):
    """Writes every event as a line of JSON, without secrets. May be called on any thread."""

    def __init__(self, out: EventLine, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._lock = threading.Lock()
        self._record: RunRecord | None = None
        self._stages: dict[str, str] = {}
        """The stage of each worker."""
        self._sampled: dict[str, float] = {}

    def ended(self, outcome: RunOutcome) -> None:
        """The last event, whatever the end."""
        self._add("ended", **outcomes.told(outcome, self._record))

    def close(self) -> None:
        """Close what is written to."""
        with self._lock:
            self._out.close()

    def _add(self, event: str, **fields: Any) -> None:
        with self._lock:
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            data = {
                "v": outcomes.VERSION,
                "event": event,
                "time": now,
                "run": self._record.id if self._record else None,
                **({"lost": self._out.lost} if self._out.lost else {}),
                **fields,
            }
            # ASCII: no text of others moves a cursor, or ends the line for whoever splits it.
            self._out.write(json.dumps(redact_all(report.known(data))))

    @property
    def _stage(self) -> str:
        return self._stages.get(worker(), worker())

    # --- events ----------------------------------------------------------------------------------

    def run_started(self, plan: Plan, record: RunRecord, resumed: bool) -> None:
        self._record = record
        self._add(
            "run_started",
            recipe=record.recipe,
            model=record.model,
            engine=record.engine,
            preset=record.preset,
            resumed=resumed,
            status=record.status,
            stages=[stage.name for stage in plan.stages],
        )

    def estimated(self, plan: Plan, ahead: Estimated, prices: str) -> None:
        found = {key: getattr(ahead, key) for key in ("steps", "tokens", "seconds", "usd")}
        self._add("estimated", **found)

    def doing(self, what: str) -> None:
        self._add("doing", text=what)

    def sampling(self, progress: SamplingProgress) -> None:
        now = self._clock()
        if now - self._sampled.setdefault(worker(), now - SAMPLING_S) >= SAMPLING_S:
            self._sampled[worker()] = now
            self._add("sampling", **asdict(progress))

    def stage_started(self, stage: PlannedStage, record: StageRecord, count: int) -> None:
        self._stages[worker()] = stage.name
        method = stage.method.name if stage.method else None
        self._add(
            "stage_started",
            stage=stage.name,
            index=stage.index,
            count=count,
            method=method,
            start=stage.start,
        )

    def stage_reused(self, stage: PlannedStage, record: StageRecord) -> None:
        self._add("stage_reused", stage=stage.name, of=record.reused_from)

    def training(self, stage: PlannedStage, done: int, total: int) -> None:
        self._stages[worker()] = stage.name
        self._add("training", stage=stage.name, step=done, total=total)

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        numbers = {name: float(value) for name, value in metrics.items()}
        self._add("step", stage=self._stage, step=number, total=total, metrics=numbers)

    def made(self, stage: PlannedStage, batch: int) -> None:
        self._add("made", stage=stage.name, batch=batch)

    def saved(self, resume: Resume) -> None:
        self._add("saved", stage=self._stage, step=resume.step)

    def evaluated(
        self, stage: PlannedStage, planned: PlannedEval, when: str, r: EvalResult
    ) -> None:
        metrics = {name: asdict(estimate) for name, estimate in r.metrics.items()}
        self._add("evaluated", stage=stage.name, eval=planned.name, when=when, metrics=metrics)

    def stage_trained(self, stage: PlannedStage, record: StageRecord) -> None:
        self._add("stage_trained", stage=stage.name)

    def stage_finished(self, stage: PlannedStage, record: StageRecord) -> None:
        left = record.checkpoint
        uri = (left.state_uri or left.sampler_uri) if left else None
        self._add("stage_finished", stage=stage.name, seconds=record.seconds, checkpoint=uri)

    def stage_failed(self, stage: PlannedStage, record: StageRecord) -> None:
        self._add("stage_failed", stage=stage.name, error=record.error)

    def stage_skipped(self, stage: PlannedStage, record: StageRecord) -> None:
        self._add("stage_skipped", stage=stage.name, status=record.status, error=record.error)

    def note(self, text: str) -> None:
        self._add("note", text=text)

    def warning(self, text: str) -> None:
        self._add("warning", text=text)

    def stalled(self, stall: Stall) -> None:
        self._add("stalled", **asdict(stall))
