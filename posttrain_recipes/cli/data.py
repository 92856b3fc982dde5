"""`ptl data`: looks at data before anything is trained on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from posttrain_recipes.cli.data_overlap import overlap
from posttrain_recipes.cli.data_show import show
from posttrain_recipes.cli.options import columns_option, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.datasets.reading import FileFormat
from posttrain_recipes.errors import Location
from posttrain_recipes.models import check_model
from posttrain_recipes.progress.terminal import point
from posttrain_recipes.shown import is_address

if TYPE_CHECKING:
    from posttrain_recipes.datasets.checking import Report, TokenCounter
    from posttrain_recipes.records import Messages

NAMED = 10
"""Lines that are named of those with one and the same fault."""


@click.group()
def data() -> None:
    """Look at data: files as they are, records as the model will read them."""


data.add_command(show)
data.add_command(overlap)


@data.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=str))
@click.option("--model", help="Count tokens with this model's tokenizer and chat template.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Longer records are a fault; needs --model."
)
@columns_option
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(FileFormat)),
    help="How the files are written, where their suffix does not say it.",
)
@click.option(
    "--thinking",
    type=click.Choice(["off", "on", "keep"]),
    default="off",
    show_default=True,
    help="As 'renderer: {thinking: ...}' of the recipe; for --model.",
)
@json_option
@click.option(
    "--limit-faults",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="Print at most this many faults a file.",
)
@click.pass_context
def check(
    context: click.Context,
    files: tuple[str, ...],
    model: str | None,
    max_tokens: int | None,
    columns: dict[str, str],
    form: FileFormat | None,
    thinking: str,
    as_json: bool,
    limit_faults: int,
) -> None:
    """Find every line of FILES that cannot be trained on, and say what to do about it.

    Exits with 2 where there is one, and with 0 where all is well.
    """
    from posttrain_recipes.datasets.checking import check_file

    if max_tokens is not None and model is None:
        raise click.UsageError("--max-tokens needs --model, whose tokenizer counts")
    counter = _token_counter(model, thinking) if model is not None else None
    reports = []
    for file in files:
        path, name = local(file)
        report = check_file(
            path, columns=columns, form=form, max_tokens=max_tokens, count_tokens=counter, name=name
        )
        del report.faults[limit_faults:]
        reports.append(report)
        if not as_json:
            _print(report)
    ok = all(report.ok for report in reports)
    if as_json:
        whole = {"ok": ok, "files": [report.as_dict() for report in reports]}
        answer(whole)
    if not ok and not as_json:
        point(list(dict.fromkeys(fault.code for report in reports for fault in report.faults)))
    if not ok:
        context.exit(2)


def local(file: str) -> tuple[Path, str | None]:
    """The file, fetched where it is at an address, and how it is then called."""
    from posttrain_recipes.datasets import remote

    if not is_address(file):
        return Path(file), None
    return remote.fetch(file).path, remote.shown(file)


def _token_counter(model: str, thinking: str) -> TokenCounter:
    from posttrain_recipes.errors import UsageError
    from posttrain_recipes.ggufs import fault, is_gguf
    from posttrain_recipes.models import is_path, resolve
    from posttrain_recipes.options import RendererConfig
    from posttrain_recipes.training.text.chat_template import load_renderer

    check_model(model, "--model")
    if is_path(model):
        place = Path(os.path.expanduser(model)).resolve()
        if is_gguf(model):
            if why := fault(place):
                raise UsageError(f"{model}: {why}", code="bad-model")
        elif not place.is_dir():
            raise UsageError(f"there is no model directory {model}", code="bad-model")
        model = str(place)
    options = RendererConfig.model_validate({"thinking": thinking})
    renderer = load_renderer(resolve(model), options)

    def count(messages: Messages) -> int:
        if messages[-1].role == "assistant":
            return len(renderer.supervised(messages)[0])
        return len(renderer.prompt(messages))

    return count


def _print(report: Report) -> None:
    alike: dict[str, list[Location]] = {}
    for fault in report.faults:
        alike.setdefault(fault.message, []).append(fault.location)
    for message, (first, *others) in alike.items():
        click.echo(f"{first}  {message}")
        if others:
            lines = ", ".join(str(place.line) for place in others[:NAMED])
            more = f" and {len(others) - NAMED:,} more" if len(others) > NAMED else ""
            click.echo(f"  so {'is' if len(others) == 1 else 'are'} lines {lines}{more}")
    if (hidden := report.fault_count - len(report.faults)) > 0:
        click.echo(f"{report.path}  and {hidden:,} more; --limit-faults shows more")
    if report.ok:
        verdict = "ok"
    elif report.bad_lines:
        verdict = f"{report.bad_lines:,} bad line{'s' * (report.bad_lines > 1)}"
    else:
        verdict = "cannot be used"
    parts = [verdict, f"{report.records:,} record{'s' * (report.records != 1)}"]
    if report.form is not None:
        alias = f" ({report.form.known_as})" if report.form.known_as else ""
        parts.append(f"{report.form.name}{alias} -> {report.form.record.__name__}")
    click.echo(f"{report.path}: {', '.join(parts)}")
    if report.unused:
        named = ", ".join(f"{name} ({count:,})" for name, count in report.unused.items())
        click.echo(f"  not used    {named}")
    if report.records:
        click.echo(_lengths("characters", report.characters.as_dict()))
        if report.tokens is not None:
            click.echo(_lengths("tokens", report.tokens.as_dict()))


def _lengths(unit: str, values: Mapping[str, float]) -> str:
    told = "  ".join(f"{name} {value:,}" for name, value in values.items())
    return f"  {unit:<10}  {told}"
