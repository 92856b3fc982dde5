"""`ptl engines`."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from posttrain_recipes import models, probe, registry
from posttrain_recipes.cli import check_page
from posttrain_recipes.cli.options import json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.engines import Local, Server
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.models import check_model
from posttrain_recipes.options import check_address
from posttrain_recipes.plugin import Connection
from posttrain_recipes.progress.terminal import styled
from posttrain_recipes.waiting import EngineWaiter

SMALL = "ptl/nano"
MARKS = {"yes": ("yes", "green"), "no": ("no", "red"), "untried": ("-", "yellow")}


@click.group()
def engines() -> None:
    """List engines, and see what a Tinker-compatible server can do."""


@engines.command("list")
@json_option
def list_engines(as_json: bool) -> None:
    """What `engine:` in a recipe can name."""
    entries = registry.load().entries["engine"].values()
    if as_json:
        rows = [{"name": one.name, "summary": one.summary} for one in entries]
        answer(rows)
        return
    formatter = click.HelpFormatter()
    formatter.write_dl([(one.name, one.summary) for one in entries])
    click.echo(formatter.getvalue().rstrip())


@engines.command("check")
@click.option(
    "--base-url",
    envvar="TINKER_BASE_URL",
    metavar="URL",
    help="The server, as http://host:port; its key is read from TINKER_API_KEY. "
    "[default: $TINKER_BASE_URL, or the embedded engine]",
)
@click.option("--model", metavar="NAME", help="A model that it serves. [default: its first]")
@click.option(
    "--only",
    multiple=True,
    metavar="CAPABILITY",
    help="Check this, and what it stands on; exit status 1 where the server lacks it. Repeatable.",
)
@click.option(
    "--dialect",
    type=click.Choice(["auto", "current", "0.25"]),
    default="auto",
    show_default=True,
    help="The form of the protocol that the server speaks.",
)
@click.option(
    "--rank",
    type=click.IntRange(1, 512),
    default=probe.RANK,
    show_default=True,
    help="Of the adapters; some servers keep to that of the first.",
)
@click.option(
    "--startup-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the first training check, and the first of sampling, may take.",
)
@click.option(
    "--markdown",
    metavar="LABEL",
    help="Print a page of Markdown, with this name for the server, such as 'SkyRL 0.3.0': what it "
    "does, and which recipes of this package run on it.",
)
@json_option
def check(
    base_url: str | None,
    model: str | None,
    only: tuple[str, ...],
    dialect: str,
    rank: int,
    startup_timeout: float,
    markdown: str | None,
    as_json: bool,
) -> None:
    """Try everything that a Tinker server may do, each on a few tokens, and say what it does.

    Its names are what a plugin's `needs` names. What is saved on the server meanwhile is deleted,
    and no more than four adapters are held at a time.
    """
    # One check is of a call that the SDK calls deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="posttrain_recipes.probe")
    check_address(base_url, "--base-url (or TINKER_BASE_URL)")
    if markdown is not None and (only or as_json):
        raise UsageError("--markdown is of all checks, and no JSON: leave out --only and --json")
    names = probe.with_requirements(only) if only else None
    found: list[probe.Outcome] = []
    aloud = not as_json and markdown is None
    with _connected(base_url, model, dialect) as (connection, name, spoken):
        if aloud:
            told = f", dialect {spoken}" if spoken not in (None, "current") else ""
            click.echo(f"{base_url or 'the embedded engine'}, model {name}{told}\n")
        for outcome in probe.probe(
            connection.service,
            connection.rest,
            name,
            names,
            startup_s=startup_timeout,
            rank=rank,
        ):
            found.append(outcome)
            if aloud:
                _tell(outcome)
    if as_json:
        answer([asdict(one) for one in found])
    elif markdown is not None:
        click.echo(check_page.page(markdown, name, spoken, found), nl=False)
    else:
        count = sum(one.verdict == "yes" for one in found)
        lacking = ", ".join(one.name for one in found if one.verdict == "no")
        click.echo(f"\n{count} of {len(found)}" + (f"; lacks {lacking}" if lacking else ""))
    if any(one.name in only and one.verdict != "yes" for one in found):
        raise SystemExit(1)


@contextmanager
def _connected(
    base_url: str | None, model: str | None, dialect: str
) -> Iterator[tuple[Connection, str, str | None]]:
    """A connection, a model to try things on, and the dialect of a server."""
    if base_url is None:
        name = model or SMALL
        check_model(name, "--model")
        engine = Local(Local.Config())
        with tempfile.TemporaryDirectory(prefix="ptl-check-") as folder:
            home = Path(folder)
            location = models.resolve(name)
            with engine.connect({name: location}, home, home / "engine.log") as connection:
                yield connection, name, None
        return
    server = Server(Server.Config.model_validate({"base_url": base_url, "dialect": dialect}))
    server.settle(None, measure=True)
    asked = {model: model} if model else {}
    with server.connect(asked, Path(), Path()) as connection:
        if model is None:
            wait = EngineWaiter(connection.alive)
            served = wait(connection.rest.get_server_capabilities()).supported_models
            model = next((one.model_name for one in served if one.model_name), None)
        if model is None:
            raise PtlError(f"{base_url} does not say what it serves", hint="name one with --model")
        yield connection, model, server.dialect


def _tell(outcome: probe.Outcome) -> None:
    mark, color = MARKS[outcome.verdict]
    told = outcome.summary if outcome.verdict == "yes" else f"{outcome.summary}: {outcome.detail}"
    if outcome.verdict == "yes" and outcome.detail:
        told += f" ({outcome.detail})"
    styled(f"{mark:4}", "", fg=color)
    click.echo(f"{outcome.name:25} {told}")
