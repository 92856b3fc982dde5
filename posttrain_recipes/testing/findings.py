"""The result of a plugin check, and how checks are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain_recipes.learning_rate import BASE
from posttrain_recipes.options import AUTO
from posttrain_recipes.planning import rates
from posttrain_recipes.registry import Entry

Complaints = Callable[[Entry, Mapping[str, Any]], Iterable[str]]
"""What is wrong, in words that say what to do; nothing where all is well."""


@dataclass(frozen=True)
class Finding:
    """The result of one plugin check."""

    check: str
    """What was checked, as a statement that should hold."""
    told: str = ""
    """What is wrong, or why it was not checked."""
    passed: bool = True
    skipped: bool = False
    worked: bool = False
    """Whether the plugin was let work for it, rather than read."""


def run_check(check: str, complaints: Complaints, entry: Entry, options: dict[str, Any]) -> Finding:
    """The finding of one check; what a plugin raises is a complaint about it."""
    found: list[str] = []
    try:
        found.extend(complaints(entry, options))
    except Skip as skip:
        if not found:  # else what is wrong stands, and the rest was not looked at
            return Finding(check, str(skip), skipped=True)
    except Exception as error:  # a stranger's plugin may fail in any way
        found.append(f"raised {type(error).__name__}: {error}")
    return Finding(check, "; ".join(found), passed=not found)


class Skip(Exception):
    """The check cannot be made here; the reason is its text."""


def placeholder(options: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    """`options`, with a stand-in for each one that is required and not given, and a number in the
    place of `auto`, as a plan has it.

    Raises:
        Skip: none of the stand-ins is a valid value.
    """
    missing = [
        name
        for name, field in entry.config.model_fields.items()
        if field.is_required() and name not in options
    ]
    made = dict(options)
    for name in rates.options(entry.config):
        if made.get(name, entry.config.model_fields[name].default) == AUTO:
            made[name] = BASE
    for name in missing:
        for value in _STAND_INS:
            try:
                entry.config.model_validate(made | {name: value})
            except ValueError as error:
                if any(part["loc"][:1] == (name,) for part in error.errors()):  # type: ignore[attr-defined]
                    continue
            made[name] = value
            break
        else:
            raise Skip(f"give its option '{name}' a value: --set {name}=...")
    return made


_STAND_INS: tuple[Any, ...] = ("x", 1, 0.5, {"stage": "base"}, ["x"], [{"stage": "base"}], {})
