"""What a person sees while a run goes on: plain lines, a terminal, a notebook."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posttrain_recipes.running.events import Reporter


@contextmanager
def told(progress: bool | None) -> Iterator[Reporter | None]:
    """Who tells a person of a run that a program starts; None: nobody.

    Args:
        progress: None: in a notebook, or a terminal, where there is one. True: in plain lines too
            where there is neither. False: not at all.
    """
    from posttrain_recipes.progress import notebook, terminal
    from posttrain_recipes.progress.lines import Lines
    from posttrain_recipes.progress.live import Live
    from posttrain_recipes.progress.streams import Lasting

    if progress is False:
        yield None
        return
    if notebook.is_notebook():
        # tqdm's, which transformers brings: there is a bar already, and it is ours.
        warnings.filterwarnings("ignore", message="IProgress not found")
        shown = notebook.Notebook()
        try:
            yield shown
        finally:
            shown.close()
        return
    a_terminal = sys.stdout is not None and sys.stdout.isatty()
    if progress is None and not a_terminal:
        yield None
        return
    with terminal.guarded():
        out = Lasting(sys.stdout)
        lines = Live(out) if a_terminal else Lines(out)
        try:
            yield lines
        finally:
            lines.close()
