"""Standard streams that may be closed, full or broken, and the one answer that programs read.

What cannot be printed never ends what is under way: it is told once, where that can be read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
import sys
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from posttrain_recipes.errors import PtlWarning
from posttrain_recipes.shown import redact_all

if TYPE_CHECKING:
    from posttrain_recipes.progress.event_log import EventLine

STANDARD = Path("-")
"""Standard output, where a file is asked for."""


def open_missing() -> None:
    """Have /dev/null in place of standard streams that are closed.

    Otherwise the next file that is opened takes their number, and gets what is printed.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False, encoding="utf-8"))


def say(text: str) -> None:
    """A line on stderr, where that can be written."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, err=True)


@contextlib.contextmanager
def own_warnings_as_lines() -> Iterator[None]:
    """Print warnings of this package on stderr as a person reads them; others as Python does."""
    others = warnings.showwarning
    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, PtlWarning):
            if not issubclass(category, DeprecationWarning) or str(message) not in told:
                say(f"warning: {message}")
            told.add(str(message))
        else:
            others(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", PtlWarning)
        warnings.showwarning = show
        yield


def leave(code: int) -> None:
    """Exit; what is still buffered and cannot be written is told, not traced.

    A reader of a pipe that has what it wanted is no fault, nor is a terminal that was closed; a
    full disk is.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _discard(stream)
        except (OSError, ValueError) as error:
            gone = _is_gone(stream, error)
            _discard(stream)
            if gone:
                continue
            say(f"error: what was printed could not be written: {error}")
            code = code or 1
    sys.exit(code)


def end(known: list[int]) -> None:
    """Leave with the exit code that is known, before the interpreter is taken down.

    A thread of a library that still works then can abort the process (CPython before 3.14 ends
    such threads by force): a run that is whole would leave with -6.
    """
    if not known:
        return
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(known[0])


def _is_gone(stream: TextIO, error: Exception) -> bool:
    """Whether the stream is a terminal that is not there any more; of a disk EIO says worse."""
    with contextlib.suppress(OSError, ValueError):
        device = stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
        return device and getattr(error, "errno", None) == errno.EIO
    return False


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Lose what cannot be printed, whoever prints it: a reward's own print() on a terminal that was
    closed must not end what is being trained."""
    from posttrain_recipes.progress.streams import Lasting
    from posttrain_recipes.progress.terminal import guard, unguarded

    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, Lasting(unguarded(one))) for one in before)
    guard()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _discard(stream: TextIO) -> None:
    """Have what is buffered go nowhere, so that Python does not try it again at its exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


_ANSWER = f"{__name__}.answer"


def answer(data: Any, exact: Collection[str] = ()) -> None:
    """The command's answer as JSON: printed at its end, and alone.

    Its texts are without secrets, as all that is printed, but for those below the keys `exact`.
    """
    click.get_current_context().find_root().meta[_ANSWER] = json.dumps(
        redact_all(data, exact), indent=2, ensure_ascii=False
    )


@contextlib.contextmanager
def aside() -> Iterator[int | None]:
    """Keep standard output for what programs read: whatever else is printed meanwhile, by a plugin
    as it is imported or by a program that it runs, goes to stderr.

    Yields:
        Standard output itself; None where there is none.
    """
    kept = None
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield kept
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


@contextlib.contextmanager
def alone(context: click.Context) -> Iterator[None]:
    """Keep standard output for the answer, which is printed at the end."""
    out = sys.stdout
    try:
        with aside():
            yield
    finally:
        if (text := context.find_root().meta.pop(_ANSWER, None)) is not None:
            from posttrain_recipes.progress import terminal

            terminal.exact(f"{text}\n", out)


def for_programs(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """What `--json` does as it is read."""
    if value:
        context.with_resource(alone(context))
    return value


_EVENTS = f"{__name__}.events"


def for_events(
    context: click.Context, parameter: click.Parameter, value: Path | None
) -> Path | None:
    """What `--events -` does as it is read."""
    if value == STANDARD:
        context.meta[_EVENTS] = context.with_resource(aside())
    return value


def event_lines(path: Path) -> EventLine:
    """Where events are written: a file, or standard output. Raises `UsageError` where they cannot
    be."""
    from posttrain_recipes.progress.event_log import EventLine, open_events

    if path != STANDARD:
        return open_events(path, say)
    kept = click.get_current_context().meta[_EVENTS]
    descriptor = os.open(os.devnull, os.O_WRONLY) if kept is None else os.dup(kept)
    return EventLine(descriptor, "standard output", say)
