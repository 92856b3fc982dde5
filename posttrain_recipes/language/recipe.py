"""A recipe as text: YAML with positions, `extends`, presets and `--set`, merged into one tree.

Every value keeps the place it was written at, through all merging, so that an error found later
can point at file, line and column. Nothing here knows what the keys mean.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from posttrain_recipes.errors import Fault, Location, RecipeError, UsageError, display_path

Key = tuple[str | int, ...]
"""The path of a value: `("stages", 0, "method", "learning_rate")`."""

NESTED = ("stages", "compare")
"""Keys of a block in `stages:` under which more stages stand."""
MAX_NODES = 100_000
"""A recipe larger than this is a mistake, or aliases that multiply."""
MAX_DEPTH = 50
"""Mappings and lists inside one another."""
MAX_DIGITS = 100
"""Digits of a whole number; a longer one stays text, which no option for numbers takes."""

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INT = re.compile(r"[-+]?[0-9]+")
_SPECIAL_FLOAT = {".inf": math.inf, "-.inf": -math.inf, "+.inf": math.inf, ".nan": math.nan}
_CONSTANTS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_TOO_DEEP = f"more than {MAX_DEPTH} mappings and lists inside one another"
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "map", "seq")}


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


@dataclass(frozen=True)
class Recipe:
    """A recipe after `extends`, preset and overrides, not yet validated."""

    root: Node
    path: Path
    preset: str | None = None
    source: Recipe | None = None
    """The recipe as it is written, where this one is its expansion to a flat list of stages."""
    keys: tuple[Key, ...] = ()
    """By stage of the expansion: where the source has it."""

    @property
    def data(self) -> dict[str, Any]:
        """The resolved recipe as plain values: what is hashed, logged and reproducible."""
        return self.root.plain()

    @property
    def base_dir(self) -> Path:
        """What relative paths in the recipe start from."""
        return self.path.parent

    def locate(self, key: Key, *, of_key: bool = False) -> Location:
        """Where the value at `key` stands, or the nearest one above it that does.

        `of_key` asks for the place of the key itself: an unknown option, say.
        """
        node = self.root
        for part in key:
            child = node.child(part)
            if child is None:
                return node.key_at or node.at
            node = child
        return node.key_at if of_key and node.key_at else node.at

    def fault(self, key: Key, message: str, *, of_key: bool = False) -> Fault:
        """A fault at `key`; stages are named by their name, not their number."""
        return Fault(self.locate(key, of_key=of_key), self.show_key(key), message)

    def show_key(self, key: Key) -> str:
        """`key` as a person writes it: `stages.sft.method.learning_rate`, `eval[0]`."""
        if self.source is not None and key[:1] == ("stages",) and len(key) > 1:
            index = key[1]
            written = self.keys[index] if isinstance(index, int) else ()
            return self.source.show_key((*written, *key[2:]))
        shown = ""
        node: Node | None = self.root
        for place, part in enumerate(key):
            node = node.child(part) if node else None
            if isinstance(part, str):
                shown += f".{part}" if shown else part
                continue
            words = [p for p in key[:place] if isinstance(p, str)]
            name = _name(node) if node and words[:1] == ["stages"] else None
            if name and all(word in NESTED for word in words):
                # However deep a stage stands, it is addressed by its name alone.
                shown = f"stages.{name}"
            else:
                shown += f"[{part}]"
        return shown


def load(path: Path, *, preset: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: `extends`, then the preset, then `--set` overrides; the last wins.

    Without `preset`, the preset `quick` is used where the recipe has one.

    Raises:
        RecipeError: text that is not YAML, with the place.
        UsageError: a missing file, an unknown preset or an override that cannot be read.
    """
    root = _load_file(path, seen=())
    presets = _pop(root, "presets")
    choices = presets.value if presets and isinstance(presets.value, dict) else {}
    if presets is not None and not isinstance(presets.value, dict):
        raise RecipeError([Fault(presets.at, "presets", "presets must be a mapping of names")])
    if preset is None and "quick" in choices:
        preset = "quick"
    if preset is not None:
        if preset not in choices:
            near = difflib.get_close_matches(preset, list(choices), n=1)
            there = f"did you mean '{near[0]}'?" if near else f"there is: {', '.join(choices)}"
            raise UsageError(
                f"{display_path(path)} has no preset '{preset}'",
                hint=there if choices else "this recipe has no presets; run it without --preset",
            )
        root = merge(root, choices[preset])
    for override in overrides:
        root = merge(root, _override(override, root))
    late = [node for key in ("extends", "presets") if (node := root.value.get(key))]
    if late:
        why = "'extends:' and 'presets:' are read from a recipe's file alone"
        raise RecipeError([Fault(node.key_at or node.at, "", why) for node in late])
    return Recipe(root, path, preset)


def preset_names(path: Path) -> list[str]:
    """The presets that a recipe offers, its own and those of what it extends.

    Raises:
        RecipeError, UsageError: as `load`.
    """
    presets = _load_file(path, seen=()).value.get("presets")
    return list(presets.value) if presets and isinstance(presets.value, dict) else []


def _load_file(path: Path, seen: tuple[Path, ...]) -> Node:
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(display_path(p) for p in (*seen, resolved))
        raise UsageError(f"recipes extend each other in a circle: {chain}")
    root = parse(_read(path), display_path(path))
    base = _pop(root, "extends")
    if base is None:
        return root
    if not isinstance(base.value, str):
        raise RecipeError([Fault(base.at, "extends", "extends must be the path of a recipe")])
    parent = path.parent / base.value
    if not parent.is_file():
        raise RecipeError([Fault(base.at, "extends", f"there is no file {display_path(parent)}")])
    return merge(_load_file(parent, (*seen, resolved)), root)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"there is no recipe {display_path(path)}", hint=_nearby(path)) from None
    except IsADirectoryError:
        raise UsageError(f"{display_path(path)} is a directory", hint=_nearby(path)) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{display_path(path)} is not UTF-8 text", why=str(error)) from None
    except OSError as error:
        raise UsageError(f"cannot read {display_path(path)}", why=str(error)) from None


def _nearby(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    there = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.5)
    if near:
        return f"did you mean {display_path(folder / near[0])}?"
    if there:
        return f"recipes in {display_path(folder)}: {', '.join(there)}"
    return "'ptl init' writes a recipe to start from"


# --- YAML ----------------------------------------------------------------------------------------


def parse(text: str, file: str) -> Node:
    """YAML text as nodes. Only plain data: no tags, no duplicate keys; `1e-4` is a float.

    Raises:
        RecipeError: with the line and column of what cannot be read.
    """
    try:
        tree = yaml.compose(text, Loader=_Loader)
    except RecursionError:
        raise RecipeError([Fault(Location(file), "", _TOO_DEEP)]) from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_syntax_fault(error, text, file)]) from None
    except yaml.YAMLError as error:
        raise RecipeError([Fault(Location(file), "", f"not YAML: {error}")]) from None
    if tree is None:
        raise RecipeError([Fault(Location(file, 1, 1), "", "the recipe is empty")])
    if not isinstance(tree, yaml.MappingNode):
        fault = Fault(_place(tree, file), "", "a recipe is a mapping: 'name:', 'model:', 'stages:'")
        raise RecipeError([fault])
    return _Converter(file).convert(tree)


class _Loader(yaml.SafeLoader):
    """Safe YAML whose plain scalars stay untyped here: `_scalar` types them as YAML 1.2 does."""

    yaml_implicit_resolvers: dict[str, Any] = {}


def _syntax_fault(error: yaml.MarkedYAMLError, text: str, file: str) -> Fault:
    mark = error.problem_mark or error.context_mark
    where = Location(file, mark.line + 1, mark.column + 1) if mark else Location(file)
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    if re.search(r"[:\[,{]\s*>=?\s*[-.\d]", line):
        return Fault(where, "", "a bound with '>' stands in quotes: \">= 0.8\"")
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in (error.problem or ""):
        return Fault(where, "", "a tab; YAML is indented with spaces")
    problem = (error.problem or "not YAML").replace("could not find expected", "missing")
    context = f" {error.context}" if error.context else ""
    return Fault(where, "", f"not YAML: {problem}{context}")


def _place(node: yaml.Node, file: str) -> Location:
    return Location(file, node.start_mark.line + 1, node.start_mark.column + 1)


class _Converter:
    def __init__(self, file: str) -> None:
        self.file = file
        self.count = 0
        self.faults: list[Fault] = []
        self.open: list[yaml.Node] = []

    def convert(self, tree: yaml.Node) -> Node:
        root = self._node(tree, None, "")
        if self.faults:
            raise RecipeError(self.faults)
        return root

    def _node(self, node: yaml.Node, key_at: Location | None, path: str) -> Node:
        at = _place(node, self.file)
        self.count += 1
        if self.count > MAX_NODES:
            raise RecipeError([Fault(at, path, f"more than {MAX_NODES} values: too large")])
        if any(node is above for above in self.open):
            raise RecipeError([Fault(at, path, "an alias that contains itself")])
        if len(self.open) == MAX_DEPTH:
            raise RecipeError([Fault(at, path, _TOO_DEEP)])
        self.open.append(node)
        try:
            return Node(self._value(node, at, path), at, key_at)
        finally:
            self.open.pop()

    def _value(self, node: yaml.Node, at: Location, path: str) -> Any:
        if node.tag not in _TAGS:
            self.faults.append(Fault(at, path, f"the tag {node.tag} is not allowed in a recipe"))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._node(n, None, f"{path}[{i}]") for i, n in enumerate(node.value)]
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return scalar(node.value) if plain else node.value

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key_node, value_node in node.value:
            at = _place(key_node, self.file)
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append(Fault(at, path, "a key must be a plain word"))
                continue
            key = key_node.value
            inner = f"{path}.{key}" if path else key
            if key == "<<":
                self.faults.append(Fault(at, path, "merge keys are not read; use 'extends:'"))
            elif key in found:
                first = found[key].key_at
                line = first.line if first else 0
                self.faults.append(Fault(at, inner, f"given twice; first on line {line}"))
            else:
                found[key] = self._node(value_node, at, inner)
        return found


def scalar(text: str) -> Any:
    """A plain scalar as YAML 1.2's core schema types it: `1e-4` a float, `no` a string."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) <= MAX_DIGITS else text
    if _FLOAT.fullmatch(text):
        return float(text)
    return _SPECIAL_FLOAT.get(text.lower(), text)


# --- merging -------------------------------------------------------------------------------------


def merge(base: Node, over: Node, path: str = "") -> Node:
    """`over` on top of `base`: mappings merge key by key, anything else is replaced.

    A mapping over a list of named mappings (`stages`, `eval`) merges by name. A mapping whose
    `use:` names another plugin replaces, since the old plugin's options mean nothing to the new
    one. `path` is where both stand, for errors.
    """
    if isinstance(base.value, dict) and isinstance(over.value, dict):
        if _use(over) is not None and _use(over) != _use(base):
            return over
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


def _merge_named(base: Node, over: Node, path: str) -> Node:
    items = list(base.value)
    names = [_name(item) or _name(item, "use") for item in items]
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
            near = difflib.get_close_matches(key, known, n=1)
            tail = f"did you mean '{near[0]}'?" if near else f"there is: {', '.join(known)}"
            message = f"nothing is named '{key}'; {tail}"
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
        found += [name] if (name := _name(item)) else []
        found += _inside(item)
    return found


def _name(node: Node, key: str = "name") -> str | None:
    if not isinstance(node.value, dict):
        return None
    name = node.value.get(key)
    return name.value if name is not None and isinstance(name.value, str) else None


def _pop(root: Node, key: str) -> Node | None:
    found = root.value.pop(key, None)
    assert found is None or isinstance(found, Node)
    return found


def _override(text: str, root: Node) -> Node:
    """`a.b.c=value` as a tree of one path; stages are addressed by name."""
    path, separator, value = text.partition("=")
    if not separator or not path.strip():
        raise UsageError(
            f"--set {text!r} cannot be read",
            hint="write --set stages.sft.method.learning_rate=1e-4",
        )
    place = Location(f"--set {text}")
    try:
        tree = yaml.compose(value, Loader=_Loader)
        node = Node(None, place) if tree is None else _Converter(place.file).convert(tree)
    except (yaml.YAMLError, RecipeError, RecursionError) as error:
        raise UsageError(f"--set {text!r}: the value is not YAML", why=str(error)) from None
    node = _at(node, place)
    for part in reversed(path.strip().split(".")):
        node = Node({part: replace(node, key_at=place)}, place)
    return node


def _at(node: Node, place: Location) -> Node:
    value: Any = node.value
    if isinstance(value, dict):
        value = {key: _at(inner, place) for key, inner in value.items()}
    elif isinstance(value, list):
        value = [_at(inner, place) for inner in value]
    return Node(value, place, place)


# --- environment ---------------------------------------------------------------------------------


def environment_names(value: str) -> list[str]:
    """The names in `${env:NAME}` of a string."""
    return _ENV.findall(value)


def expand_environment(value: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """`value` with `${env:NAME}` replaced; what comes back is never logged or stored.

    Raises:
        UsageError: a variable that is not set.
    """
    if isinstance(value, dict):
        return {key: expand_environment(inner, environ) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand_environment(inner, environ) for inner in value]
    if not isinstance(value, str):
        return copy.copy(value)

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in environ:
            raise UsageError(
                f"the environment variable {name} is not set", hint=f"export {name}=..."
            )
        return environ[name]

    return _ENV.sub(look_up, value)
