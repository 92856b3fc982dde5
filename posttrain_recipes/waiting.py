"""Waiting for an engine's answers, without hanging if it has died or Ctrl-C is pressed.

The SDK retries a dead server for ever, so waits are split into short ones, and after each the
waiter checks whether the engine is alive and whether a signal has come.
"""

from __future__ import annotations

import contextvars
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from posttrain_recipes import exits, sdk
from posttrain_recipes.errors import PtlError

if TYPE_CHECKING:
    import tinker

T = TypeVar("T")
TICK = 0.25
"""Seconds between two checks."""

_WORKER = contextvars.ContextVar("worker", default="")


def worker() -> str:
    """The name of the piece of work, a stage, that this thread is doing; empty if there is only
    one."""
    return _WORKER.get()


def as_worker(name: str, function: Callable[[], T]) -> Future[T]:
    """Run a function on a thread of its own, as the piece of work called `name`. See `worker`."""

    def work() -> T:
        _WORKER.set(name)
        return function()

    return in_thread(work)


class GoneError(PtlError):
    """Something that was asked for does not exist (any more), such as an expired checkpoint."""

    code = "no-such-checkpoint"


class RefusedError(PtlError):
    """The engine understood what was asked and cannot do it, as with a checkpoint that is damaged
    (422)."""

    code = "engine-refused"


class EngineLostError(PtlError):
    """The engine is gone, or refuses everything: no stage can go on."""

    exit_code = exits.ENGINE_LOST.number
    code = "engine-gone"


class StopAsked(KeyboardInterrupt):
    """Work has to stop, without losing any, for a reason: a bound on cost or time.

    It is an interrupt, so that whatever saves its work on Ctrl-C saves it on this too.
    """


class Cancelled(Exception):
    """The stage ended while work of it was still going on in another thread."""


class CancellableWaiter:
    """A `Waiter` for threads beside the main one, which alone hears of Ctrl-C and a dead engine.

    When it does, it calls `cancel`, and whoever waits here gives up.
    """

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Have everybody who waits give up."""
        self._cancelled.set()

    def __call__(self, future: tinker.APIFuture[T] | Future[T]) -> T:
        """The result of `future`. Raises what it raised, or `Cancelled`."""
        inner: Future[T] = future.future() if hasattr(future, "future") else future
        while True:
            if self._cancelled.is_set():
                raise Cancelled
            try:
                return inner.result(timeout=TICK)
            except TimeoutError:
                if inner.done():
                    raise


def pressed(error: KeyboardInterrupt) -> bool:
    """Whether an interrupt is a person's (or a bound's), rather than raised by a program's code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    by_us = trace is not None and trace.tb_frame.f_code.co_filename == __file__
    # Python's own handler raises in the midst of whatever runs, on the main thread alone.
    on_main = threading.current_thread() is threading.main_thread()
    return by_us or (on_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler)


ONCE_S = 1.0
"""Within so many seconds SIGTERM counts once: `timeout` and others send it to a process, and again
to its group."""


@contextmanager
def ended_politely() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt, as Ctrl-C does, unless the program already does
    something about it; only the main thread can. A second one within `ONCE_S` is none: it would
    end what the first one has cleaned up."""
    on_main = threading.current_thread() is threading.main_thread()
    if not on_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    ended = -math.inf

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ended
        again, ended = time.monotonic() - ended < ONCE_S, time.monotonic()
        if not again:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def without_hangups() -> Iterator[None]:
    """Go on where the terminal is gone, as under nohup; only the main thread can ask for it.

    Ignored rather than handled: what is started meanwhile inherits that, so a program that a
    reward runs does not end with the terminal either.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


class Interrupts:
    """Collects Ctrl-C, SIGTERM and passed limits, and raises them only where work can stop without
    loss."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended = -ONCE_S
        """When SIGTERM came the last time."""
        self.signal = signal.SIGINT
        """The last signal that came."""
        self._signals = 0
        self._seen: dict[str, int] = {}
        """How many of them each worker knows of."""
        self._asked: str | None = None
        self._told: set[str] = set()
        """The workers that know that they were asked."""
        self._deadline: tuple[float, str] | None = None

    def ask(self, reason: str) -> None:
        """Have work stop at the next good moment; once, as what is under way is then saved."""
        self._asked = self._asked or reason

    def stop_at(self, when: float, reason: str) -> None:
        """Have work stop from this moment of the monotonic clock on."""
        self._deadline = when, reason

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals until the context ends; only the main thread can. A terminal that is
        gone (SIGHUP) ends nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            with without_hangups():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if number == signal.SIGTERM:
            again, self._ended = self._clock() - self._ended < ONCE_S, self._clock()
            if again:
                return
        if self._signals > max(self._seen.values(), default=0):
            # Asked twice before anybody looked up: do not wait for a good moment any longer.
            raise KeyboardInterrupt
        self._signals += 1

    def noticed(self) -> bool:
        """Whether a signal came since this worker's last look: for a wait at the end of a run,
        where nothing is left to stop."""
        found, self._seen[worker()] = self._signals > self._seen.get(worker(), 0), self._signals
        return found

    def check(self) -> None:
        """Raise KeyboardInterrupt, once for each worker, where a signal came since its last look.

        Raises:
            StopAsked: the same for a stop that was asked for.
        """
        me = worker()
        if self._signals > self._seen.get(me, 0):
            self._seen[me] = self._signals
            raise KeyboardInterrupt
        if self._deadline is not None and time.monotonic() >= self._deadline[0]:
            self.ask(self._deadline[1])
        if self._asked is not None and me not in self._told:
            self._told.add(me)
            raise StopAsked(self._asked)


class EngineWaiter:
    """Waits for futures of one engine. See `plugin.Waiter`.

    Args:
        alive: False once the engine is known to be gone.
        explain_death: the error to raise then.
        trouble: why the engine cannot be reached just now, if that is so.
        tell: called with a message when trouble begins, and when it ends.
        tick: called every `TICK` seconds while an answer is waited for.
    """

    def __init__(
        self,
        alive: Callable[[], bool] = lambda: True,
        interrupts: Interrupts | None = None,
        explain_death: Callable[[], PtlError] | None = None,
        trouble: Callable[[], str | None] = lambda: None,
        tell: Callable[[str], None] = lambda text: None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._tick = tick
        self._trouble = trouble
        self._tell = tell
        self._troubled = False
        self._alive = alive
        self._interrupts = interrupts or Interrupts()
        self._explain_death = explain_death or (lambda: EngineLostError("the engine is gone"))

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
            self._tick()
            try:
                return inner.result(timeout=TICK)
            except TimeoutError:
                if inner.done():
                    raise
                if not self._alive():
                    raise self._explain_death() from None
                self._tell_trouble()
            except Exception as error:
                if not self._alive():
                    raise self._explain_death() from None
                raise explain(error) from error

    def _tell_trouble(self) -> None:
        trouble = self._trouble()
        if trouble and not self._troubled:
            self._tell(f"{trouble}; Ctrl-C keeps what is trained")
        elif self._troubled and not trouble:
            self._tell("the engine answers again")
        self._troubled = bool(trouble)


_OF_A_FUTURE = re.compile(
    r"^Request failed: (.*) for self\.request_id='[^']*' and expected type self\.model_cls=.*$",
    re.S,
)
"""What the SDK puts around an engine's words."""


_FULL = re.compile(
    r"no (free|available) (lora |adapter )?slots?\b|maximum number of (lora )?(adapters|models)"
    r"|too many (lora )?(adapters|models)|max_lora_adapters|no capacity for another adapter"
    r"|already has an? '?\w+'? model",
    re.I,
)
"""How servers say that they hold as many adapters as they can."""


def says_full(words: str) -> bool:
    """Whether a server's words say that it has no free slot for an adapter."""
    return bool(_FULL.search(words))


def no_free_slot(words: str) -> PtlError:
    """The error of a server that holds as many adapters as it can; `words` are its own."""
    return PtlError(
        "the server has no free slot for another adapter",
        why=words,
        hint="end the runs that use it, wait for those that ended (it may keep their adapters for "
        "minutes), or start it with more slots",
        code="engine-cannot",
    )


def explain(error: Exception) -> Exception:
    """What the SDK raised, as a `PtlError` where it came from the engine."""
    import tinker

    if sdk.no_longer_known(error):
        return EngineLostError(
            "the engine no longer knows what it was asked: it was restarted",
            why=str(error),
            hint="'ptl run' of the same recipe goes on from what was saved",
        )
    if isinstance(error, tinker.AuthenticationError):
        return EngineLostError(
            "the engine refused the API key",
            why=str(error),
            hint="check TINKER_API_KEY",
            code="bad-key",
        )
    if isinstance(error, tinker.NotFoundError):
        return GoneError("the engine does not have what was asked for", why=_words(error))
    if isinstance(error, tinker.UnprocessableEntityError):
        return RefusedError("the engine could not do what was asked", why=_words(error))
    if isinstance(error, tinker.TinkerError):
        why = _OF_A_FUTURE.sub(r"\1", str(error))
        if says_full(why):
            return no_free_slot(why)
        return PtlError("the engine could not do what was asked", why=why, code="engine-refused")
    return error


def _words(error: tinker.APIStatusError) -> str:
    """What an engine answered, without what the SDK puts around it."""
    body = error.body
    told = body.get("detail") or body.get("message") if isinstance(body, dict) else None
    return told if isinstance(told, str) else str(error)


def in_thread(function: Callable[[], T]) -> Future[T]:
    """Call a blocking function of the SDK so that it can be waited for as a future is.

    The thread is a daemon: a call that never returns does not keep the process alive. It works for
    the same worker as its caller.
    """
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(function))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
