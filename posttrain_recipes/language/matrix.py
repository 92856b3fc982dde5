"""`matrix`: the values to try, and one list of all variants in which each stage is there once."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain_recipes.errors import Fault, Location
from posttrain_recipes.language.flat import (
    MAX_STAGES,
    Flat,
    Labels,
    Variant,
    called,
    rename,
    renamed,
    show_labels,
)
from posttrain_recipes.language.labels import alike, distinct_labels, first_equal, safe
from posttrain_recipes.language.nodes import Node, stage_names
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.registry import suggest

MAX_LABEL = 60
"""A longer label of a variant is replaced by its number."""


MAX_NAME_BYTES = 170
"""Longer names get the number too: with an eval's name behind them they must fit a file system."""


@dataclass(frozen=True)
class Axis:
    """Paths whose values change together; one path, or the ones under `pair:`."""

    paths: tuple[tuple[str, ...], ...]
    values: tuple[tuple[Node, ...], ...]
    """By choice, then by path."""
    names: tuple[str, ...] = ()
    """What labels call the paths."""
    shown: tuple[tuple[str, ...], ...] = ()
    """What labels call the values, by choice, then by path."""
    first: tuple[int, ...] = ()
    """By choice: the first one with equal values, which is itself where none is given twice."""

    def labels(self, choice: int) -> Labels:
        """What tells this choice from the others of the axis."""
        return tuple(zip(self.names, self.shown[choice], strict=True))


def read_axes(recipe: Recipe, matrix: Node, faults: list[Fault]) -> list[Axis]:
    """What a matrix varies; what is wrong with it goes to `faults`."""
    axes: list[Axis] = []
    if not isinstance(matrix.value, dict):
        return axes
    for path, values in matrix.value.items():
        if path == "pair":
            groups = values.value if isinstance(values.value, list) else [values]
            axes += [axis for group in groups if (axis := _pair(recipe, group, faults))]
        elif isinstance(values.value, list) and values.value:
            parts = _path(recipe, path, values, faults)
            if parts:
                axes.append(_axis(path, (parts,), [(v,) for v in values.value], faults))
    every = [path for axis in axes for path in axis.paths]
    for path in {path for path in every if every.count(path) > 1}:
        shown = ".".join(path)
        faults.append(Fault(matrix.key_at or matrix.at, "matrix", f"'{shown}' is varied twice"))
    names = _short(every)
    return [replace(axis, names=tuple(names[path] for path in axis.paths)) for axis in axes]


def _pair(recipe: Recipe, group: Node, faults: list[Fault]) -> Axis | None:
    if not isinstance(group.value, dict):
        return None
    found = [
        (parts, values)
        for path, values in group.value.items()
        if isinstance(values.value, list) and (parts := _path(recipe, path, values, faults))
    ]
    lengths = {len(values.value) for _, values in found}
    if len(lengths) > 1:
        shown = ", ".join(f"{parts[-1]} has {len(values.value)}" for parts, values in found)
        message = f"values under 'pair:' go together, so each list has as many: {shown}"
        faults.append(Fault(group.key_at or group.at, "matrix.pair", message))
    count = min(lengths, default=0)
    if not count:
        return None
    rows = [tuple(values.value[i] for _, values in found) for i in range(count)]
    return _axis("pair", tuple(parts for parts, _ in found), rows, faults)


def _axis(
    path: str,
    paths: tuple[tuple[str, ...], ...],
    rows: Sequence[tuple[Node, ...]],
    faults: list[Fault],
) -> Axis:
    """The axis over the rows; a row that is there twice is said."""
    plain = [tuple(node.plain() for node in row) for row in rows]
    first = first_equal(plain)
    for choice, same in enumerate(first):
        if choice != same:
            message = f"value {choice + 1} is the same as value {same + 1}; remove one"
            faults.append(Fault(rows[choice][0].at, f"matrix.{path}", message))
    return Axis(paths, tuple(rows), shown=tuple(distinct_labels(plain, first)), first=first)


def _path(recipe: Recipe, path: str, node: Node, faults: list[Fault]) -> tuple[str, ...] | None:
    """`stages.dpo.method.beta` in parts, where the matrix can vary it."""
    parts = tuple(path.split("."))
    at: Location = node.key_at or node.at
    if parts in (("seed",), ("model",)) or (parts[0] == "lora" and len(parts) == 2):
        return parts
    if parts[0] != "stages" or len(parts) < 3 or not all(parts):
        why = "a matrix varies 'seed', 'model', 'lora.OPTION' and 'stages.STAGE....' alone"
        if parts[0] == "engine":
            why += "; run the recipe once for each engine and see 'ptl compare'"
        faults.append(Fault(at, f"matrix.{path}", why))
        return None
    known = stage_names(recipe.root.child("stages"))
    if parts[1] not in known:
        message = f"no stage is named '{parts[1]}'; {suggest(parts[1], known)}"
        faults.append(Fault(at, f"matrix.{path}", message))
        return None
    return parts


def _short(paths: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The last part of each path, with the stage in front where two end alike."""
    short: dict[tuple[str, ...], str] = {}
    for path in paths:
        alike = [other for other in paths if other != path and other[-1] == path[-1]]
        short[path] = f"{path[1]}.{path[-1]}" if alike and len(path) > 2 else path[-1]
    counts = list(short.values())
    return {p: safe(".".join(p[1:]) if counts.count(s) > 1 else s) for p, s in short.items()}


def choices(axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    """Every combination, as the index of a value on each axis."""
    found = itertools.product(*(range(len(axis.values)) for axis in axes))
    return list(itertools.islice(found, MAX_STAGES + 1))


def share(variants: Sequence[Variant], axes: Sequence[Axis]) -> list[Flat]:
    """One list of the stages of all variants, each stage once, named by what it depends on."""
    kinds = {variant.chosen: _kinds(variant) for variant in variants}
    names = dict.fromkeys(one.origin.name for variant in variants for one in variant.flat)
    matter = {name: [_matters(name, place, kinds) for place in range(len(axes))] for name in names}
    found: list[Flat] = []
    known: set[str] = set()
    for variant, calls in zip(variants, _names(variants, axes, matter), strict=True):
        emitted = [calls[one.origin.name] for one in variant.flat]
        for one in variant.flat:
            # A name that a variant has twice is the planner's to tell.
            if calls[one.origin.name] not in known:
                mine = _labels(axes, variant.chosen, matter[one.origin.name])
                made = Flat(one.node, replace(one.origin, labels=(*mine, *one.origin.labels)))
                rename(made, calls)
                found.append(made)
        known.update(emitted)
    return found


def _names(
    variants: Sequence[Variant], axes: Sequence[Axis], matter: Mapping[str, Sequence[bool]]
) -> list[dict[str, str]]:
    """By variant: stage as the variant calls it -> its name in the list of all."""
    named: list[dict[str, tuple[str, tuple[int, ...]]]] = []
    meant: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    numbers: dict[tuple[str, tuple[int, ...]], int] = {}
    for number, variant in enumerate(variants, start=1):
        named.append({})
        for name in dict.fromkeys(one.origin.name for one in variant.flat):
            text = show_labels(_labels(axes, variant.chosen, matter[name]))
            call = _call(name, text)
            if len(text) > MAX_LABEL or len(call.encode()) > MAX_NAME_BYTES:
                call = _call(name, str(number))
            chosen = tuple(
                axis.first[choice]
                for axis, choice, matters in zip(axes, variant.chosen, matter[name], strict=True)
                if matters
            )
            named[-1][name] = call, chosen
            meant.setdefault(alike(call), set()).add((name, chosen))
            numbers.setdefault((name, chosen), number)
    # Labels that differ can still read the same in a row: `a=x,b=y` may be one value of `a`.
    return [
        {
            name: _call(name, str(numbers[name, chosen])) if len(meant[alike(call)]) > 1 else call
            for name, (call, chosen) in calls.items()
        }
        for calls in named
    ]


def _call(name: str, text: str) -> str:
    """The stage `name` of a variant with what tells the variant from others."""
    head, _, seed = name.partition("@")
    return "@".join(filter(None, [head, _joined(text, seed)]))


def _joined(*parts: str) -> str:
    return ",".join(filter(None, parts))


def _labels(axes: Sequence[Axis], chosen: tuple[int, ...], matter: Sequence[bool]) -> Labels:
    found: Labels = ()
    for axis, choice, matters in zip(axes, chosen, matter, strict=True):
        found += axis.labels(choice) if matters else ()
    return found


def _matters(name: str, place: int, kinds: Mapping[tuple[int, ...], Mapping[str, str]]) -> bool:
    """Whether the stage changes along this axis, for some values of the others."""
    first: dict[tuple[int, ...], str | None] = {}
    for chosen, kind in kinds.items():
        rest = (*chosen[:place], *chosen[place + 1 :])
        if first.setdefault(rest, kind.get(name)) != kind.get(name):
            return True
    return False


def _kinds(variant: Variant) -> dict[str, str]:
    """By stage: text that is equal where a stage and all that it builds on are."""
    kinds: dict[str, str] = {}
    evals: dict[Any, str] = {}
    for one in variant.flat:
        node = renamed(one.node, kinds, top=True)
        plain = {k: v for k, v in node.plain().items() if k != "name"}
        asked = one.node.child("eval")
        items = asked.value if asked and isinstance(asked.value, list) else []
        named = [evals.get(item.value) for item in items if isinstance(item.value, str)]
        text = json.dumps([plain, named], sort_keys=True, default=str)
        kinds[one.origin.name] = f"{one.origin.name}#{_digest(text)}"
        for item in items:
            if isinstance(item.value, dict):
                # On the stage's own test split it is another eval for another stage.
                own = "" if "dataset" in item.value else kinds[one.origin.name]
                evals[called(item)] = json.dumps([item.plain(), own], sort_keys=True, default=str)
    return kinds


def _digest(text: str) -> str:
    """A short hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
