"""`ptl gc`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from posttrain_recipes import engines, registry
from posttrain_recipes.cli.options import home_option, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.errors import PtlError
from posttrain_recipes.running import collect
from posttrain_recipes.store import Store, default_home


@click.command()
@click.option(
    "--keep-last",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of each recipe, only the last N unfinished runs stay able to go on. [default: all]",
)
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@home_option
@json_option
def gc(keep_last: int | None, dry_run: bool, home: Path | None, as_json: bool) -> None:
    """Delete checkpoints that nothing names any more.

    What a stage that is done ended in or started from, what an unfinished run goes on from, and
    what a run of MLflow names is never deleted.
    """
    where = default_home(home)
    stored = engines.Local(engines.Local.Config()).stored(where / "engine")
    runs, unreadable = Store(where).listed()
    if unreadable:
        raise PtlError(
            "; ".join(map(str, unreadable)),
            why="what it needs is not known, so nothing is deleted",
            hint=unreadable[0].hint,
        )
    tracked = collect.tracked_uris(where) if runs else set()
    garbage = collect.find(runs, stored, tracked, keep_last)
    failed: list[tuple[collect.Garbage, str]] = []
    gone = garbage
    if not dry_run:

        def note(item: collect.Garbage, why: str) -> None:
            failed.append((item, why))

        gone = list(collect.delete(garbage, registry.load(), where, note))
    if as_json:
        told = {
            "deleted": [asdict(item) for item in gone],
            "failed": [{**asdict(item), "error": why} for item, why in failed],
            "dry_run": dry_run,
        }
        answer(told)
        return
    for item in gone:
        size = "" if item.size is None else f"{item.size / 1e6:9.1f} MB  "
        click.echo(f"{size}{item.uri}  ({item.why})")
    for item, why in failed:
        click.echo(f"not deleted: {item.uri}: {why}", err=True)
    kept = sum(stored.values()) - sum(item.size or 0 for item in gone)
    total = sum(item.size or 0 for item in gone) / 1e6
    verb = "would be deleted" if dry_run else "deleted"
    noun = "checkpoint" if len(gone) == 1 else "checkpoints"
    click.echo(
        f"{len(gone)} {noun} {verb}, {total:.1f} MB on this machine; {kept / 1e6:.1f} MB stay"
    )
    if failed:
        raise SystemExit(1)
