"""Evals of stages that have trained, under way while the next stages train.

On an engine that has room for it (`Engine.beside`) a stage that has trained hands its weights over,
and its evals go on in a thread of their own, of so many stages at most; of one more they are run
before anything else begins. All of them have ended before the run does, however it ends. What is
asked, and with which seeds, is the same as without.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, wait
from types import TracebackType

from posttrain_recipes.planning import costs
from posttrain_recipes.planning.plans import Plan, PlannedStage
from posttrain_recipes.waiting import TICK, Interrupts, StopAsked, as_worker


class Beside:
    """The stages of one run whose evals are under way beside others.

    Args:
        most: how many there may be at once.
        last: the stage that nothing comes after.
        failed: told of a stage whose evals failed, and of why; it may raise what ends the run.
    """

    def __init__(
        self,
        most: int,
        last: PlannedStage,
        interrupts: Interrupts,
        failed: Callable[[PlannedStage, Exception], None],
    ) -> None:
        self._most = most
        self._last = last
        self._interrupts = interrupts
        self._failed = failed
        self._lock = threading.Lock()
        self._busy: dict[str, Future[None] | None] = {}
        """By stage; None between `takes` and `start`."""

    def takes(self, stage: PlannedStage) -> bool:
        """Whether the evals of a stage that has trained go on here: a place is kept for them."""
        if stage is self._last or not costs.goes_beside(stage):
            return False
        with self._lock:
            ended = [name for name, one in self._busy.items() if one and _well(one)]
            for name in ended:
                del self._busy[name]
            if len(self._busy) >= self._most:
                return False
            self._busy[stage.name] = None
            return True

    def start(self, stage: PlannedStage, evals: Callable[[], None]) -> None:
        """Run the evals of a stage that `takes` said yes to."""

        def work() -> None:
            try:
                evals()
            except StopAsked as stop:  # a bound holds for what trains beside, too
                self._interrupts.ask(str(stop))
                raise
            except Exception as error:
                self._failed(stage, error)

        with self._lock:
            self._busy[stage.name] = as_worker(stage.name, work)

    def settle(self, stages: Collection[str] | None = None) -> None:
        """Wait until the evals of these stages, or of all, have ended.

        Raises:
            KeyboardInterrupt: a signal came, here or there; and whatever else ends the run.
        """
        while waiting := self._of(stages):
            wait(waiting, TICK, FIRST_COMPLETED)
            self._interrupts.check()
        for future in self._of(stages, ended=True):
            future.result()

    def _of(self, stages: Collection[str] | None, *, ended: bool = False) -> list[Future[None]]:
        with self._lock:
            found = [one for name, one in self._busy.items() if stages is None or name in stages]
        return [one for one in found if one is not None and one.done() == ended]

    def __enter__(self) -> Beside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Wait for all of them. Where the run ends before its time they are told of the same
        signal, bound or loss of the engine, and keep what they have."""
        try:
            if error is None:
                self.settle()
        finally:
            while waiting := self._of(None):
                wait(waiting, TICK)


def judged_before(stage: PlannedStage, plan: Plan) -> list[str]:
    """The stages whose evals have to be there before this one begins: it may take them over, or
    they decide whether its round of a loop is run."""
    origin = plan.origins[stage.index - 1]
    return [
        other.name
        for other in plan.stages[: stage.index - 1]
        if other.fingerprint == stage.fingerprint
        or (origin.until and plan.origins[other.index - 1].loop == origin.loop)
    ]


def failed_above(stage: PlannedStage, plan: Plan, failed: Collection[str]) -> list[str]:
    """Of the stages that led to this one, those that failed, with their evals, after the next one
    had begun."""
    stages = {one.name: one for one in plan.stages}
    above = sorted(stage.needs)
    for name in above:
        above += [one for one in sorted(stages[name].needs) if one not in above]
    return [name for name in above if name in failed]


def _well(future: Future[None]) -> bool:
    return future.done() and future.exception() is None
