"""Standard streams that may be closed, full or broken, and the one answer that programs read.

What cannot be printed never ends what is under way: it is told once, where that can be read.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, TextIO

import click

from posttrain_recipes.shown import redact_all


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


class Lasting(io.TextIOBase):
    """A stream for what goes on whether or not anybody reads it: what cannot be written is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: str | None = None
        """Why something could not be written."""
        self._owner: Lasting | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return self._stream.encoding

    def write(self, text: str) -> int:
        """Write what can be written."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The number of the stream."""
        return self._stream.fileno()

    def over(self, change: Callable[[TextIO], TextIO]) -> Lasting:
        """The same, with another stream in place of its own; what is lost there is lost here."""
        other = Lasting(change(self._stream))
        other._owner = self
        return other

    def _try(self, call: Any) -> None:
        try:
            call()
        except (OSError, ValueError) as error:
            owner = self._owner or self
            owner.lost = owner.lost or getattr(error, "strerror", None) or str(error)


def say(text: str) -> None:
    """A line on stderr, where that can be written."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, err=True)


def leave(code: int) -> None:
    """Exit; what is still buffered and cannot be written is told, not traced.

    A reader of a pipe that has what it wanted is no fault; a full disk is.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _discard(stream)
        except (OSError, ValueError) as error:
            _discard(stream)
            say(f"error: what was printed could not be written: {error}")
            code = code or 1
    sys.exit(code)


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
def alone(context: click.Context) -> Iterator[None]:
    """Keep standard output for the answer: whatever else is printed meanwhile, by a plugin as it is
    imported or by a program that it runs, goes to stderr."""
    out, kept = sys.stdout, None
    with contextlib.suppress(OSError, ValueError):
        out.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)
        if (text := context.find_root().meta.pop(_ANSWER, None)) is not None:
            from posttrain_recipes.cli import terminal

            terminal.exact(f"{text}\n", out)


def for_programs(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """What `--json` does as it is read."""
    if value:
        context.with_resource(alone(context))
    return value
