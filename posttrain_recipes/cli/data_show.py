"""`ptl data show`: the records of a stage as the model will read them."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain_recipes import api
from posttrain_recipes.cli.options import home_option, json_option, recipe_options
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.progress.terminal import styled
from posttrain_recipes.shown import line

if TYPE_CHECKING:
    from posttrain_recipes.running.rendered import SeenRecord, StageShown, View

MARKS = (("⟦", "⟧"), ("⟪", "⟫"), ("[[", "]]"), ("<learned>", "</learned>"))
"""What learned tokens stand in where there is no colour: the first that the text does not have."""
BAR = "   | "


@click.command()
@recipe_options
@click.option("--stage", "only", metavar="NAME", help="This stage alone. [default: all of them]")
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Records of a stage, the first ones.",
)
@click.option("--evals", is_flag=True, help="Records of the stages' evals too: what is held out.")
@home_option
@json_option
def show(
    recipe: Path,
    preset: str | None,
    overrides: tuple[str, ...],
    only: str | None,
    count: int,
    evals: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Show the first records of RECIPE's stages as the model will read them.

    That is the text with all that the chat template adds, such as a default system prompt, and the
    tokens that are learned: in green in a terminal, in ⟦ ⟧ elsewhere. No engine is needed. Records
    that a stage makes are shown from its last run.
    """
    planned = api.plan(recipe, preset=preset, overrides=overrides, home=home)
    # The variants of a matrix go by the name of their stage too.
    stages = [s for s in planned.stages if only in (None, s.name, s.name.partition("@")[0])]
    if not stages:
        from posttrain_recipes.errors import UsageError
        from posttrain_recipes.registry import suggest

        names = [stage.name for stage in planned.stages]
        raise UsageError(
            f"unknown stage '{only}'; {suggest(only or '', names)}", code="unknown-name"
        )
    from posttrain_recipes.running.rendered import Looker
    from posttrain_recipes.store import Store, default_home

    store = Store(default_home(home))
    looker = Looker(planned, store.runs(), store.runs_dir)
    found = [shown for stage in stages for shown in looker.stage(stage, count, evals=evals)]
    if as_json:
        answer(
            {"recipe": planned.name, "stages": [_as_dict(one) for one in found]}, exact=("text",)
        )
        return
    marks = None if _coloured() else _marks(found)
    known: dict[object, str] = {}
    for one in found:
        if (same := known.setdefault(one.same, one.stage)) != one.stage:
            click.echo(f"\n{line(one.stage)} ({line(one.use)}): the same as stage '{line(same)}'")
        else:
            _print(one, marks)


def _coloured() -> bool:
    """Whether what is printed may have colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.getenv("TERM") != "dumb"


def _marks(stages: list[StageShown]) -> tuple[str, str]:
    """Marks for learned tokens that are in no text and can be printed."""
    texts = [
        piece.text
        for one in stages
        for record in one.records
        for view in record.views
        for piece in view.pieces
    ]

    def fit(marks: tuple[str, str]) -> bool:
        try:
            "".join(marks).encode(sys.stdout.encoding or "ascii")
        except UnicodeEncodeError:
            return False
        return not any(mark in text for mark in marks for text in texts)

    return next(filter(fit, MARKS), MARKS[-1])


def _print(one: StageShown, marks: tuple[str, str] | None) -> None:
    records = f", {one.count:,} {one.kind} records" if one.count else ""
    styled(f"\n{line(one.stage)} ({line(one.use)})", end="", bold=True)
    click.echo(f": {line(one.data)}{records}, as {line(one.model)} reads them")
    if any(view.weights for record in one.records for view in record.views):
        how = f"stand in {marks[0]} {marks[1]}" if marks else "are green"
        click.echo(f"learned tokens {how}; special tokens are shown by their names")
    if one.note:
        click.echo(f"  {line(one.note)}")
    for number, record in enumerate(one.records, 1):
        _print_record(number, record, marks)


def _print_record(number: int, record: SeenRecord, marks: tuple[str, str] | None) -> None:
    click.echo(f"\n{number}. {line(record.source)}")
    for view in record.views:
        what = f"{view.what}: " if view.what else ""
        learned = f", {view.learned:,} of them learned" if view.weights else ", a prompt"
        learned += f" ({view.weighs})" if view.weighs else ""
        click.echo(f"   {line(what)}{len(view.ids):,} tokens{learned}")
        _print_text(view, marks)
        for added in view.added:
            remark = f"  ({line(added.remark)})" if added.remark else ""
            click.echo(f"   the template adds {line(added.where)}: '{line(added.text)}'{remark}")
        if view.ends:
            click.echo(f"   the reply ends at {line(' or '.join(view.ends))}")
        for note in view.notes:
            click.echo(f"   {line(note)}")
    if record.note:
        click.echo(f"   {line(record.note)}")


def _print_text(view: View, marks: tuple[str, str] | None) -> None:
    styled(BAR, end="", dim=True)
    open_ = False
    for piece in view.pieces:
        if marks and piece.learned != open_ and not piece.left_out:
            click.echo(marks[0] if piece.learned else marks[1], nl=False)
            open_ = piece.learned
        style: dict[str, Any] = {}
        if piece.left_out:
            style = {"fg": "yellow"}
        elif piece.learned:
            style = {"fg": "green", "bold": True}
        elif piece.special:
            style = {"fg": "cyan", "dim": True}
        styled(piece.text.replace("\n", f"\n{BAR}"), end="", **(style if marks is None else {}))
    click.echo(marks[1] if marks and open_ else "")


def _as_dict(one: StageShown) -> dict[str, Any]:
    found = asdict(one)
    for record, shown in zip(found["records"], one.records, strict=True):
        for view, seen in zip(record["views"], shown.views, strict=True):
            view["tokens"], view["learned"] = len(seen.ids), seen.learned
    return found
