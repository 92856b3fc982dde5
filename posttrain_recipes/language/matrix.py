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
from posttrain_recipes.language.nodes import Node, stage_names
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.registry import suggest

MAX_LABEL = 60
"""A longer label of a variant is replaced by its number."""


@dataclass(frozen=True)
class Axis:
    """Paths whose values change together; one path, or the ones under `pair:`."""

    paths: tuple[tuple[str, ...], ...]
    values: tuple[tuple[Node, ...], ...]
    """By choice, then by path."""
    names: tuple[str, ...] = ()
    """What labels call the paths."""

    def labels(self, choice: int) -> Labels:
        """What tells this choice from the others of the axis."""
        return tuple(
            (name, _text(value, choice))
            for name, value in zip(self.names, self.values[choice], strict=True)
        )


def _text(value: Node, choice: int) -> str:
    plain = value.plain()
    if isinstance(plain, bool) or plain is None:
        return json.dumps(plain)
    if isinstance(plain, float):
        return f"{plain:g}"
    if isinstance(plain, dict):
        # Options of a plugin: the file is what tells data sets apart, most of the time.
        short = plain.get("label") or plain.get("path") or plain.get("use")
        text = str(short).rsplit("/", 1)[-1].split(".")[0] if short else ""
        return f"{choice + 1}-{text}" if text else str(choice + 1)
    return str(choice + 1) if isinstance(plain, list) else str(plain).rsplit("/", 1)[-1]


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
                axes.append(Axis((parts,), tuple((value,) for value in values.value)))
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
    return Axis(
        tuple(parts for parts, _ in found),
        tuple(tuple(values.value[i] for _, values in found) for i in range(count)),
    )


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
    return {p: ".".join(p[1:]) if counts.count(s) > 1 else s for p, s in short.items()}


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
    for number, variant in enumerate(variants):
        calls: dict[str, str] = {}
        for one in variant.flat:
            mine = _labels(axes, variant.chosen, matter[one.origin.name])
            text = show_labels(mine)
            if len(text) > MAX_LABEL:
                text = str(number + 1)
            head, _, seed = one.origin.name.partition("@")
            calls[one.origin.name] = "@".join(filter(None, [head, _joined(text, seed)]))
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
