"""What ptl prints, on its way out: everything goes through `plain` and `redact`.

The streams themselves are guarded, so that this holds for whatever prints: a command, a warning, a
log, a plugin. Past the guard go, each after `plain`: styles of our own, and what has to be exact.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

import click

from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.shown import plain, redact

if TYPE_CHECKING:
    from rich.console import Console


class Guarded:
    """A text stream that shows what it is given without control characters and secrets.

    What the stream cannot encode is escaped too: a reply ends no command on a terminal that is not
    UTF-8. There is no `buffer`, through which bytes would pass by.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write `plain(redact(text))`; returns the length of `text`."""
        self.write_exact(redact(text))
        return len(text)

    def write_exact(self, text: str) -> None:
        """Write `plain(text)`: JSON, a reply or a record, in which nothing may be left out."""
        shown = plain(text)
        try:
            self.stream.write(shown)
        except UnicodeEncodeError:
            encoding = self.stream.encoding or "ascii"
            self.stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))

    def writelines(self, lines: list[str]) -> None:
        """Write each of them."""
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        if name in ("buffer", "raw", "detach", "reconfigure"):
            raise AttributeError(name)
        return getattr(self.stream, name)


def _guarded(stream: TextIO) -> TextIO:
    # None, where a program without a terminal starts us.
    return (
        stream if stream is None or isinstance(stream, Guarded) else cast(TextIO, Guarded(stream))
    )


def guard() -> None:
    """Guard stdout and stderr, which something may just have replaced."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Guard stdout and stderr for as long as the context lasts."""
    before = sys.stdout, sys.stderr
    guard()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):  # closed, or its reader is gone
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def unguarded(stream: TextIO) -> TextIO:
    """The stream itself, for what is ours to print and no text of others."""
    return stream.stream if isinstance(stream, Guarded) else stream


def exact(text: str, file: TextIO | None = None) -> None:
    """Print on stdout, or `file`, what has to be told as it is, such as JSON or a model's reply."""
    out = file or sys.stdout
    if isinstance(out, Guarded):
        out.write_exact(text)
    else:
        out.write(plain(text))
    out.flush()


def styled(text: str, end: str = "\n", **style: Any) -> None:
    """Print on stdout in a style of ours, `fg="red"` or `dim=True`; `text` may be anybody's."""
    click.echo(click.style(plain(text), **style) + end, file=unguarded(sys.stdout), nl=False)


def console(out: Lasting) -> Console:
    """A console of rich on `out`, whose styles are ours and whose text is plain."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Plain(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*map(_without_secrets, objects), **options)

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                yield segment if control else Segment(plain(text), style)

    file = cast("IO[str]", out.over(unguarded))
    return Plain(file=file, highlight=False, markup=False, emoji=False)


def _without_secrets(told: Any) -> Any:
    if isinstance(told, str):
        return redact(told)
    text = getattr(told, "plain", None)  # rich's Text, which keeps its style where it can
    return redact(text) if isinstance(text, str) and redact(text) != text else told


def show_click(error: click.ClickException) -> None:
    """What is wrong with the command line, which may hold anything, on stderr."""
    told = io.StringIO()
    error.show(told)
    click.echo(told.getvalue(), err=True, nl=False)


def folded(text: str) -> str:
    """A sentence below a table, in lines that fit the terminal."""
    return textwrap.fill(text, min(100, shutil.get_terminal_size().columns), break_on_hyphens=False)
