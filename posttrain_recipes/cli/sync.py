"""`ptl sync`."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import home_option
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.shown import redact
from posttrain_recipes.store import default_home


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--tracking-uri", help="The server. [default: $MLFLOW_TRACKING_URI]")
@home_option
def sync(runs: tuple[str, ...], tracking_uri: str | None, home: Path | None) -> None:
    """Copy to an MLflow server what it lacks: RUNS, or all that were meant for it.

    A run with MLFLOW_TRACKING_URI set to a server is copied there while it goes on; what the
    server missed because it was down is copied by the next run or by this command. User and
    password are read from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """
    from posttrain_recipes.tracking import databases, mlstore
    from posttrain_recipes.tracking.mirror import Mirror

    if tracking_uri:
        databases.check_address(tracking_uri)
    uri = tracking_uri or mlstore.server_uri()
    if not uri or not mlstore.is_remote(uri):
        raise UsageError(
            "there is no server to copy to",
            hint="give it as --tracking-uri http://... or export MLFLOW_TRACKING_URI",
        )
    folder = default_home(home)
    records = [api.show(run, home).record for run in runs]
    if not (folder / mlstore.DATABASE).is_file():
        raise UsageError(f"there are no runs in {folder}", code="no-such-run")
    mirror = Mirror(folder, uri)
    try:
        mirror.open()
        chosen = (
            [mirror.local.get_run(record.tracking_id) for record in records if record.tracking_id]
            if runs
            else mirror.pending()
        )
        for run in chosen:
            whole = mirror.copy(run)
            click.echo(f"{run.info.run_name}: {'copied' if whole else 'copied so far'}")
    except Exception as error:
        raise PtlError(
            f"MLflow at {mirror.shown} could not be brought up to date",
            why=redact(str(error).split("\n")[0]),
            hint="what was copied is remembered; the same command goes on from there",
            code="tracking",
        ) from None
    if not chosen:
        click.echo(f"{mirror.shown} has everything that was meant for it")
