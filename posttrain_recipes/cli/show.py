"""`ptl show`."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import home_option, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.errors import display_path
from posttrain_recipes.planning import costs
from posttrain_recipes.reporting import billed, report
from posttrain_recipes.shown import line, plain
from posttrain_recipes.store import RunRecord, StageRecord, Store, default_home, load_samples


@click.command()
@click.argument("run")
@click.option("--samples", default=3, show_default=True, help="Replies to show of each eval.")
@click.option("--billing", is_flag=True, help="Ask the service first what it billed for the run.")
@home_option
@json_option
def show(run: str, samples: int, billing: bool, home: Path | None, as_json: bool) -> None:
    """Show RUN (an id of 'ptl runs', or a recipe's name for its last run)."""
    record = api.show(run, home).record
    if billing:
        from posttrain_recipes.running import billing as account

        account.refresh(default_home(home), record)
    if as_json:
        answer(report.as_json(record))
        return
    from posttrain_recipes.progress.lines import Lines

    runs = Store(default_home(home)).runs_dir
    lines = [f"{record.id}: {record.status}, began {record.created}"]
    if record.error:
        lines.append(f"  error     {record.error}")
    if record.untold:
        lines.append(f"  on_end    {record.untold}")
    elif record.told:
        lines.append(f"  on_end    was told that it is {record.told}")
    lines.append(f"  recipe    {record.path}" + (f" ({record.preset})" if record.preset else ""))
    lines.append(f"  model     {record.model} on engine {record.engine}, seed {record.seed}")
    if account_said := billed.told(record):
        lines.append(f"  billed    {account_said}")
    for stage in record.stages:
        lines.append(f"  {stage.name:9} {stage.status}")
        if stage.status == "trained":
            lines[-1] += f", its evals {'under way' if record.status == 'running' else 'left'}"
        if stage.method and stage.records:
            lines[-1] += f", {_steps(stage)} on {stage.records} records"
        for name, rate in stage.numbers.items():
            lines.append(f"{'':12}{name} {rate:g} (auto: {stage.auto[name]})")
        if stage.error:
            lines.append(f"{'':12}{stage.error}")
        lines += [f"{'':12}warning: {text}" for text in stage.warnings]
        lines += [f"{'':12}{text}" for text in stage.notes]
        for name, count in stage.made.items():
            path = display_path(runs / stage.made_in / f"{name}.jsonl")
            lines.append(f"{'':12}made {count} {name} records: {path}")
        if taken := costs.took(stage):
            lines.append(f"{'':12}took {taken}")
        if stage.checkpoint and stage.checkpoint.state_uri:
            lines.append(f"{'':12}{stage.checkpoint.state_uri}")
            lines.append(f"{'':12}{stage.checkpoint.sampler_uri}")
    click.echo("\n".join(map(line, lines)))
    _print_samples(record, Store(default_home(home)).path(record.id), samples)
    import sys

    if record.status == "finished" or any(s.before or s.after for s in record.stages):
        Lines(sys.stdout).table(record)
        Lines(sys.stdout).gates(record)


def _steps(stage: StageRecord) -> str:
    """The steps that it took, of those that it would take where it did not come to its end."""
    if stage.done:
        return f"{stage.total_steps} steps"
    return f"{stage.resume.step if stage.resume else 0} of {stage.total_steps} steps kept"


def _print_samples(record: RunRecord, path: Path, count: int) -> None:
    """The same prompts before and after each stage."""
    for stage in record.stages:
        for measured in stage.after or stage.before:
            before = load_samples(path, stage.name, measured.name, "before")[:count]
            after = load_samples(path, stage.name, measured.name, "after")[:count]
            if not before and not after:
                continue
            click.echo(f"\n{stage.name}, {measured.name}")
            for index, sample in enumerate(before or after):
                click.echo(f"  prompt  {_one_line(sample.prompt[-1].content)}")
                if sample.answer is not None:
                    click.echo(f"  answer  {_one_line(sample.answer)}")
                if before:
                    click.echo(f"  before  {_one_line(before[index].completion)}")
                if index < len(after):
                    click.echo(f"  after   {_one_line(after[index].completion)}")
                click.echo()


def _one_line(text: str, width: int = 100) -> str:
    flat = plain(" ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 3] + "..."
