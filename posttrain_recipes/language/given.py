"""Recipes and suites that a program made: as the text that a person would have written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from enum import Enum
from pathlib import Path

import yaml

from posttrain_recipes.errors import UsageError


def dumped(given: object, what: str) -> str:
    """What a program made, as the text that a person would have written.

    Raises:
        UsageError: `what` holds something that YAML does not.
    """
    try:
        return yaml.safe_dump(_plain(given), sort_keys=False, allow_unicode=True)
    except (_NoValue, RecursionError) as error:
        raise UsageError(
            f"{what} holds what no recipe can",
            why="it holds itself" if isinstance(error, RecursionError) else str(error),
            hint="write texts, numbers, lists and mappings",
            code="wrong-value",
        ) from None


class _NoValue(Exception):
    """What a program put into a recipe, and no text could; says where."""


def _plain(value: object, path: str = "") -> object:
    if isinstance(value, Mapping):
        return {
            key.value if isinstance(key, Enum) else key: _plain(
                each, f"{path}.{key}" if path else str(key)
            )
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(each, f"{path}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, Enum):
        return _plain(value.value, path)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(value.tolist(), path)
    if isinstance(value, Path):
        return str(value)
    for kind in (bool, int, float, str):  # what only inherits from one has no text of its own
        if isinstance(value, kind):
            return kind(value)
    if value is None or isinstance(value, date):
        return value
    if callable(value) and (name := getattr(value, "__name__", "")).isidentifier():
        raise _NoValue(f"{path or 'it'} is the function {name}: call it, as {name}(...)")
    raise _NoValue(f"{path or 'it'} is of type {type(value).__name__}")
