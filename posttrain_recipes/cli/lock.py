"""`ptl lock`."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import RECIPE
from posttrain_recipes.errors import UsageError, display_path


@click.command()
@click.argument("recipe", type=RECIPE)
@click.option("--preset", metavar="NAME", help="One of the recipe's presets.")
def lock(recipe: Path, preset: str | None) -> None:
    """Write what RECIPE stands on beside it: models, data, plugins and options, by content.

    'ptl run RECIPE --locked' then refuses to run on anything else, and says what differs. Presets
    are locked one by one; locking one again takes what is there now.
    """
    from posttrain_recipes.planning import lock as locks

    if str(recipe) == "-":
        raise UsageError(
            "a recipe that comes through a pipe lies nowhere: there is no place for its lock"
        )
    planned = api.plan(recipe, preset=preset)
    made = locks.Lock.of(planned)
    path = locks.write(planned, recipe)
    what = f"preset {planned.preset}" if planned.preset else "no preset"
    count = len(made.stages)
    click.echo(f"wrote {display_path(path)}: {count} stage{'s' * (count != 1)}, {what}")
    for pin in planned.pins:
        click.echo(f"  {pin}")
