"""`ptl run`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from posttrain_recipes import api, exits
from posttrain_recipes.cli.options import (
    again,
    home_option,
    json_option,
    recipe_options,
    scope_options,
)
from posttrain_recipes.cli.streams import STANDARD, answer, event_lines, for_events, lasting, say
from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning.reuse import Scope
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.progress.terminal import point
from posttrain_recipes.reporting import report
from posttrain_recipes.store import RunRecord, default_home

if TYPE_CHECKING:
    from posttrain_recipes.planning.plans import Plan
    from posttrain_recipes.progress.event_log import EventLog


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
@click.option(
    "--locked", is_flag=True, help="Refuse to run on anything but what 'ptl lock' wrote down."
)
@click.option(
    "--events",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE|-",
    is_eager=True,
    callback=for_events,
    help="Append a line of JSON for each event to FILE; -: to standard output, and all else to "
    "stderr. 'ptl schema --events' prints their schema.",
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
    locked: bool,
    events: Path | None,
    as_json: bool,
) -> int:
    """Run RECIPE: train its stages and measure each before and after.

    A run that was interrupted goes on where it stopped; a stage that an earlier run finished on
    the same inputs is reused. A terminal that is closed interrupts nothing.
    """
    from posttrain_recipes.running import outcomes
    from posttrain_recipes.waiting import ended_politely, without_hangups

    if as_json and events == STANDARD:
        raise UsageError(
            "--json and --events - both write to standard output",
            hint="name a file for the events",
        )
    for asked in (without_hangups(), ended_politely()):
        click.get_current_context().with_resource(asked)
    with _logged(events) as log:
        planned = api.plan(recipe, preset=preset, overrides=overrides, home=home)
        if locked:
            from posttrain_recipes.planning import lock

            for text in lock.check(planned, recipe):
                say(f"warning: {text}")
        record = _run(planned, home, log, scope, jobs, shared, watched, as_json)
        outcome = outcomes.of_record(record)
        if log is not None:
            log.ended(outcome)
    if as_json:
        answer(report.as_json(record))
    if outcome.status == exits.GATE_FAILED.status:
        point([outcome.status])
    return outcome.exit_code


@contextmanager
def _logged(path: Path | None) -> Iterator[EventLog | None]:
    """What writes events; the last of them tells of whatever ended the run."""
    if path is None:
        yield None
        return
    from posttrain_recipes.progress.event_log import EventLog
    from posttrain_recipes.running import outcomes

    log = EventLog(event_lines(path))
    try:
        yield log
    except (Exception, KeyboardInterrupt) as error:
        log.ended(outcomes.of_error(error))
        raise
    finally:
        log.close()


def _run(
    planned: Plan,
    home: Path | None,
    log: EventLog | None,
    scope: Scope,
    jobs: str,
    shared: str | None,
    watched: bool,
    as_json: bool,
) -> RunRecord:
    """Run it, tell a person how it goes, and leave where it is interrupted."""
    from posttrain_recipes.cli.watch import PageBeside
    from posttrain_recipes.progress.lines import Lines
    from posttrain_recipes.progress.live import Live
    from posttrain_recipes.running import outcomes, runner
    from posttrain_recipes.running.cluster.ray_tasks import parallel
    from posttrain_recipes.running.events import also

    many = parallel(jobs, shared)
    live = sys.stdout.isatty() and not as_json and many == 1
    out = Lasting(sys.stderr if as_json else sys.stdout)
    reporter = Live(out) if live else Lines(out)
    page = PageBeside(default_home(home))
    # The page's address stands above the lines.
    told = also(page, reporter) if watched else reporter
    told = also(told, log) if log is not None else told
    try:
        with lasting():
            return runner.run(planned, default_home(home), told, scope=scope, jobs=many)
    except KeyboardInterrupt as error:
        # What is new is begun by now: with these it would be begun once more.
        context = click.get_current_context()
        reporter.interrupted(again(context, without=("fresh", "first")))
        if log is not None:
            log.ended(outcomes.of_error(error))
        sys.exit(exits.INTERRUPTED.number)
    finally:
        reporter.close()
        page.close()
        if out.lost:
            say(f"warning: some of the output could not be written ({out.lost}); the run went on")
