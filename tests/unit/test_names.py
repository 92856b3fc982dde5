"""A class name stands for one thing in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import posttrain_recipes

PACKAGE = Path(posttrain_recipes.__file__).parent


def classes(node: ast.AST, inside: bool = False) -> Iterator[str]:
    """Names of the classes below `node`, but for the `Config` that a plugin nests in its class."""
    for child in ast.iter_child_nodes(node):
        is_class = isinstance(child, ast.ClassDef)
        if isinstance(child, ast.ClassDef) and not (inside and child.name == "Config"):
            yield child.name
        yield from classes(child, is_class)


def test_no_class_name_is_defined_twice() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        for name in classes(ast.parse(file.read_text(encoding="utf-8"))):
            found[name].append(str(file.relative_to(PACKAGE)))
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
