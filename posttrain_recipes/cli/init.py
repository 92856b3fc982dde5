"""`ptl init`."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import click

from posttrain_recipes import shipped
from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.store import write_atomic

EDITORS = f"# yaml-language-server: $schema={shipped.SCHEMA.name}\n#\n".encode()
"""The first line of a recipe beside its schema: VS Code, for one, then completes every key."""
FILES = ("recipe.yaml", "data/train.jsonl", "data/held_out.jsonl")
"""What a starter consists of; the package carries it."""


@click.command()
@click.argument("directory", default=".", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--recipe",
    "name",
    metavar="NAME",
    help="A shipped recipe instead, with its data: dpo, grpo_arithmetic; --list has all of them.",
)
@click.option("--list", "listed", is_flag=True, help="List the shipped recipes, and write nothing.")
def init(directory: Path, name: str | None, listed: bool) -> None:
    """Write a starter recipe with its data into DIRECTORY (default: here)."""
    if listed:
        _list()
        return
    files = _starter() if name is None else _shipped(name)
    there = {path for path in files if (directory / path).exists()}
    other = [path for path in files if path in there and not _same(directory / path, files[path])]
    if other or there == files.keys():
        wanted = f" --recipe {name}" if name else ""
        first = display_path(directory / [*other, *files][0])
        raise UsageError(
            f"{first} is already there; nothing was written",
            hint=f"name another directory: ptl init{wanted} my_project",
            code="already-there",
        )
    for path, content in files.items():
        if path in there:  # what two recipes share
            continue
        target = directory / path
        write_atomic(target, content)
        click.echo(f"wrote {display_path(target)}")
    click.echo(f"\nnext: ptl run {display_path(directory / next(iter(files)))}")


def _list() -> None:
    found = shipped.recipes()
    widest = max(map(len, found))
    room = max(20, shutil.get_terminal_size().columns - widest - 2)
    for name, path in found.items():
        teaches = textwrap.wrap(shipped.description(path), room, break_on_hyphens=False)
        for first, text in zip((name, *[""] * len(teaches)), teaches, strict=False):
            click.echo(f"{first:<{widest}}  {text}")
    click.echo("\n'ptl explain NAME' tells of one, 'ptl run NAME' runs it as it is, and")
    click.echo("'ptl init --recipe NAME DIRECTORY' writes it with its data")


def _same(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content


def _starter() -> Mapping[str, bytes]:
    source = resources.files("posttrain_recipes") / "starter"
    written = {name: (source / name).read_bytes() for name in FILES}
    written[FILES[0]] = EDITORS + written[FILES[0]]
    return {**written, shipped.SCHEMA.name: shipped.SCHEMA.read_bytes()}


def _shipped(name: str) -> Mapping[str, bytes]:
    """The files of a shipped recipe, itself first. Raises UsageError with the nearest name."""
    recipe = shipped.find(name)
    files = [Path(recipe.name), *shipped.parts(recipe)]
    written = {str(path): (recipe.parent / path).read_bytes() for path in files}
    for path in [path for path in written if path.endswith(".yaml")]:
        written[path] = re.sub(rb"(?<=\$schema=)\S+", shipped.SCHEMA.name.encode(), written[path])
    return {**written, shipped.SCHEMA.name: shipped.SCHEMA.read_bytes()}
