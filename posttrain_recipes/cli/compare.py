"""`ptl compare`."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import folded, home_option, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.errors import display_path
from posttrain_recipes.reporting import comparisons, report
from posttrain_recipes.store import default_home, write_atomic


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write it as an HTML page, with the curves over one another.",
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
    from posttrain_recipes.reporting.comparing import Comparison

    folder = default_home(home)
    found = Comparison(folder, [api.show(run, home).record for run in dict.fromkeys(runs)])
    if open_browser and output is None:
        output = folder / "compare.html"
    if output is not None:
        write_atomic(output, found.html())
    if as_json:
        answer(found.as_json())
        return
    if found.differing:
        click.echo(report.columns([("", *found.names), *found.differing]))
    for title, tables in found.sections:
        if title:
            click.echo(f"\n{title}" if found.differing else title)
        for table in tables:
            percent = table.metric in report.SHARES
            name = report.metric_label(table.eval, table.eval, table.metric)
            shown = [("  way", "seeds", "value", f"against {table.cells[0].arm}", "p", "")]
            for cell in table.cells:
                tested = cell.against
                star = " *" if cell.arm == table.best and len(table.cells) > 1 else ""
                shown.append(
                    (
                        f"  {cell.arm}{star}",
                        str(cell.seeds),
                        report.show(cell.estimate, percent),
                        report.show_paired(tested, percent),
                        report.show_p(cell.adjusted) if tested else "",
                        tested.test if tested else "",
                    )
                )
            click.echo(f"\n{name} ({table.direction})")
            click.echo(report.columns(shown, right=(1, 2, 3, 4)))
        click.echo()
        for note in comparisons.notes(tables):
            click.echo(folded(note))
    if output is not None:
        click.echo(display_path(output))
        if open_browser:
            click.launch(output.resolve().as_uri())
