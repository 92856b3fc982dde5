"""`ptl explain`."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from posttrain_recipes.cli.plugins import find, option_lines
from posttrain_recipes.plugin import Eval, Method
from posttrain_recipes.registry import Entry

_WIDEST = 100
_CHECKOUT = Path(__file__).parents[2]


@click.command()
@click.argument("name")
def explain(name: str) -> None:
    """Explain NAME: what it does, when to use it, the loss, the paper, its options."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    for index, entry in enumerate(find(name)):
        if index:
            click.echo()
        article = "an" if entry.kind[0] in "aeiou" else "a"
        click.echo(
            f"{entry.name}, {article} {entry.kind} of {entry.distribution} {entry.version}\n"
        )
        text = inspect.cleandoc(entry.cls.__doc__ or "It says nothing about itself.")
        click.echo(wrapped(text, width))
        facts = dict(_facts(entry))
        if facts:
            click.echo()
        for label, fact in facts.items():
            click.echo(_filled(f"{label:<8}{fact}", width, " " * 8))
        click.echo("\noptions")
        for line in option_lines(entry, width - 2):
            click.echo(f"  {line}")


def wrapped(text: str, width: int) -> str:
    """Paragraphs refilled to `width` columns; what is indented or a list keeps its lines."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph
        if any(line.startswith((" ", "- ")) for line in paragraph.splitlines())
        else _filled(paragraph, width)
        for paragraph in paragraphs
    )


def _filled(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    cls = entry.cls
    if issubclass(cls, (Method, Eval)):
        yield "data", f"{', '.join(t.__name__ for t in cls.takes)} records"
    if issubclass(cls, Method):
        if cls.loss:
            yield "loss", cls.loss
        if cls.paper:
            yield "paper", cls.paper
    recipes = list(_recipes(entry))
    if recipes:
        yield "recipe", ", ".join(f"ptl run {path}" for path in recipes[:3])
    pages = (
        _CHECKOUT / "docs" / f"{entry.kind}s" / f"{entry.name}.md",
        _CHECKOUT / "docs" / f"{entry.kind}s.md",
    )
    for page in pages:
        if page.is_file():
            yield "docs", _shown(page)
            break


def _recipes(entry: Entry) -> Iterator[str]:
    """Shipped recipes that use the plugin, the one of its name first; none outside a checkout."""
    paths = sorted((_CHECKOUT / "recipes").glob("*.yaml"), key=lambda p: (p.stem != entry.name, p))
    for path in paths:
        if entry.name in set(_used(_yaml(path), entry.kind)):
            yield _shown(path)


def _yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _used(value: Any, kind: str, under: str = "") -> Iterator[str]:
    """Names after `use:` where a plugin of that kind stands: below a key of the kind's name."""
    if isinstance(value, dict):
        if under == kind and isinstance(value.get("use"), str):
            yield value["use"]
        for key, inner in value.items():
            yield from _used(inner, kind, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _used(inner, kind, under)


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
