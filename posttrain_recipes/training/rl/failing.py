"""What a reward raises, which is anybody's code, as an error that says what to do."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain_recipes.context import RewardLike
from posttrain_recipes.errors import PtlError
from posttrain_recipes.waiting import Cancelled


@contextmanager
def told_where_it_fails(reward: RewardLike, where: str = "") -> Iterator[None]:
    """Tell of what a reward raises within.

    Args:
        where: who asks it, before what is told.

    Raises:
        PtlError: it raised something.
    """
    try:
        yield
    except (PtlError, Cancelled):
        raise
    except Exception as error:
        raise PtlError(
            f"{where}reward '{reward.label}' failed",
            why=in_words(error),
            hint="mend it, or have it return None where it cannot tell; then the same command goes "
            "on from what is kept",
            code="reward-failed",
        ) from error


def in_words(error: Exception) -> str:
    """What anybody's code raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{at}"
