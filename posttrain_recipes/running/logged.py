"""What methods, rewards and their helpers log while a stage works: kept with the stage.

They know of no run, and log a warning as any library does. Where a stage works it is told as the
stage's own warnings are: on the terminal, in events, in `ptl show`, the report and MLflow.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

MOST = 20
"""Warnings that are kept of a stage; some are of records, of which there may be many."""


class StageLog:
    """Where the warnings of one stage go. Other threads leave theirs for the one that works."""

    def __init__(self, name: str, warn: Callable[[str], None]) -> None:
        self.prefix = f"stage '{name}': "
        self.warn = warn
        self.thread = threading.get_ident()
        self.told: set[str] = set()
        self.left: deque[str] = deque()

    def take(self, text: str) -> None:
        self.left.append(text.removeprefix(self.prefix))
        if threading.get_ident() == self.thread:
            self.flush()

    def flush(self) -> None:
        while self.left:
            text = self.left.popleft()
            if text in self.told:
                continue
            self.told.add(text)
            if len(self.told) <= MOST:
                self.warn(text)
            elif len(self.told) == MOST + 1:
                self.warn(f"more than {MOST} warnings of other things; later ones are not told")


_STAGE: ContextVar[StageLog | None] = ContextVar("stage", default=None)


class _Logged(logging.Handler):
    """Gives a warning to the stage that it is of; without one it is as if there were no handler."""

    def emit(self, record: logging.LogRecord) -> None:
        stage = _STAGE.get()
        if stage is not None:
            stage.take(record.getMessage())
        elif logging.lastResort is not None and not logging.getLogger().handlers:
            logging.lastResort.handle(record)


_HANDLER = _Logged(logging.WARNING)


@contextmanager
def kept(name: str, warn: Callable[[str], None]) -> Iterator[None]:
    """While it lasts, what the package logs as a warning is told by `warn`, each text once."""
    logging.getLogger("posttrain_recipes").addHandler(_HANDLER)  # no second time
    stage = StageLog(name, warn)
    before = _STAGE.set(stage)
    try:
        yield
    finally:
        _STAGE.reset(before)
        stage.flush()
