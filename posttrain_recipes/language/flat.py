"""A stage of the flat list that a recipe becomes, where it comes from, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from posttrain_recipes.language.nodes import Key, Node

MAX_STAGES = 1000
"""A recipe that expands to more is a mistake."""
BASE = "base"

Labels = tuple[tuple[str, str], ...]
"""What tells a variant from the others: `(("beta", "0.1"), ("seed", "0"))`."""


@dataclass(frozen=True)
class Origin:
    """Where a stage of the flat list comes from."""

    name: str
    """Its name in the flat list: `dpo-2@beta=0.1`."""
    source: str
    """Its name in the recipe: `dpo`."""
    key: Key
    """Where it is written."""
    labels: Labels = ()
    """The variant that it belongs to; empty where all variants share it."""
    loop: str | None = None
    """What the loop around it is called."""
    round: int = 0
    """Of its loop, from 1; 0 outside of one."""
    before: str | None = None
    """The same stage of the round before: what stands in for it where the loop ended early."""
    until: tuple[tuple[str, str], ...] = ()
    """Conditions on the round before that leave this one out, as `(subject, bound)`."""
    comparison: str | None = None
    branch: str | None = None
    last: bool = False
    """Whether it is the last of its branch: what the branch is judged by."""

    @property
    def label(self) -> str:
        """`beta=0.1,seed=0`; empty where it is the same in every variant."""
        return show_labels(self.labels)


def show_labels(labels: Labels) -> str:
    """`beta=0.1,seed=0`."""
    return ",".join(f"{name}={value}" for name, value in labels)


@dataclass
class Flat:
    """A stage of one variant; references in it are names of the same variant."""

    node: Node
    origin: Origin


def called(item: Node) -> Any:
    """What an eval is called: by name, by itself, or by its plugin."""
    if isinstance(item.value, dict):
        found = item.child("name") or item.child("use")
        return found.value if found else None
    return item.value


def rename(one: Flat, names: Mapping[str, str]) -> None:
    """The stage, and every reference in it, by the new names."""
    one.node = renamed(one.node, names, top=True)
    origin = one.origin
    one.origin = replace(
        origin,
        name=names.get(origin.name, origin.name),
        before=names.get(origin.before, origin.before) if origin.before else None,
    )


def renamed(node: Node, names: Mapping[str, str], *, top: bool = False) -> Node:
    """`node` with every `{stage: NAME}` by the new names; of a stage (`top`), what names stages."""
    if isinstance(node.value, list):
        return replace(node, value=[renamed(n, names) for n in node.value])
    if not isinstance(node.value, dict):
        return node
    found = {k: renamed(n, names) for k, n in node.value.items()}
    for word in ("name", "init_from") if top else ("stage",):
        if word in found and isinstance(found[word].value, str):
            value = found[word].value
            found[word] = replace(found[word], value=names.get(value, value))
    return replace(node, value=found)


@dataclass
class Variant:
    """A choice for each axis of the matrix, and the stages that it comes to."""

    chosen: tuple[int, ...]
    flat: list[Flat]
