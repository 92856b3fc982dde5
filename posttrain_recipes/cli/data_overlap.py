"""`ptl data overlap`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain_recipes.cli.options import columns_option, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.shown import line

if TYPE_CHECKING:
    from posttrain_recipes.datasets.contamination import Contamination, Held
    from posttrain_recipes.records import Record

SHOWN = 3
"""Records of a kind that are shown with their places."""
WIDTH = 100
"""Characters that are shown of what is in common."""


@click.command()
@click.argument("train", type=click.Path(path_type=str))
@click.argument("evals", nargs=-1, required=True, metavar="EVAL...", type=click.Path(path_type=str))
@click.option(
    "--words",
    "n",
    type=click.IntRange(min=1),
    default=13,
    show_default=True,
    help="Words in a row that are no chance.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Of a record's runs of words, how many in common make it a held one; 0: a single run.",
)
@columns_option
@json_option
@click.pass_context
def overlap(
    context: click.Context,
    train: str,
    evals: tuple[str, ...],
    n: int,
    share: float,
    columns: dict[str, str],
    as_json: bool,
) -> None:
    """Find the records of each EVAL file that the file TRAIN holds.

    A record is held where TRAIN asks the same question, whatever its case and punctuation, or has
    half of its runs of 13 words; runs that several records of the EVAL have are its template, and
    do not count, nor do system prompts. Exits with 2 where there is one, and with 0 where there is
    none.
    """
    from posttrain_recipes.datasets.contamination import find

    found = {
        name: find(_read(train, columns), list(_read(name, columns)), n, share) for name in evals
    }
    if as_json:
        answer({"train": train, "words": n, "evals": {k: _as_dict(v) for k, v in found.items()}})
    else:
        for name, one in found.items():
            _print(name, train, one, n, share)
    if any(one.held for one in found.values()):
        context.exit(2)


def _read(file: str, columns: dict[str, str]) -> Iterator[Record]:
    """The records of a file; `columns` are told of those fields that its first row has.

    Raises:
        UsageError: it cannot be read, or a row cannot be used.
    """
    from posttrain_recipes.datasets.jsonl import Jsonl
    from posttrain_recipes.datasets.reading import file_format, read_rows
    from posttrain_recipes.errors import UsageError

    made = Jsonl(Jsonl.Config(path=file), Path.cwd())
    made.pin(ask=True)
    if columns and made.path.is_file() and file_format(made.path):
        row: Any = next((row for _, row in read_rows(made.path)), {})
        there = {ours: theirs for ours, theirs in columns.items() if theirs in row}
        made = Jsonl(Jsonl.Config(path=file, columns=there), Path.cwd())
        made.pin(ask=True)
    for _, problem in made.problems():
        raise UsageError(line(problem), code="no-such-file")
    return iter(made.load())


def _print(name: str, train: str, found: Contamination, n: int, share: float) -> None:
    count = len(found.held)
    of = f"of {found.count:,} record{'s' * (found.count != 1)}"
    click.echo(
        f"{line(name)}: {count or 'none'} {of} {'is' if count == 1 else 'are'} in {line(train)}"
    )
    asked, shared = found.of("question"), found.of("words")
    if asked:
        click.echo(f"  {len(asked):,} ask the same")
        _print_some(asked)
    if shared:
        more = " more" if asked else ""
        click.echo(f"  {len(shared):,}{more} have {share:.0%} of their runs of {n} words or more")
        _print_some(shared)
    if found.part:
        most = max(one.share for one in found.part)
        click.echo(
            f"  not counted: {len(found.part):,} with a phrase in common, {most:.0%} at most"
        )
        _print_some(sorted(found.part, key=lambda one: -one.share))
    if found.short:
        click.echo(
            f"  {found.short:,} have no {n} words of their own: the question alone was compared"
        )
    if found.shared:
        click.echo(f"  {found.shared:,} runs of {n} words that several records have were left out")


def _print_some(held: list[Held]) -> None:
    for one in held[:SHOWN]:
        share = f", {one.share:.0%} of its runs of words" if one.kind == "words" else ""
        text = one.text if len(one.text) <= WIDTH else one.text[:WIDTH] + "..."
        click.echo(f"    {line(one.source)}, at {line(one.there)}{share}")
        click.echo(f"      {line(text)}")
    if len(held) > SHOWN:
        click.echo(f"    and {len(held) - SHOWN:,} more; --json has all of them")


def _as_dict(found: Contamination) -> dict[str, Any]:
    return {
        "records": found.count,
        "held": [vars(one) for one in found.held],
        "part": [vars(one) for one in found.part],
        "short": found.short,
        "shared_runs": found.shared,
    }
