"""A tracker that remembers what it hears."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from posttrain_recipes import registry
from posttrain_recipes.plugin import PluginConfig, RunEnded, RunStarted, StepMetrics, Tracker
from posttrain_recipes.registry import Entry

METHODS = (
    *("stage_started", "log_metrics", "log_eval", "log_samples", "log_checkpoint", "log_note"),
    "stage_ended",
)


class Listening(Tracker):
    """Remembers all that it hears, for tests."""

    name = "listening"
    heard: ClassVar[list[tuple[str, Any]]] = []
    threads: ClassVar[set[str]] = set()

    class Config(PluginConfig):
        """Options of listening."""

        project: str = "sums"
        """A word."""
        fails: str = ""
        """The method that raises."""

    config: Config

    def run_started(self, run: RunStarted) -> None:
        self.hear("run_started", run)

    def run_ended(self, run: RunEnded) -> None:
        self.hear("run_ended", run)

    def hear(self, what: str, event: Any) -> None:
        self.heard.append((what, event))
        self.threads.add(threading.current_thread().name)
        if what == self.config.fails:
            raise ValueError(f"no {what} today")


def _hears(what: str) -> Any:
    return lambda self, event: self.hear(what, event)


for _name in METHODS:
    setattr(Listening, _name, _hears(_name))


class Needing(Tracker):
    """Needs a package that nobody has."""

    name = "needing"
    requires = ("no_such_module_here",)
    extra = "no-such-package>=2"

    def run_started(self, run: RunStarted) -> None: ...


@contextmanager
def installed() -> Iterator[None]:
    """`listening` is among the plugins, and has heard nothing."""
    shelf = registry.load().entries["tracker"]
    shelf.put("listening", Entry("tracker", Listening, "ptl-listening", "1.0", 1))
    Listening.heard.clear()
    try:
        yield
    finally:
        del shelf["listening"]


def heard(what: str) -> list[Any]:
    """The events of one kind, in order."""
    return [event for name, event in Listening.heard if name == what]


def curve(stage: str, metric: str) -> list[tuple[int, float]]:
    """What was told of a metric of a stage, in order."""
    events: list[StepMetrics] = heard("log_metrics")
    return [(e.step, e.values[metric]) for e in events if e.stage == stage and metric in e.values]


def folder_of(home: Path, run: str) -> Path:
    return home / "runs" / run / "trackers" / "listening"
