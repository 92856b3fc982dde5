"""`ptl pack`."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import home_option
from posttrain_recipes.errors import display_path
from posttrain_recipes.waiting import ended_politely


@click.command()
@click.argument("run")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The archive. [default: RUN.zip]",
)
@click.option("--no-data", is_flag=True, help="Without the files that the recipe names.")
@click.option("--no-weights", is_flag=True, help="Without the adapters of its stages.")
@home_option
def pack(run: str, output: Path | None, no_data: bool, no_weights: bool, home: Path | None) -> None:
    """Write RUN as one archive that another machine reads, or runs again.

    It holds the recipe as it was run, its data and functions, a lock, the report and the adapters.
    Base models, data of the hub and files of 100 MB and more are not in it: the lock has their
    content. RUN is an id of 'ptl runs', or a recipe's name for its last run.
    """
    click.get_current_context().with_resource(ended_politely())
    made = api.pack(run, output, data=not no_data, weights=not no_weights, home=home)
    size = made.path.stat().st_size / 1e6
    click.echo(f"{display_path(made.path)}: {len(made.files)} files, {size:.1f} MB")
    for note in made.notes:
        click.echo(f"  {note}")
    click.echo("\nunpack it, and read report.html, or: ptl run recipe.yaml --locked")
