"""`ptl preflight`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import home_option, json_option, recipe_options
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.progress.terminal import point
from posttrain_recipes.running import preflight as checks
from posttrain_recipes.store import Store, default_home

MARKS = {"ok": "ok     ", "skipped": "skipped", "warning": "warning", "failed": "FAILED "}


@click.command()
@recipe_options
@click.option("--offline", is_flag=True, help="Leave the engine alone.")
@click.option(
    "--sample/--no-sample",
    default=None,
    help="Sample a few groups for each RL stage; by default where nothing is billed.",
)
@home_option
@json_option
def preflight(
    recipe: Path,
    preset: str | None,
    overrides: tuple[str, ...],
    offline: bool,
    sample: bool | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Look for what can go wrong with RECIPE before anything is spent.

    Reads and tokenizes all data, compares what evals ask with what is trained on, tries rewards on
    answers that deserve nothing, and asks the engine whether it answers, takes the key, serves the
    models and has the checkpoints that are named. A tokenizer that loses text, records that are
    too long and weights that read the data no better than a guess are told. For RL it samples a
    few groups of replies and says whether there is anything to learn from.
    """
    planned = api.plan(recipe, preset=preset, overrides=overrides, home=home)
    from posttrain_recipes.progress.lines import Lines
    from posttrain_recipes.progress.live import Live

    where = default_home(home)
    found = [*checks.cheap(planned, where), *checks.data(planned)]
    found += [*checks.room(planned), *checks.held_out(planned, limit=None)]
    found += [*checks.rewards(planned)]
    if offline:
        found += checks.offline()
    else:
        if sample is None:
            sample = not planned.engine.billed
        # Findings are the answer; what is under way is told beside it.
        reporter = (Live if sys.stderr.isatty() else Lines)(Lasting(sys.stderr))
        try:
            runs = Store(where).runs()
            found += checks.engine(planned, where, runs, sample=sample, reporter=reporter)
        finally:
            reporter.close()
    if as_json:
        answer([asdict(finding) for finding in found])
    else:
        for finding in found:
            click.echo(f"{MARKS[finding.verdict]}  {finding.check}: {finding.message}")
            if finding.hint and finding.verdict != "ok":
                click.echo(f"         next: {finding.hint}")
    if any(finding.verdict == "failed" for finding in found):
        point(["preflight-failed"])
        raise SystemExit(1)
