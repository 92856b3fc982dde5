"""The presets of shipped recipes, each file read once in a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from posttrain_recipes.language import recipe as recipes


@cache
def preset_names(path: Path) -> tuple[str, ...]:
    """The names of a recipe's presets, in its order."""
    return tuple(recipes.preset_names(path))
