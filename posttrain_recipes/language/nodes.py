"""The tree of a recipe: values with the places where they stand, and how one tree goes on another.

Nothing here knows what the keys mean, but that stages are addressed by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from posttrain_recipes.errors import Fault, Location, RecipeError
from posttrain_recipes.registry import suggest

Key = tuple[str | int, ...]
"""The path of a value: `("stages", 0, "method", "learning_rate")`."""

NESTED = ("stages", "compare")
"""Keys of a block in `stages:` under which more stages stand."""


@dataclass(frozen=True)
class Node:
    """A value, and where it and its key stand."""

    value: Any
    """A scalar, `dict[str, Node]` or `list[Node]`."""
    at: Location
    key_at: Location | None = None

    def child(self, part: str | int) -> Node | None:
        """The value at a key or an index, where there is one."""
        if isinstance(self.value, dict) and isinstance(part, str):
            return self.value.get(part)
        if isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None

    @classmethod
    def of(cls, value: Any) -> Node:
        """A plain value as nodes that stand nowhere."""
        inner = value
        if isinstance(value, Mapping):
            inner = {key: cls.of(each) for key, each in value.items()}
        elif isinstance(value, list):
            inner = [cls.of(each) for each in value]
        return cls(inner, Location(""))

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def merge(base: Node, over: Node, path: str = "") -> Node:
    """`over` on top of `base`: mappings merge key by key, anything else is replaced.

    A mapping over a list of named mappings (`stages`, `eval`) merges by name. A mapping whose
    `use:` names another plugin replaces, since the old plugin's options mean nothing to the new
    one. `path` is where both stand, for errors.
    """
    if isinstance(base.value, dict) and isinstance(over.value, dict):
        if _use(over) is not None and _use(over) != _use(base):
            return over
        if path == "on_end" and _told(over) and _told(over) != _told(base):
            return over  # a command in place of a webhook is no part of it
        merged = dict(base.value)
        for key, node in over.value.items():
            inner = f"{path}.{key}" if path else key
            merged[key] = merge(merged[key], node, inner) if key in merged else node
        return replace(base, value=merged)
    if isinstance(base.value, list) and isinstance(over.value, dict):
        return _merge_named(base, over, path)
    return over


def _use(node: Node) -> Any:
    use = node.value.get("use")
    return use.value if use is not None else None


def _told(node: Node) -> set[str]:
    return {"command", "webhook"} & node.value.keys()


def _merge_named(base: Node, over: Node, path: str) -> Node:
    items = list(base.value)
    if path == "trackers":
        # A bare name is short for `{use: NAME}`, whose options can be set.
        items = [replace(i, value={"use": i}) if isinstance(i.value, str) else i for i in items]
    names = [name_of(item) or name_of(item, "use") for item in items]
    faults = []
    for key, node in over.value.items():
        if key in names:
            index = names.index(key)
            items[index] = merge(items[index], node, f"{path}.{key}")
        elif key.isdigit() and int(key) < len(items):
            items[int(key)] = merge(items[int(key)], node, f"{path}[{key}]")
        elif (
            place := next((i for i, n in enumerate(items) if key in _inside(n)), None)
        ) is not None:
            block = items[place]
            word = next(w for w in NESTED if key in stage_names(block.child(w)))
            inner = _merge_named(block.value[word], Node({key: node}, over.at), path)
            items[place] = replace(block, value={**block.value, word: inner})
        else:
            known = [name for name in names if name]
            known += [name for item in items for name in _inside(item)]
            message = f"nothing is named '{key}'; {suggest(key, known)}"
            faults.append(Fault(node.key_at or node.at, f"{path}.{key}", message))
    if faults:
        raise RecipeError(faults)
    return replace(base, value=items)


def _inside(item: Node) -> list[str]:
    """The names of the stages in a block, at any depth."""
    return [name for word in NESTED for name in stage_names(item.child(word))]


def stage_names(stages: Node | None) -> list[str]:
    """The names in a list of stages, those inside of blocks too."""
    found = []
    for item in stages.value if stages and isinstance(stages.value, list) else []:
        found += [name] if (name := name_of(item)) else []
        found += _inside(item)
    return found


def name_of(node: Node, key: str = "name") -> str | None:
    """The text under `key`, where there is one."""
    if not isinstance(node.value, dict):
        return None
    name = node.value.get(key)
    return name.value if name is not None and isinstance(name.value, str) else None
