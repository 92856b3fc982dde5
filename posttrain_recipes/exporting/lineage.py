"""What a stage's weights come from: the stages of its run, and what each of them is to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain_recipes.language.expansion import expand
from posttrain_recipes.language.nodes import Node
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.planning.gates import starts
from posttrain_recipes.store import RunRecord, StageRecord

START, PART, RECORDS, HELPER = "start", "part", "records", "helper"
_NAMES = {
    "of": "part of",
    "since": "what the parts are counted from in",
    "model": "model that is asked in",
}
"""Options of a method that name a stage -> what that is to the method's stage; else by the name of
the option: the teacher of, the judge of."""


@dataclass
class Ancestor:
    """A stage that another one comes from, or that one itself."""

    stage: StageRecord
    spec: Mapping[str, Any]
    """As the recipe has it, without matrix, loops and comparisons around it."""
    roles: list[tuple[str, str]] = field(default_factory=list)
    """What it is, as `start of` or `teacher of`, and to which stage; empty for the one itself."""
    weights: bool = False
    """Whether its weights are in those of the one."""
    data: bool = False
    """Whether its data are what the one was trained on; else they are of a teacher or a judge."""
    outside: str | None = None
    """The checkpoint that it starts from where no stage of the run made that."""

    @property
    def trained(self) -> bool:
        """Whether it left other weights than it began with: one that collects records does not."""
        start, end = self.stage.start, self.stage.checkpoint
        return start is None or end is None or start.state_uri != end.state_uri


def of(run: RunRecord, stage: str) -> list[Ancestor]:
    """A stage and those that it comes from, in the recipe's order; itself is the last.

    What the kept recipe does not name has no `spec`, and nothing is known of where it comes from.
    """
    known = {one.name: one for one in run.stages}
    flat, stand_ins = _flat(run)
    start = starts(list(flat.values()))
    found = {stage: Ancestor(known[stage], flat.get(stage, {}), weights=True, data=True)}
    for name in reversed(flat):  # only stages above are referred to, so each is complete by now
        if (one := found.get(name)) is None:
            continue
        for kind, role, other in _edges(one.spec, start[name]):
            other = stand_ins.get(other, other)
            if other not in known or other not in flat:
                one.outside = other if kind == START and "://" in other else one.outside
                continue
            source = found.setdefault(other, Ancestor(known[other], flat[other]))
            source.weights |= one.weights and kind in (START, PART)
            source.data |= kind == RECORDS and one.data
            source.data |= kind in (START, PART) and one.weights and source.trained
            if (said := (role, name)) not in source.roles:
                source.roles.append(said)
    return [found[name] for name in known if name in found]


def _flat(run: RunRecord) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """The stages of the recipe by name; and what stands in for those that a loop left out."""
    if not isinstance(run.resolved, Mapping):
        return {}, {}
    recipe, origins, _ = expand(Recipe(Node.of(run.resolved), Path()))
    listed = recipe.data.get("stages")
    flat = {
        str(one["name"]): one
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, Mapping) and "name" in one
    }
    left_out = {one.name for one in run.stages if one.status == "left_out"}
    stand_ins: dict[str, str] = {}
    for origin in origins:
        if origin.name in left_out and origin.before:
            stand_ins[origin.name] = stand_ins.get(origin.before, origin.before)
    return flat, stand_ins


def _edges(spec: Mapping[str, Any], start: str) -> Iterator[tuple[str, str, str]]:
    """What a stage refers to: the kind, the role in words, and a stage's name."""
    method = spec.get("method")
    merges = isinstance(method, Mapping) and method.get("use") == "merge"
    if not merges:  # a merge is made of its parts alone
        yield START, "start of", start
    for key, name in _named(method, ""):
        part = merges and key == "of"
        yield PART if part else HELPER, _NAMES.get(key, f"{key} of"), name
    for key, name in _named(spec.get("reward"), ""):
        yield HELPER, "reward model of" if key == "model" else f"{key} of", name
    for _, name in _named(spec.get("dataset"), ""):
        yield RECORDS, "made data of", name


def _named(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every `{stage: NAME}` with the option that it stands in."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from _named(one, key)
    elif isinstance(value, Mapping):
        if isinstance(value.get("stage"), str):
            yield key, value["stage"]
        for name, inner in value.items():
            yield from _named(inner, str(name))
