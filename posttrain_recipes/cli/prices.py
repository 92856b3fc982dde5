"""`ptl prices`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from posttrain_recipes import private
from posttrain_recipes.cli.options import home_option, json_option
from posttrain_recipes.cli.streams import answer, say
from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.planning import pricing, published
from posttrain_recipes.reporting import report
from posttrain_recipes.shown import line
from posttrain_recipes.store import default_home


@click.command()
@click.option("--refresh", is_flag=True, help="Read the published table first.")
@click.option(
    "--from",
    "address",
    metavar="URL",
    help=f"Where --refresh reads it. [default: {published.ADDRESS}]",
)
@home_option
@json_option
def prices(refresh: bool, address: str | None, home: Path | None, as_json: bool) -> None:
    """Show what hosted Tinker costs, in USD per million tokens, by the table that plans go by.

    That is prices.yaml beside the runs, or the file that PTL_PRICES names, in front of the table
    that comes with this version. --refresh writes the one beside the runs.
    """
    where = default_home(home)
    if address is not None and not refresh:
        raise UsageError("--from is where --refresh reads", hint="give --refresh")
    if refresh:
        with private.home(where):
            written = published.refresh(where, address or published.ADDRESS)
        say(f"written: {display_path(written)}")
        if given := os.environ.get(pricing.VARIABLE):
            say(f"warning: {pricing.VARIABLE} names {given}, which goes before it")
    table = pricing.load(where)
    if as_json:
        models = {name: price.model_dump() for name, price in sorted(table.models.items())}
        answer({"prices": table.note, "storage": table.storage, "models": models})
        return
    rows = [("model", *pricing.KINDS.values(), "")]
    for name, price in sorted(table.models.items()):
        shown = [_shown(getattr(price, kind)) for kind in pricing.KINDS]
        rows.append((line(name), *shown, line(price.note or "")))
    click.echo(report.columns(rows))
    click.echo(f"\n{table.note}; USD per million tokens, '?' where none is known")
    if table.storage is not None:
        click.echo(f"storage of checkpoints: {pricing.show_usd(table.storage)} per GB and month")


def _shown(price: float | None) -> str:
    return "?" if price is None else f"{price:g}"
