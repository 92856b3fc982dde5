"""YAML text as nodes: plain data, typed as YAML 1.2 does, with the place of every value."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

import yaml

from posttrain_recipes.errors import Fault, Location, RecipeError
from posttrain_recipes.language.nodes import Node

MAX_BYTES = 1_000_000
"""A recipe larger than this is a mistake, such as a data file in its place."""
MAX_NODES = 50_000
"""Keys and values of a recipe; more are a mistake too, or aliases that multiply."""
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
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_TOO_DEEP = f"more than {MAX_DEPTH} mappings and lists inside one another"
_TOO_MANY = f"more than {MAX_NODES:,} keys and values: too large for a recipe"
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "map", "seq")}


def parse(text: str, file: str) -> Node:
    """YAML text as nodes. Only plain data: no tags, no duplicate keys; `1e-4` is a float.

    Raises:
        RecipeError: with the line and column of what cannot be read; it is no mapping.
    """
    root = parse_any(text, file)
    if not isinstance(root.value, dict):
        fault = Fault(
            root.at, "", "a recipe is a mapping: 'name:', 'model:', 'stages:'", code="bad-yaml"
        )
        raise RecipeError([fault])
    return root


def parse_any(text: str, file: str) -> Node:
    """As `parse`, of a list or a single value too."""
    try:
        tree = _composed(text)
    except RecursionError:
        raise RecipeError([Fault(Location(file), "", _TOO_DEEP, code="bad-yaml")]) from None
    except _TooMany as error:
        raise RecipeError(
            [Fault(_at_mark(error.mark, file), "", _TOO_MANY, code="bad-yaml")]
        ) from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_syntax_fault(error, text, file)]) from None
    except yaml.YAMLError as error:
        raise RecipeError(
            [Fault(Location(file), "", f"not YAML: {error}", code="bad-yaml")]
        ) from None
    if tree is None:
        raise RecipeError([Fault(Location(file, 1, 1), "", "the recipe is empty", code="bad-yaml")])
    return _Converter(file).convert(tree)


@lru_cache(maxsize=4)
def _composed(text: str) -> Any:
    """The nodes of PyYAML. Each preset of a recipe is read from the same text, which takes most of
    the time."""
    return yaml.compose(text, Loader=_Loader)


class _TooMany(Exception):
    """There are more nodes than a recipe may have."""

    def __init__(self, mark: yaml.Mark) -> None:
        self.mark = mark


class _Loader(yaml.SafeLoader):
    """Safe YAML whose plain scalars stay untyped here: `scalar` types them as YAML 1.2 does. Nodes
    are counted as they come: to read millions of them takes minutes."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.count += 1
        if self.count > MAX_NODES:
            raise _TooMany(self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def _syntax_fault(error: yaml.MarkedYAMLError, text: str, file: str) -> Fault:
    mark = error.problem_mark or error.context_mark
    where = _at_mark(mark, file) if mark else Location(file)
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    if re.search(r"[:\[,{]\s*>=?\s*[-.\d]", line):
        return Fault(where, "", "a bound with '>' stands in quotes: \">= 0.8\"", code="bad-yaml")
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in (error.problem or ""):
        return Fault(where, "", "a tab; YAML is indented with spaces", code="bad-yaml")
    problem = (error.problem or "not YAML").replace("could not find expected", "missing")
    context = f" {error.context}" if error.context else ""
    return Fault(where, "", f"not YAML: {problem}{context}", code="bad-yaml")


def _at_mark(mark: yaml.Mark, file: str) -> Location:
    return Location(file, mark.line + 1, mark.column + 1)


def _place(node: yaml.Node, file: str) -> Location:
    return _at_mark(node.start_mark, file)


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
            raise RecipeError([Fault(at, path, _TOO_MANY, code="bad-yaml")])
        if any(node is above for above in self.open):
            raise RecipeError([Fault(at, path, "an alias that contains itself", code="bad-yaml")])
        if len(self.open) == MAX_DEPTH:
            raise RecipeError([Fault(at, path, _TOO_DEEP, code="bad-yaml")])
        self.open.append(node)
        try:
            return Node(self._value(node, at, path), at, key_at)
        finally:
            self.open.pop()

    def _value(self, node: yaml.Node, at: Location, path: str) -> Any:
        if node.tag not in _TAGS:
            self.faults.append(
                Fault(at, path, f"the tag {node.tag} is not allowed in a recipe", code="bad-yaml")
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._node(n, None, f"{path}[{i}]") for i, n in enumerate(node.value)]
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return scalar(node.value) if plain else self._text(node.value, at, path)

    def _text(self, text: str, at: Location, path: str) -> str:
        r"""A quoted text, in which `"\ud83d\ude00"` is one character, as in JSON. NUL and halves of
        characters are in no file's name and no message that is sent: they are faults."""
        if not _NO_TEXT.search(text):
            return text
        try:
            whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            whole = ""
        if not whole or "\0" in whole:
            self.faults.append(
                Fault(at, path, "a NUL, or half of a character: that is no text", code="bad-yaml")
            )
        return whole

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key_node, value_node in node.value:
            at = _place(key_node, self.file)
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append(Fault(at, path, "a key must be a plain word", code="bad-yaml"))
                continue
            key = self._text(key_node.value, at, path)
            inner = f"{path}.{key}" if path else key
            if key == "<<":
                self.faults.append(
                    Fault(at, path, "merge keys are not read; use 'extends:'", code="bad-yaml")
                )
            elif key in found:
                first = found[key].key_at
                line = first.line if first else 0
                self.faults.append(
                    Fault(at, inner, f"given twice; first on line {line}", code="bad-yaml")
                )
            else:
                found[key] = self._node(value_node, at, inner)
        return found


def parse_value(text: str, at: Location) -> Node:
    """The text of one value as nodes that all stand `at` one place.

    Raises:
        yaml.YAMLError, RecipeError, RecursionError: it cannot be read.
    """
    tree = yaml.compose(text, Loader=_Loader)
    node = Node(None, at) if tree is None else _Converter(at.file).convert(tree)
    return placed(node, at)


def placed(node: Node, place: Location) -> Node:
    """The node, and all in it, as what stands at one place."""
    value: Any = node.value
    if isinstance(value, dict):
        value = {key: placed(inner, place) for key, inner in value.items()}
    elif isinstance(value, list):
        value = [placed(inner, place) for inner in value]
    return Node(value, place, place)


def scalar(text: str) -> Any:
    """A plain scalar as YAML 1.2's core schema types it: `1e-4` a float, `no` a string."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) <= MAX_DIGITS else text
    if _FLOAT.fullmatch(text):
        return float(text)
    return _SPECIAL_FLOAT.get(text.lower(), text)
