"""`ptl reproduce`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from posttrain_recipes import api, registry
from posttrain_recipes.cli.options import home_option, json_option
from posttrain_recipes.cli.streams import Lasting, answer
from posttrain_recipes.errors import UsageError
from posttrain_recipes.reporting import report
from posttrain_recipes.store import RunRecord, default_home


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
    from posttrain_recipes.cli.progress import Lines
    from posttrain_recipes.planning.reuse import Scope
    from posttrain_recipes.reporting import reproduction
    from posttrain_recipes.running import runner

    then = _find(run, tracking_uri, home)
    if then.status != "finished":
        raise UsageError(f"run {then.id} did not finish: it is {then.status}", code="no-such-run")
    out = sys.stderr if as_json else sys.stdout
    plan = reproduction.plan_again(then, registry.load(), base_dir)
    changed = list(reproduction.changes(then, plan))
    for change in changed:
        print(f"not as it was: {change}", file=out)
    if changed and not anyway:
        raise UsageError(
            f"what {then.id} was made of has changed",
            hint="bring it back, or see what comes out all the same with --anyway",
            code="changed",
        )
    reporter = Lines(Lasting(out))
    try:
        now = runner.run(plan, default_home(home), reporter, scope=Scope(fresh=True))
    except KeyboardInterrupt:
        reporter.line("stopped; 'ptl reproduce' begins anew")
        return 130
    if as_json:
        answer(reproduction.as_json(then, now, changed))
    else:
        _print(then, now)
    return 0 if all(v.reproduced for v in reproduction.verdicts(then, now)) else 1


def _find(run: str, tracking_uri: str | None, home: Path | None) -> RunRecord:
    from posttrain_recipes.reporting import reproduction
    from posttrain_recipes.tracking import mlstore

    if tracking_uri is None and not re.fullmatch(r"[0-9a-f]{32}", run):
        return api.show(run, home).record
    folder = default_home(home)
    uri = tracking_uri or mlstore.configured_uri() or mlstore.local_uri(folder)
    return reproduction.kept_in_mlflow(run, uri)


def _print(then: RunRecord, now: RunRecord) -> None:
    from posttrain_recipes.reporting import reproduction

    found = reproduction.verdicts(then, now)
    table: list[tuple[str, ...]] = [("stage", "eval", "", then.id, now.id, "")]
    for v in found:
        shown = [report.show(e, v.percent) for e in (v.then, v.now)]
        words = {"within": "within the intervals", "outside": "OUTSIDE the intervals"}
        label = v.eval if v.metric == v.eval else f"{v.eval} {v.metric}"
        table.append((v.stage, label, v.when, *shown, words.get(v.found, v.found)))
    click.echo()
    click.echo(report.columns(table, right=(3, 4)))
    missed = sum(not v.reproduced for v in found)
    same = sum(v.found == "identical" for v in found)
    if missed:
        click.echo(f"\nnot reproduced: {missed} of {len(found)} results are outside or missing")
    else:
        rest = len(found) - same
        tail = f", {rest} within the intervals" if rest else ""
        click.echo(f"\nreproduced: {same} of {len(found)} results identical{tail}")
