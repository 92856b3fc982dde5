"""`ptl runs`."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain_recipes.cli.options import home_option, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.errors import PtlError
from posttrain_recipes.reporting import report
from posttrain_recipes.store import RunRecord, Store, default_home


@click.command()
@click.option(
    "--where",
    metavar="FILTER",
    help="Those that MLflow's search finds: "
    "\"metrics.`eval/held_out/exact_match` > 0.8 and tags.`ptl.gates` = 'passed'\".",
)
@home_option
@json_option
def runs(where: str | None, home: Path | None, as_json: bool) -> None:
    """List runs, the newest last.

    --where takes a filter of MLflow's search over what MLflow has of each recipe's run: metrics,
    params, tags and attributes (status is FINISHED, FAILED, KILLED or RUNNING), joined by 'and'.
    """
    records, unreadable = Store(default_home(home)).listed()
    if where is not None:
        from posttrain_recipes.tracking import searching

        found = searching.search(default_home(home), where)
        records, unreadable = [one for one in records if one.id in found], []
        untracked = [one.id for one in Store(default_home(home)).runs() if not one.tracking_id]
        if untracked:
            told = ", ".join(untracked)
            click.echo(f"warning: not searched, as MLflow has nothing of them: {told}", err=True)
    if as_json:
        broken = [
            {"run": one.id, "status": "unreadable", "error": one.why, "next": one.hint}
            for one in unreadable
        ]
        answer([*(report.as_json(record) for record in records), *broken])
        return
    if not records and not unreadable:
        none = "no runs yet; 'ptl run RECIPE' makes one"
        click.echo(none if where is None else "no run is like that")
        return
    table = [("run", "status", "began", "model", "stages")]
    for record in records:
        stages = " -> ".join(
            stage.name + ("" if stage.status in ("finished", "reused") else f" ({stage.status})")
            for stage in record.stages
        )
        began = record.created[:16].replace("T", " ")
        state = record.status + (", gate failed" if _failed_gate(record) else "")
        table.append((record.id, state, began, record.model, stages))
    table += [(one.id, "unreadable", "", "", "") for one in unreadable]
    click.echo(report.columns(table))
    for one in unreadable:
        click.echo(f"{one}; {one.hint}", err=True)


def _failed_gate(record: RunRecord) -> bool:
    try:
        return report.gate_tags(record).get("ptl.gates") == "failed"
    except PtlError:  # a recipe of another version, which 'ptl show' tells of
        return False
