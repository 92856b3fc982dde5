"""Waiting for an engine without hanging on one that is gone.

The SDK retries a dead server for ever, so nothing here blocks without looking up: at every tick
the waiter asks whether the engine lives and whether somebody pressed Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from posttrain_recipes.errors import PtlError

if TYPE_CHECKING:
    import tinker

T = TypeVar("T")
TICK = 0.25
"""Seconds between two looks."""


class GoneError(PtlError):
    """What was asked for is not there (any more): a checkpoint that expired, say."""


class Interrupts:
    """Ctrl-C and SIGTERM, delivered only where work can stop without losing any."""

    def __init__(self) -> None:
        self._pending = threading.Event()
        self.signal = signal.SIGINT
        """The last signal that came."""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle both signals until the context ends; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if self._pending.is_set():  # asked twice: do not wait for a good moment any longer
            raise KeyboardInterrupt
        self._pending.set()

    def check(self) -> None:
        """Raise KeyboardInterrupt, once, where a signal came since the last look."""
        if self._pending.is_set():
            self._pending.clear()
            raise KeyboardInterrupt


class EngineWaiter:
    """Waits for futures of one engine. See `plugin.Waiter`."""

    def __init__(
        self,
        alive: Callable[[], bool] = lambda: True,
        interrupts: Interrupts | None = None,
        explain_death: Callable[[], PtlError] | None = None,
    ) -> None:
        self._alive = alive
        self._interrupts = interrupts or Interrupts()
        self._explain_death = explain_death or (lambda: PtlError("the engine is gone"))

    def __call__(self, future: tinker.APIFuture[T] | Future[T]) -> T:
        """The future's result.

        Raises:
            PtlError: the engine refused the request, failed on it, or is gone.
            KeyboardInterrupt: a signal came.
        """
        # The SDK's own futures may look like concurrent ones too; theirs is the one inside.
        inner: Future[T] = future.future() if hasattr(future, "future") else future
        while True:
            self._interrupts.check()
            try:
                return inner.result(timeout=TICK)
            except TimeoutError:
                if inner.done():
                    raise
                if not self._alive():
                    raise self._explain_death() from None
            except Exception as error:
                if not self._alive():
                    raise self._explain_death() from None
                raise explain(error) from error


def explain(error: Exception) -> Exception:
    """What the SDK raised, as a `PtlError` where it came from the engine."""
    import tinker

    if isinstance(error, tinker.AuthenticationError):
        return PtlError(
            "the engine refused the API key", why=str(error), hint="check TINKER_API_KEY"
        )
    if isinstance(error, tinker.NotFoundError):
        return GoneError("the engine does not have what was asked for", why=str(error))
    if isinstance(error, tinker.TinkerError):
        return PtlError("the engine could not do what was asked", why=str(error))
    return error


def in_thread(function: Callable[[], T]) -> Future[T]:
    """Call a blocking function of the SDK so that it can be waited for as a future is.

    The thread is a daemon: a call that never returns does not keep the process alive.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
