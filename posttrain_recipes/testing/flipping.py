"""Checks that every option affects what its mark says: the fingerprint, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from posttrain_recipes.options import Affects, affects
from posttrain_recipes.planning import depends
from posttrain_recipes.plugin import Dataset, DatasetRef, ModelRef, Plugin, PluginConfig, RewardRef
from posttrain_recipes.registry import Entry
from posttrain_recipes.testing.findings import Skip, placeholder

KNOWN_BY_CONTENT = ("path", "revision", "stage")
"""Options of datasets that say where records lie; a stage depends on what lies there."""


def flips(config: PluginConfig) -> Iterator[tuple[str, Any, Affects]]:
    """Every option with another valid value, where one is found, and what it affects. Options that
    refer to weights, rewards or datasets are left out: what they refer to is looked at."""
    given = {name: getattr(config, name) for name in type(config).model_fields}
    for name, mark in affects(type(config)).items():
        for other in _others(given[name], type(config).model_fields[name].annotation):
            try:
                made = type(config).model_validate({**_plain(config), name: other})
            except ValidationError:
                continue
            if getattr(made, name) != given[name]:
                yield name, other, mark
                break


def _plain(config: PluginConfig) -> dict[str, Any]:
    return config.model_dump(exclude_unset=True)


def _others(value: Any, annotation: Any) -> Iterable[Any]:
    """Values that may be valid where `value` is, of an option that is annotated so; of numbers
    small ones first, which make most happen."""
    if isinstance(value, ModelRef | RewardRef | DatasetRef):
        return ()
    words = tuple(_words(annotation))
    if words and (value in words or not isinstance(value, int | float)):
        return words
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int | float):
        return (1, value + 1, value * 2, value / 2, 0, 0.5)
    if isinstance(value, str):
        return (f"{value}x", "x:y", "x.y:z")
    if isinstance(value, list | tuple):
        return ([*value, *value], [*value, "x"], [1.0, 1.0], ["x"])
    if isinstance(value, Mapping):
        return ({**value, "x": "y"}, {**value, "x": 1})
    # A time that is given has to be long enough for what is waited for.
    return (60.0 if float in get_args(annotation) else 1, 0.5, "x", ["x"], {"x": "y"}, True)


def _words(annotation: Any) -> Iterator[Any]:
    """What a `Literal` allows, wherever in an annotation it stands."""
    for part in get_args(annotation):
        if get_origin(annotation) is Literal:
            yield part
        else:
            yield from _words(part)


def identity_checks(entry: Entry, options: Mapping[str, Any]) -> Iterable[str]:
    """An option whose mark is not kept: it is part of what a stage depends on though it affects
    nothing, or is not though it affects the outcome."""
    config = entry.config.model_validate(placeholder(options, entry))
    before = _identity(entry, config)
    by_content = getattr(entry.cls, "data_options", ())  # of evals
    by_content = KNOWN_BY_CONTENT if entry.kind == "dataset" else by_content
    for name, other, mark in flips(config):
        if name in by_content:
            continue
        changed = type(config).model_validate({**_plain(config), name: other})
        same = _identity(entry, changed) == before
        if same and mark is Affects.OUTCOME:
            yield f"option '{name}' affects the outcome, and a stage is reused when it changes"
        if not same and mark is not Affects.OUTCOME:
            yield f"option '{name}' affects {mark}, and a stage is trained again when it changes"


def _identity(entry: Entry, config: PluginConfig) -> Mapping[str, Any]:
    made = entry.cls(config)
    assert isinstance(made, Plugin)
    try:
        return depends.of_plugin(made)
    except Exception as error:  # it may need what only a recipe gives it, such as its sources
        if isinstance(made, Dataset) and _refers(config):
            raise Skip("it reads other datasets, which only a recipe has") from error
        raise


def _refers(config: BaseModel) -> bool:
    return any(
        isinstance(one, DatasetRef)
        for value in (getattr(config, name) for name in type(config).model_fields)
        for one in (value if isinstance(value, list) else [value])
    )


def idle(config: PluginConfig) -> dict[str, Any]:
    """Another value for every option whose mark says that it changes no result."""
    return {name: other for name, other, mark in flips(config) if mark is not Affects.OUTCOME}
