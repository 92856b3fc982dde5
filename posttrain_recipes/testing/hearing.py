"""Checks of a tracker: it is told small runs, as a run would tell them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain_recipes.plugin import (
    CheckpointLogged,
    Estimate,
    EvalLogged,
    NoteLogged,
    RunEnded,
    RunStarted,
    SamplesLogged,
    StageEnded,
    StageStarted,
    StepMetrics,
    Tracker,
)
from posttrain_recipes.registry import Entry
from posttrain_recipes.testing import records

Make = Callable[[Entry, Mapping[str, Any]], Any]
STEPS = 6
"""Optimizer steps of a stage."""
CUT = 4
"""The step after which a run is interrupted, and told again from the first."""


class _ToldRun:
    """A tracker with a folder; it is handed one event after another, by the check's thread."""

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self.tracker, self.folder = tracker, folder

    def begin(self, *, resumed: bool = False) -> None:
        """A run begins, or goes on."""
        started = RunStarted(
            run_id="check-1",
            recipe="check",
            folder=self.folder,
            resolved_yaml="name: check\n",
            description="A run that is told for a check.",
            params={"recipe": "check", "model": "ptl/nano", "seed": 0},
            tags={"ptl.run": "check-1"},
            resumed=resumed,
        )
        self.tracker.run_started(started)

    def stage(self, name: str, index: int, *, first: int = 1, last: int = STEPS) -> None:
        """All that is told of a stage, but for its end; of one that is cut, up to there."""
        params = {"method": "sft", "learning_rate": 1e-3, "lora_rank": 8, "train_on": "last"}
        self.tracker.stage_started(StageStarted(stage=name, index=index, params=params))
        if first == 1:
            self._evaluated(name, "before", 0)
        for step in range(first, last + 1):
            values = {"train/loss": 1 / step, "reward/pass@8": step / 10}
            if step == 2:
                values["train/grad_norm"] = math.nan
            self.tracker.log_metrics(StepMetrics(stage=name, step=step, values=values))
        if first <= 3 <= last:
            self._evaluated(name, "during", 3)
            self._samples(name, "training", 3)
        text = "grad_norm is not a number"
        self.tracker.log_note(NoteLogged(stage=name, text=text, warning=True))
        self.tracker.log_note(NoteLogged(stage=name, text="the data end after 6 steps"))
        if last == STEPS:
            uri = f"tinker://check-1/weights/{name}"
            saved = CheckpointLogged(stage=name, uri=uri, sampler_uri=None, step=last)
            self.tracker.log_checkpoint(saved)
            self._evaluated(name, "after", STEPS)

    def _evaluated(self, name: str, when: Any, step: int) -> None:
        metrics = {
            "nll": Estimate(2.0, 1.5, 2.5, 16),
            "exact": Estimate(0.5, math.nan, math.nan, 1),
        }
        told = EvalLogged(stage=name, name="held_out", when=when, step=step, metrics=metrics)
        self.tracker.log_eval(told)
        self._samples(name, when, step)

    def _samples(self, name: str, when: Any, step: int) -> None:
        shown = tuple(records.samples())
        told = SamplesLogged(stage=name, name="held_out", when=when, step=step, samples=shown)
        self.tracker.log_samples(told)

    def end(self, name: str, status: Any = "finished") -> None:
        """A stage ends."""
        self.tracker.stage_ended(StageEnded(stage=name, status=status))

    def close(self, status: Any = "finished", error: str = "") -> None:
        """The run ends."""
        report = "# check-1\n" if status == "finished" else ""
        self.tracker.run_ended(RunEnded(status=status, error=error, report=report))


@contextmanager
def _told_run(tracker: Tracker) -> Any:
    with tempfile.TemporaryDirectory(prefix="ptl-check-") as folder:
        yield _ToldRun(tracker, Path(folder))


def checks(make: Make) -> tuple[tuple[str, Callable[..., Iterable[str]]], ...]:
    """What a tracker has to stand; `make` makes one of its options."""

    def hears(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
        tracker: Tracker = make(entry, options)
        yield from (f"option '{option}': {told}" for option, told in tracker.problems())
        tracker.check()
        with _told_run(tracker) as bench:
            bench.begin()
            # Side by side, as with --jobs.
            bench.stage("first", 1, last=CUT)
            bench.stage("second", 2)
            bench.stage("first", 1, first=CUT + 1)
            bench.end("first")
            bench.end("second")
            bench.close()

    def hears_again(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
        with _told_run(make(entry, options)) as bench:
            bench.begin()
            bench.stage("first", 1)
            bench.end("first")
            bench.stage("second", 2, last=CUT)
            bench.end("second", "killed")
            bench.close("killed")
            # The next try is another process: what the object held is gone.
            bench.tracker = make(entry, options)
            bench.begin(resumed=True)
            bench.stage("first", 1)
            bench.end("first")
            bench.stage("second", 2, last=CUT)
            bench.stage("second", 2, first=CUT - 1)
            bench.end("second")
            bench.close()
        return ()

    def hears_failures(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
        with _told_run(make(entry, options)) as bench:
            bench.begin()
            bench.stage("first", 1, last=1)
            bench.end("first", "failed")
            bench.close("failed", "PtlError: the engine is gone")
        with _told_run(make(entry, options)) as bench:
            bench.begin()  # and ends before a stage was begun
            bench.close("killed")
        return ()

    return (
        ("it hears a run from its start to its end", hears),
        ("it hears what it was told before, and goes on", hears_again),
        ("it hears that a run failed", hears_failures),
    )
