"""`ptl run`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from posttrain_recipes import api, exits
from posttrain_recipes.cli.options import (
    again,
    home_option,
    json_option,
    recipe_options,
    scope_options,
)
from posttrain_recipes.cli.streams import answer, lasting, say
from posttrain_recipes.planning import gates
from posttrain_recipes.planning.reuse import Scope
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.progress.terminal import point
from posttrain_recipes.reporting import report


@click.command(epilog=f"\b\nExit codes:\n{exits.as_help()}")
@recipe_options
@home_option
@scope_options
@click.option(
    "--jobs",
    default="1",
    metavar="N|ray[:ADDRESS]",
    help="Run up to N stages that do not need each other at the same time; or each as a task of a "
    "Ray cluster: the one that is there, else a new one on this machine.",
)
@click.option(
    "--shared",
    metavar="URL",
    help="With --jobs ray: where all nodes see checkpoints, as s3://bucket/folder. "
    "[default: $PTL_SHARED or a directory of the home]",
)
@click.option(
    "--watch", "watched", is_flag=True, help="Show it on a page as it goes, as 'ptl watch' does."
)
@json_option
def run(
    recipe: Path,
    preset: str | None,
    overrides: tuple[str, ...],
    home: Path | None,
    scope: Scope,
    jobs: str,
    shared: str | None,
    watched: bool,
    as_json: bool,
) -> int:
    """Run RECIPE: train its stages and measure each before and after.

    A run that was interrupted goes on where it stopped; a stage that an earlier run finished on
    the same inputs is reused. A terminal that is closed interrupts nothing.
    """
    from posttrain_recipes.waiting import without_hangups

    click.get_current_context().with_resource(without_hangups())
    planned = api.plan(recipe, preset=preset, overrides=overrides)
    from posttrain_recipes.cli.watch import PageBeside
    from posttrain_recipes.progress.lines import Lines
    from posttrain_recipes.progress.live import Live
    from posttrain_recipes.running import runner
    from posttrain_recipes.running.cluster.ray_tasks import parallel
    from posttrain_recipes.running.events import also
    from posttrain_recipes.store import default_home

    many = parallel(jobs, shared)
    live = sys.stdout.isatty() and not as_json and many == 1
    out = Lasting(sys.stderr if as_json else sys.stdout)
    reporter = Live(out) if live else Lines(out)
    page = PageBeside(default_home(home))
    # The page's address stands above the lines.
    told = also(page, reporter) if watched else reporter
    try:
        with lasting():
            record = runner.run(planned, default_home(home), told, scope=scope, jobs=many)
    except KeyboardInterrupt:
        # What is new is begun by now: with these it would be begun once more.
        context = click.get_current_context()
        reporter.interrupted(again(context, without=("fresh", "first")))
        sys.exit(exits.INTERRUPTED.number)
    finally:
        reporter.close()
        page.close()
        if out.lost:
            say(f"warning: some of the output could not be written ({out.lost}); the run went on")
    if as_json:
        answer(report.as_json(record))
    whole = record.status == "finished"
    if whole and any(not gate.passed for gate in gates.check(record)):
        point(["gate-failed"])
        return exits.GATE_FAILED.number
    return 0
