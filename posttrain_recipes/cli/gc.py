"""`ptl gc`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from posttrain_recipes import engines, registry
from posttrain_recipes.cli.options import home_option, json_option
from posttrain_recipes.cli.streams import answer, say
from posttrain_recipes.errors import PtlError
from posttrain_recipes.running import collect
from posttrain_recipes.shown import line, redact
from posttrain_recipes.store import Store, default_home


@click.command()
@click.option(
    "--keep-last",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of each recipe, only the last N unfinished runs stay able to go on. [default: all]",
)
@click.option(
    "--hosted",
    is_flag=True,
    help="Also look through what there is on the services that these runs used.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@home_option
@json_option
def gc(
    keep_last: int | None, hosted: bool, dry_run: bool, home: Path | None, as_json: bool
) -> None:
    """Delete checkpoints that nothing names any more.

    What a stage that is done ended in or started from, what an unfinished run goes on from, and
    what a run of MLflow names is never deleted. Nor is, on a service, what others made: runs of
    other directories, other programs, and what was published.
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
    deaf: list[str] = []

    def silent(spec: str, error: PtlError) -> None:
        deaf.append(spec)
        say(f"not looked through: {line(redact(error.what))}")

    there = collect.on_services(runs, registry.load(), where, silent) if hosted else {}
    garbage = collect.find(runs, stored, tracked, keep_last, there)
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
    here = sum(item.size or 0 for item in gone if item.uri in stored)
    kept, total = sum(stored.values()) - here, here / 1e6
    verb = "would be deleted" if dry_run else "deleted"
    noun = "checkpoint" if len(gone) == 1 else "checkpoints"
    click.echo(
        f"{len(gone)} {noun} {verb}, {total:.1f} MB on this machine; {kept / 1e6:.1f} MB stay"
    )
    held: dict[str, int | None] = {uri: size for one in there.values() for uri, size in one.items()}
    if hosted:
        left = held.keys() - {item.uri for item in gone}
        taken = sum(held[item.uri] or 0 for item in gone if item.uri in held) / 1e6
        click.echo(f"{taken:.1f} MB of them on services; {len(left)} checkpoints stay there")
    if failed or deaf:
        raise SystemExit(1)
