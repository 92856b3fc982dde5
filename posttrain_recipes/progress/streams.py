"""A stream for progress: what cannot be printed never ends what is under way."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TextIO


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
