"""`ptl promote`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from posttrain_recipes.cli.options import home_option, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.store import default_home


@click.command()
@click.argument("target", metavar="RUN[/STAGE]")
@click.argument("name")
@click.option("--alias", metavar="ALIAS", help="Move this alias to it, as champion.")
@click.option("--anyway", is_flag=True, help="Also where a gate failed or a result got worse.")
@home_option
@json_option
def promote(
    target: str, name: str, alias: str | None, anyway: bool, home: Path | None, as_json: bool
) -> None:
    """Register the checkpoint of RUN's last stage, or of STAGE, as a version of NAME.

    The registry is MLflow's: that of MLFLOW_TRACKING_URI, or the one beside the runs. The version
    has the evals, before and after, and the gates. A recipe with 'model: models:/NAME@ALIAS' starts
    from it. Exit 3 where a gate failed or a result got worse.
    """
    from posttrain_recipes.exporting import promoting

    made = promoting.promote(target, name, default_home(home), alias=alias, anyway=anyway)
    if as_json:
        answer({**asdict(made), "model": made.model})
        return
    what = f"{made.checkpoint.run}/{made.checkpoint.stage}"
    click.echo(f"{what}: version {made.version} of {name}" + ("" if made.new else ", as before"))
    for text in made.against:
        click.echo(f"warning: registered anyway: {text}", err=True)
    for text in made.notes:
        click.echo(f"note: {text}")
    click.echo(f"start from it: 'model: {made.model}' in a recipe")
