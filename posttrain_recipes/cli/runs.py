"""`ptl runs`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import home_option, json_option
from posttrain_recipes.reporting import report


@click.command()
@home_option
@json_option
def runs(home: Path | None, as_json: bool) -> None:
    """List runs, the newest last."""
    found = api.runs(home)
    if as_json:
        click.echo(json.dumps([report.as_json(result.record) for result in found], indent=2))
        return
    if not found:
        click.echo("no runs yet; 'ptl run RECIPE' makes one")
        return
    table = [("run", "status", "began", "model", "stages")]
    for result in found:
        record = result.record
        stages = " -> ".join(
            stage.name + ("" if stage.done else f" ({stage.status})") for stage in record.stages
        )
        began = record.created[:16].replace("T", " ")
        table.append((record.id, record.status, began, record.model, stages))
    click.echo(report.columns(table))
