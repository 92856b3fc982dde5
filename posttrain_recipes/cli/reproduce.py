"""`ptl reproduce`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import home_option, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.progress.streams import Lasting


@click.command()
@click.argument("run")
@click.option("--tracking-uri", help="Where MLflow has RUN; by default as for 'ptl run'.")
@click.option(
    "--base-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="What relative paths in the recipe start from; by default where the recipe was.",
)
@click.option("--anyway", is_flag=True, help="Run it although data or models have changed.")
@home_option
@json_option
def reproduce(
    run: str,
    tracking_uri: str | None,
    base_dir: Path | None,
    anyway: bool,
    home: Path | None,
    as_json: bool,
) -> int:
    """Run RUN again from its resolved recipe and say whether the same comes out.

    RUN is an id of 'ptl runs', or the id of a recipe's run in MLflow, which is all that is needed
    of it. Exit 1 where a result is outside of the two 95% intervals.
    """
    from posttrain_recipes.progress.lines import Lines

    out = sys.stderr if as_json else sys.stdout
    reporter = Lines(Lasting(out))
    try:
        again = api.reproduce(
            run,
            tracking_uri=tracking_uri,
            base_dir=base_dir,
            anyway=anyway,
            home=home,
            reporter=reporter,
        )
    except KeyboardInterrupt:
        reporter.line("stopped; 'ptl reproduce' begins anew")
        return 130
    if as_json:
        answer(again.as_json())
    else:
        for change in again.changed:
            click.echo(f"not as it was: {change}")
        click.echo()
        click.echo(str(again))
    return 0 if again.reproduced else 1
