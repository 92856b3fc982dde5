"""`ptl report`: a run on one page."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import check_ending, home_option
from posttrain_recipes.cli.streams import say
from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.store import default_home, write_atomic


@click.command()
@click.argument("run", required=False)
@click.option("--all", "everything", is_flag=True, help="All runs: their evals, the best first.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the page: HTML (.html), or Markdown (.md).",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@home_option
def report(
    run: str | None,
    everything: bool,
    output: Path | None,
    open_browser: bool,
    home: Path | None,
) -> None:
    """Write the report of RUN again: results, curves, replies side by side, how to repeat it.

    RUN is an id of 'ptl runs', or a recipe's name for its last run. Every run ends with
    report.html and report.md in its directory; the page needs no network and no server.
    With --all: a leaderboard, which is leaderboard.html in the home.
    """
    from posttrain_recipes.reporting.leaderboard import Leaderboard

    if (run is None) != everything:
        raise UsageError("name a run, or say --all", hint="'ptl runs' lists them")
    if output is not None:
        check_ending(output, (".html", ".htm", ".md"), "'ptl show RUN --json' prints JSON")
    if run is not None:
        output = api.report(run, output, home=home)
    else:
        folder = default_home(home)
        board, output = Leaderboard(folder), output or folder / "leaderboard.html"
        for one in board.unreadable:
            say(f"{one}; {one.hint}")
        write_atomic(output, board.markdown() if output.suffix.lower() == ".md" else board.html())
    click.echo(display_path(output))
    if open_browser:
        click.launch(output.resolve().as_uri())
