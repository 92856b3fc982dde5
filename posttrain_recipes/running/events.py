"""The events of a run. A `Reporter` overrides the methods of those that it shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain_recipes.planning.plans import Plan, PlannedEval, PlannedStage
from posttrain_recipes.plugin import Resume
from posttrain_recipes.records import EvalResult
from posttrain_recipes.store import Estimated, RunRecord, StageRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplingProgress:
    """How far something is that asks the engine for much, such as an eval."""

    what: str
    """As `evaluating exact_match before sft`."""
    done: int
    total: int
    """`done` of `total` are there; 0 where it does not say how many there will be."""
    unit: str
    """What is counted: `replies`."""
    asked: int
    """Requests that were sent."""
    answered: int
    read: int
    """Tokens of the prompts of those that were answered."""
    written: int
    """Tokens of the replies."""
    seconds: float
    """Since it began."""


@dataclass(frozen=True)
class Stall:
    """A stage whose next step stays away."""

    stage: str
    seconds: float
    """Since its last step."""
    usual: float
    """Seconds of a step, the median."""
    text: str
    """All of it for a person, with what was heard last and what to do."""


class Reporter:
    """Receives every event of a run, and by default ignores it."""

    def run_started(self, plan: Plan, record: RunRecord, resumed: bool) -> None:
        """A run began, or goes on."""

    def estimated(self, plan: Plan, ahead: Estimated, prices: str) -> None:
        """What the stages that are not done yet are going to take, before any of it is spent."""

    def doing(self, what: str) -> None:
        """Something without steps is under way: `starting the engine`."""

    def sampling(self, progress: SamplingProgress) -> None:
        """How far something is that asks for much; several times a second while it lasts."""

    def stage_started(self, stage: PlannedStage, record: StageRecord, count: int) -> None:
        """One of `count` stages began."""

    def stage_reused(self, stage: PlannedStage, record: StageRecord) -> None:
        """An earlier run trained the same weights."""

    def training(self, stage: PlannedStage, done: int, total: int) -> None:
        """Training begins; `done` of `total` steps were done by an earlier run."""

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        """An optimizer step is done."""

    def made(self, stage: PlannedStage, batch: int) -> None:
        """A batch of records that the stage makes is safe."""

    def saved(self, resume: Resume) -> None:
        """A checkpoint is safe."""

    def evaluating(self, planned: PlannedEval, when: str, what: str) -> None:
        """An eval begins, whose result was not known before; `when` is before, after or `step-20`,
        `what` is `nll before sft`."""
        self.doing(f"evaluating {what}")

    def evaluated(
        self, stage: PlannedStage, planned: PlannedEval, when: str, r: EvalResult
    ) -> None:
        """An eval is done; `when` is before, after or, in the middle of training, `step 20`."""

    def stage_trained(self, stage: PlannedStage, record: StageRecord) -> None:
        """A stage has trained, and its evals go on beside what follows it."""

    def stage_finished(self, stage: PlannedStage, record: StageRecord) -> None:
        """A stage is done."""

    def stage_failed(self, stage: PlannedStage, record: StageRecord) -> None:
        """A stage, or its evals beside others, failed; what it saved is kept, and stages that do
        not need it go on."""

    def stage_skipped(self, stage: PlannedStage, record: StageRecord) -> None:
        """A stage is not run, because one that it needs did not finish."""

    def note(self, text: str) -> None:
        """Something of the present stage that should be known, and is not wrong."""

    def warning(self, text: str) -> None:
        """Something that does not stop the run and should be known."""

    def stalled(self, stall: Stall) -> None:
        """No step has come for long, and the run goes on waiting; told once. Called on a thread of
        its own."""
        self.warning(stall.text)

    def run_finished(self, record: RunRecord) -> None:
        """The run is done."""


def patient(reporter: Reporter) -> Reporter:
    """A reporter that passes every event on to `reporter`, and goes on where that one fails.

    A pipe that nobody reads any more, a terminal that was closed, a full disk or a fault in a
    caller's own code must not end what is being trained. The first failure of each event is logged.
    """
    told = Reporter()
    for name in vars(Reporter):
        if not name.startswith("_"):
            setattr(told, name, _guarded(name, getattr(reporter, name)))
    return told


def also(reporter: Reporter, other: Reporter) -> Reporter:
    """A reporter that passes every event on to both; neither misses one where the other fails."""
    told, first, second = Reporter(), patient(reporter), patient(other)
    for name in vars(Reporter):
        if not name.startswith("_"):
            setattr(told, name, _both(getattr(first, name), getattr(second, name)))
    return told


def _both(first: Callable[..., object], second: Callable[..., object]) -> Callable[..., None]:
    def tell(*args: Any, **more: Any) -> None:
        first(*args, **more)
        second(*args, **more)

    return tell


def _guarded(name: str, call: Callable[..., object]) -> Callable[..., None]:
    failed = False

    def tell(*args: Any, **more: Any) -> None:
        nonlocal failed
        try:
            call(*args, **more)
        except Exception as error:
            if not failed:
                failed = True
                what = f"{type(error).__name__}: {error}"
                logger.warning("the reporter failed at '%s' (%s); the run goes on", name, what)

    return tell
