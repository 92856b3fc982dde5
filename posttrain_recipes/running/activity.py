"""What is under way that takes many answers of the engine: an eval, the making of records.

Nothing of it is heard until it ends, so it is told while it lasts, and however it asks: requests
and tokens are counted as `metering` sees them, and whoever waits for an answer (`EngineWaiter`)
gives the tick on which they are told. An eval that says how far it is (`EvalContext.progress`) is
told as n of N.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from posttrain_recipes.running.events import SamplingProgress

SECONDS = 0.25
"""Between two times that it is told."""


class Activity:
    """One piece of work: what it asked and got, and how far it says that it is."""

    def __init__(
        self,
        what: str,
        tell: Callable[[SamplingProgress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self._tell = tell
        self._clock = clock
        self._lock = threading.Lock()
        self._began = self._last = clock()
        self._asked = self._answered = self._read = self._written = 0
        self._far = (0, 0, "")

    def asked(self) -> None:
        """A request was sent."""
        with self._lock:
            self._asked += 1

    def answered(self, read: int, written: int) -> None:
        """A request was answered, which took tokens. Called on any thread."""
        with self._lock:
            self._answered += 1
            self._read += read
            self._written += written

    def progress(self, done: int, total: int, what: str) -> None:
        """How far it is: `done` of `total` of `what`. See `EvalContext.progress`."""
        self._far = (done, total, what)
        self.tick()

    def tick(self) -> None:
        """Tell of it, if that is not but just done; nothing where it asks for nothing."""
        now = self._clock()
        if now - self._last < SECONDS or not (self._asked or self._far[1]):
            return
        self._last = now
        done, total, unit = self._far
        with self._lock:
            told = SamplingProgress(
                what=self.what,
                done=done,
                total=total,
                unit=unit,
                asked=self._asked,
                answered=self._answered,
                read=self._read,
                written=self._written,
                seconds=now - self._began,
            )
        self._tell(told)


_NOW: ContextVar[Activity | None] = ContextVar("activity", default=None)


def current() -> Activity | None:
    """What this thread, or the one that it was started by, is at."""
    return _NOW.get()


def tick() -> None:
    """Tell of what is under way here, if anything is. Called by whoever waits."""
    if (activity := current()) is not None:
        activity.tick()


@contextmanager
def watched(
    what: str,
    tell: Callable[[SamplingProgress], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Activity]:
    """Tell of a piece of work until the context ends."""
    activity = Activity(what, tell, clock)
    token = _NOW.set(activity)
    try:
        yield activity
    finally:
        _NOW.reset(token)
