"""The bar of a stage in training, in as many lines as a terminal's width asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

BETWEEN = 2
"""Columns between two parts."""
SHORTEST = 10
"""Columns of a bar; where there are fewer, the line has none."""


@dataclass
class Bar:
    """What the last step of a stage showed. rich asks it how it looks several times a second."""

    step: int
    total: int
    told: str = ""
    """Numbers of the step, two spaces between them."""
    speed: str = ""
    left: str = "? left"
    """Time until the last step."""

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """All in one line where that has room for a bar too; otherwise the numbers of the step are
        in lines below, so that the step and the time left are whole in any width."""
        width = options.max_width
        end = [part for part in (self.speed, self.left) if part]
        told = [self.told] if self.told else []
        if self._rest(width, [*told, *end]) >= SHORTEST:
            yield self._line(width, told, end)
            return
        if self._rest(width, end) < 0:
            end = [self.left]
        yield self._line(width, [], end)
        yield from self._below(width)

    @property
    def _head(self) -> str:
        return f"  step {self.step}/{self.total}"

    def _rest(self, width: int, parts: Sequence[str]) -> int:
        """Columns that are left for a bar beside the step and `parts`; less than 0 where not even
        these fit."""
        taken = len(self._head) + sum(len(part) + BETWEEN for part in parts)
        rest = width - taken
        return rest - BETWEEN if rest > BETWEEN else rest

    def _line(self, width: int, told: Sequence[str], end: Sequence[str]) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        parts: list[RenderableType] = [Text(self._head)]
        if (rest := self._rest(width, [*told, *end])) >= SHORTEST:
            parts.append(ProgressBar(total=max(1, self.total), completed=self.step, width=rest))
        parts += [Text(part) for part in told]
        parts += [Text(part, "dim") for part in end]
        line = Table.grid(padding=(0, BETWEEN, 0, 0))
        for _ in parts:
            line.add_column(no_wrap=True)
        line.add_row(*parts)
        return line

    def _below(self, width: int) -> Iterator[RenderableType]:
        from rich.text import Text

        line = ""
        for part in self.told.split("  ") if self.told else ():
            if line and len(line) + BETWEEN + len(part) > width:
                yield Text(line)
                line = ""
            line += f"  {part}"
        if line:
            yield Text(line)
