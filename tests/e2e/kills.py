"""A run in a process of its own that gets a signal at a chosen moment.

The process is forked from a server that has imported everything, which saves seconds a run.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_recipes import engines
from posttrain_recipes.running.events import Reporter

HEARD = (
    "run_started",
    "stage_started",
    "training",
    "step",
    "saved",
    "evaluated",
    "stage_finished",
)
"""Moments of a run: what its reporter hears."""


@dataclass(frozen=True)
class Point:
    """When and how a run is stopped."""

    moment: int
    """Counted from 0, over everything that is heard."""
    delay: float
    """Seconds after it."""
    number: int
    """The signal."""
    engine: bool = False
    """Send it to the engine, not to the runner."""

    def __str__(self) -> str:
        whom = "engine" if self.engine else "runner"
        return f"{signal.Signals(self.number).name}-{whom}-{self.moment}+{1000 * self.delay:.0f}ms"


def hearing(heard: Callable[[str], None]) -> Reporter:
    """A reporter that calls `heard` with the name of each moment."""

    def method(name: str) -> Callable[..., None]:
        return lambda self, *args, **more: heard(name)

    return type("Heard", (Reporter,), {name: method(name) for name in HEARD})()


def at(point: Point, strike: Callable[[], None]) -> Reporter:
    """A reporter that calls `strike` at the point."""
    moments = iter(range(10**6))

    def heard(name: str) -> None:
        if next(moments) == point.moment:
            if point.delay:
                threading.Timer(point.delay, strike).start()
            else:
                strike()

    return hearing(heard)


def lacks_nothing(*asked: object) -> dict[str, str]:
    """Stands in for trying what a server can do: forty runs would ask the same one the same."""
    return {}


def drive(recipe: str, home: str, environment: Mapping[str, str], point: Point) -> None:
    """Run the recipe from nothing, and be stopped at the point."""
    import posttrain_recipes as ptl

    engines._probed = lacks_nothing
    os.environ.update(environment)
    with Path(home, "driven.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    strike: Any = lambda: os.kill(os.getpid(), point.number)  # noqa: E731
    try:
        ptl.run(recipe, home=home, fresh=True, reporter=at(point, strike))
    except KeyboardInterrupt:
        sys.exit(130)
