"""`ptl eval`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from posttrain_recipes import exits
from posttrain_recipes.cli.compare import show
from posttrain_recipes.cli.options import again, home_option, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.errors import Location, UsageError
from posttrain_recipes.language.parsing import parse_value
from posttrain_recipes.planning import gates
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.progress.terminal import point
from posttrain_recipes.reporting import report
from posttrain_recipes.store import RunRecord, default_home

_BOUND = re.compile(
    r"\s*([A-Za-z][\w-]*(?:/[^\s=]+)?)\s*=\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?%?)\s*"
)


@click.command("eval")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--suite",
    required=True,
    type=click.Path(path_type=Path),
    help="A YAML file with a list of evals, as a recipe has under 'eval:'.",
)
@click.option(
    "--fail-under",
    multiple=True,
    metavar="EVAL=VALUE",
    help="Exit 3 where a result is lower: held_out=0.8, tone/margin=0.1. Repeatable.",
)
@click.option(
    "--fail-worse",
    is_flag=True,
    help="Exit 3 where a target is worse than the first, by the paired test of a result.",
)
@click.option(
    "--engine", help="Where a model or checkpoint is served, as a recipe has it. [default: local]"
)
@click.option("--model", help="The base model of a checkpoint that is not in this home.")
@click.option("--fresh", is_flag=True, help="Measure again what is known.")
@home_option
@json_option
def eval(
    targets: tuple[str, ...],
    suite: Path,
    fail_under: tuple[str, ...],
    fail_worse: bool,
    engine: str | None,
    model: str | None,
    fresh: bool,
    home: Path | None,
    as_json: bool,
) -> int:
    """Run a suite of evals on anything that can be sampled.

    TARGET is a run (sft_then_dpo-1), one of its stages (sft_then_dpo-1/sft), a tinker:// path, or a
    model: ptl/tiny, ORGANISATION/MODEL or ./DIRECTORY. What was measured on the same weights is not
    measured again. Several targets are compared with the first, in pairs.
    """
    from posttrain_recipes import engines
    from posttrain_recipes.api.models import evals_of
    from posttrain_recipes.progress.lines import Lines

    class Results(Lines):
        """What is found, and not what to do next: that is the same for every target."""

        def run_finished(self, record: RunRecord) -> None:
            self.table(record)
            self.gates(record)
            self.line()

    from posttrain_recipes.planning.reuse import Scope
    from posttrain_recipes.reporting import comparing
    from posttrain_recipes.running import runner

    folder, bounds = default_home(home), dict(map(_bound, fail_under))
    if len(bounds) < len(set(fail_under)):
        raise UsageError("--fail-under names the same result twice", hint="give it one bound")
    targets = tuple(dict.fromkeys(targets))
    if fail_worse and len(targets) < 2:
        raise UsageError("--fail-worse compares with the first target", hint="name two or more")
    spec: Any = parse_value(engine, Location("--engine")).plain() if engine else None
    plans = evals_of(targets, suite, folder, spec, model, bounds)
    reporter = Results(Lasting(sys.stderr if as_json else sys.stdout))
    records: list[RunRecord] = []
    with engines.kept_running():
        for plan in plans:
            try:
                records.append(runner.run(plan, folder, reporter, scope=Scope(fresh=fresh)))
            except KeyboardInterrupt:
                reporter.interrupted(again(click.get_current_context(), without=("fresh",)))
                return 130
    found = comparing.Comparison(folder, records)
    tables = found.sections[0][1] if len(records) > 1 else []
    worse = [text for table in tables for text in comparing.worse(table)]
    if as_json:
        compared = {"comparison": found.as_json(), "worse": worse} if tables else {}
        answer({"runs": [report.as_json(record) for record in records], **compared})
    elif tables:
        show(tables)
        for text in worse:
            click.echo(f"{'FAILED' if fail_worse else 'worse'}  {text}")
    failed = any(not gate.passed for record in records for gate in gates.check(record))
    if failed or (fail_worse and worse):
        point(["gate-failed"])
        return exits.GATE_FAILED.number
    return 0


def _bound(text: str) -> tuple[str, str]:
    match = _BOUND.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--fail-under {text}", hint="write EVAL=VALUE or EVAL/METRIC=VALUE: held_out=0.8"
        )
    return match[1], f">= {match[2]}"
