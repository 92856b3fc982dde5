"""`ptl runs`."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain_recipes.cli.options import home_option, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.reporting import report
from posttrain_recipes.store import Store, default_home


@click.command()
@home_option
@json_option
def runs(home: Path | None, as_json: bool) -> None:
    """List runs, the newest last."""
    records, unreadable = Store(default_home(home)).listed()
    if as_json:
        broken = [
            {"run": one.id, "status": "unreadable", "error": one.why, "next": one.hint}
            for one in unreadable
        ]
        answer([*(report.as_json(record) for record in records), *broken])
        return
    if not records and not unreadable:
        click.echo("no runs yet; 'ptl run RECIPE' makes one")
        return
    table = [("run", "status", "began", "model", "stages")]
    for record in records:
        stages = " -> ".join(
            stage.name + ("" if stage.status in ("finished", "reused") else f" ({stage.status})")
            for stage in record.stages
        )
        began = record.created[:16].replace("T", " ")
        table.append((record.id, record.status, began, record.model, stages))
    table += [(one.id, "unreadable", "", "", "") for one in unreadable]
    click.echo(report.columns(table))
    for one in unreadable:
        click.echo(f"{one}; {one.hint}", err=True)
