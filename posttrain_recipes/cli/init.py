"""`ptl init`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from posttrain_recipes.errors import UsageError, display_path

FILES = ("recipe.yaml", "data/train.jsonl", "data/held_out.jsonl")
"""What a starter consists of; the package carries it."""


@click.command()
@click.argument("directory", default=".", type=click.Path(path_type=Path, file_okay=False))
def init(directory: Path) -> None:
    """Write a starter recipe with its data into DIRECTORY (default: here)."""
    there = [name for name in FILES if (directory / name).exists()]
    if there:
        raise UsageError(
            f"{display_path(directory / there[0])} is already there; nothing was written",
            hint="name another directory: ptl init my_project",
        )
    source = resources.files("posttrain_recipes") / "starter"
    for name in FILES:
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((source / name).read_bytes())
        click.echo(f"wrote {display_path(target)}")
    click.echo(f"\nnext: ptl run {display_path(directory / FILES[0])}")
