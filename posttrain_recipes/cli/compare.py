"""`ptl compare`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import check_ending, home_option, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.errors import display_path
from posttrain_recipes.progress.terminal import folded
from posttrain_recipes.reporting import comparisons, report
from posttrain_recipes.reporting.comparisons import Table
from posttrain_recipes.store import default_home


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write it to this file, as what its name ends in: .html, with the curves over one "
    "another; .md; .csv, .tsv: the results; .json.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open that page in a browser.")
@home_option
@json_option
def compare(
    runs: tuple[str, ...], output: Path | None, open_browser: bool, home: Path | None, as_json: bool
) -> None:
    """Compare RUNS: what differs in their recipes, their last results, tests against the first.

    Results on the same records are tested in pairs. One run with branches or a matrix is compared
    with itself.
    """
    from posttrain_recipes.reporting import comparing

    if output is not None:
        check_ending(output, comparing.ENDINGS)
    found = api.compare(*runs, home=home)
    if open_browser and output is None:
        output = default_home(home) / "compare.html"
    if output is not None:
        comparing.write(found, output)
    if as_json:
        answer(found.as_json())
        return
    if found.differing:
        click.echo(report.columns([("", *found.names), *found.differing]))
        if any("-" in row[1:] for row in found.differing):
            click.echo("-: the recipe does not say it")
    for place, (title, tables) in enumerate(found.sections):
        if title:
            click.echo(f"\n{title}" if found.differing or place else title)
        tabulate(tables)
    every = [table for _, tables in found.sections for table in tables]
    click.echo()
    for note in comparisons.notes(every, len(found.sections)):
        click.echo(folded(note))
    if output is not None:
        click.echo(display_path(output))
        if found.differing and output.suffix.lower() in (".csv", ".tsv"):
            click.echo("options that differ are not in it; they are in .html, .md and .json")
        if open_browser:
            click.launch(output.resolve().as_uri())


def show(tables: Sequence[Table]) -> None:
    """Print tables, and what has to be known to read them."""
    tabulate(tables)
    click.echo()
    for note in comparisons.notes(tables):
        click.echo(folded(note))


def tabulate(tables: Sequence[Table]) -> None:
    """Print tables."""
    for same in comparisons.together(tables):
        name = report.metric_label(same[0].eval, same[0].eval, same[0].metric)
        head, *_ = comparisons.shown(same[0])
        lines = [head, *(row for table in same for row in comparisons.shown(table)[1:])]
        rows = [(f"  {way}", *rest) for way, *rest in lines]
        said, text = same[0].direction, report.columns(rows, right=(1, 2, 3, 4))
        if max(map(len, text.splitlines())) > shutil.get_terminal_size().columns:
            tests = {row[-1] for row in rows[1:]} - {""}
            if len(tests) == 1:  # of all lines: told once, above them
                said, rows = f"{said}; {tests.pop()}", [(*row[:-1], "") for row in rows]
            rows[0] = (*rows[0][:3], "against the first", *rows[0][4:])
            text = report.columns(rows, right=(1, 2, 3, 4))
        click.echo(f"\n{name} ({said})")
        click.echo(text)
