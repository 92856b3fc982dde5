"""Tells of a run that stands still: no step within ten times what its steps take.

Whoever waits for an answer that never comes says nothing by itself, and a run that nobody looks at
stands so for a night. It is told once, where warnings are: on the terminal, in `--events`, and in
the record of the stage. Nothing is ended: an engine may come back.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from posttrain_recipes.planning.plans import PlannedEval, PlannedStage
from posttrain_recipes.planning.pricing import duration
from posttrain_recipes.plugin import Resume
from posttrain_recipes.records import EvalResult
from posttrain_recipes.running.events import Reporter, SamplingProgress, Stall, also
from posttrain_recipes.store import RunDirectory, StageRecord
from posttrain_recipes.waiting import worker

TIMES = 10
"""Medians of its steps without one: the run stalls."""
STEPS = 5
"""Steps that the median is taken of at least."""
KEPT = 50
"""Steps that it is taken of at most, the last ones: they may become longer."""
LEAST_S = 30.0
"""Steps of a toy take milliseconds, and a busy machine holds one up for seconds."""
LOOK_S = 1.0
"""Between two looks."""
TO_DO = (
    "look at the engine (its log, its GPU) and at what rewards and environments call; Ctrl-C or "
    "SIGTERM keeps what is trained, and the same command goes on"
)


@dataclass
class _Pace:
    """The steps of a stage that trains."""

    stage: str
    last: float
    """When its last step was done, or what is no part of one."""
    heard: str
    """What was heard last."""
    heard_at: float
    total: int = 0
    took: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    paused: bool = False
    """Something else is under way: an eval between two steps."""
    counts: bool = False
    """Whether what has passed since `last` is of a step alone; not so before the first one."""
    told: bool = False


class StallWatch(Reporter):
    """Hears the steps of every stage, and says where the next one stays away.

    Args:
        tell: called with what to tell.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        tell: Callable[[Stall], None],
        goes_on: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._goes_on = goes_on
        self._clock = clock
        self._lock = threading.Lock()
        self._paces: dict[str, _Pace] = {}
        """By worker."""

    def look(self) -> None:
        """Tell of each stage that has stood still for too long, once."""
        now = self._clock()
        with self._lock:
            late = [one for one in self._paces.values() if _late(one, now)]
            stalls = [_stall(one, now) for one in late]
            for one in late:
                one.told = True
        for stall in stalls:
            self._tell(stall)

    # --- events ----------------------------------------------------------------------------------

    def training(self, stage: PlannedStage, done: int, total: int) -> None:
        now = self._clock()
        with self._lock:
            self._paces[worker()] = _Pace(stage.name, now, f"step {done}/{total}", now, total)

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        now = self._clock()
        with self._lock:
            if (pace := self._paces.get(worker())) is None:
                return
            quiet, told = now - pace.last, pace.told
            if pace.counts and not told:
                pace.took.append(quiet)
            pace.last, pace.counts, pace.paused, pace.told = now, True, False, False
            pace.heard, pace.heard_at = f"step {number}/{total}", now
        if told:
            self._goes_on(f"stage '{pace.stage}' goes on: step {number} took {duration(quiet)}")

    def doing(self, what: str) -> None:
        self._pause(what)

    def evaluated(
        self, stage: PlannedStage, planned: PlannedEval, when: str, r: EvalResult
    ) -> None:
        now = self._clock()
        with self._lock:
            if (pace := self._paces.get(worker())) is not None:
                pace.last, pace.paused, pace.counts = now, False, False
                pace.heard, pace.heard_at = f"{planned.name} was evaluated", now

    def sampling(self, progress: SamplingProgress) -> None:
        if progress.what.startswith("evaluating"):
            self._pause(progress.what)
        else:
            self._hear(f"{progress.answered:,} of {progress.asked:,} requests answered")

    def saved(self, resume: Resume) -> None:
        self._hear(f"step {resume.step} was saved")

    def stage_trained(self, stage: PlannedStage, record: StageRecord) -> None:
        self._end(stage)

    def stage_finished(self, stage: PlannedStage, record: StageRecord) -> None:
        self._end(stage)

    def stage_failed(self, stage: PlannedStage, record: StageRecord) -> None:
        self._end(stage)

    def _pause(self, what: str) -> None:
        with self._lock:
            if (pace := self._paces.get(worker())) is not None:
                pace.paused, pace.counts = True, False

    def _hear(self, what: str) -> None:
        with self._lock:
            if (pace := self._paces.get(worker())) is not None and pace.heard != what:
                pace.heard, pace.heard_at = what, self._clock()

    def _end(self, stage: PlannedStage) -> None:
        with self._lock:
            self._paces = {who: p for who, p in self._paces.items() if p.stage != stage.name}


def _late(pace: _Pace, now: float) -> bool:
    if pace.told or pace.paused or len(pace.took) < STEPS:
        return False
    return now - pace.last >= max(LEAST_S, TIMES * statistics.median(pace.took))


def _stall(pace: _Pace, now: float) -> Stall:
    usual = statistics.median(pace.took)
    ago = now - pace.heard_at
    return Stall(
        stage=pace.stage,
        seconds=now - pace.last,
        usual=usual,
        text=(
            f"stage '{pace.stage}' stands still: no step for {duration(now - pace.last)}, where "
            f"one takes {usual:.2g} s (median of {len(pace.took)}); heard last: {pace.heard}, "
            f"{duration(ago)} ago; {TO_DO}"
        ),
    )


@contextmanager
def looked_after(directory: RunDirectory, reporter: Reporter) -> Iterator[Reporter]:
    """What hears the events of a run and passes them on to `reporter`, which is told of stalls."""

    def tell(stall: Stall) -> None:
        directory.record.stage(stall.stage).warnings.append(stall.text)
        directory.save()
        reporter.stalled(stall)

    watch, ended = StallWatch(tell, reporter.note), threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_S):
            watch.look()

    thread = threading.Thread(target=look, name="stalls", daemon=True)
    thread.start()
    try:
        yield also(reporter, watch)
    finally:
        ended.set()
        thread.join()
