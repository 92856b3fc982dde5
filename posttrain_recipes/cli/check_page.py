"""What a server does, as a page of Markdown: check by check, and recipe by recipe."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from contextlib import suppress

from posttrain_recipes import api, probe, shipped
from posttrain_recipes.errors import PtlError, RecipeError
from posttrain_recipes.planning import needs
from posttrain_recipes.version import __version__

FEW = 5
"""More recipes than so many are counted; the first table has them all."""
MARKS = {"yes": "yes", "no": "**no**", "untried": "not tried"}


def page(label: str, model: str, dialect: str | None, found: Sequence[probe.Outcome]) -> str:
    """The section of one server.

    Args:
        label: what the server is called, with its version.
        dialect: the form of the protocol that it speaks; None for the embedded engine.
    """
    count = sum(one.verdict == "yes" for one in found)
    spoken = f", dialect {dialect}" if dialect else ""
    lines = [
        f"## {label}",
        "",
        f"{count} of {len(found)} checks, with the model `{model}`{spoken}; ptl {__version__}, "
        f"tinker {importlib.metadata.version('tinker')}, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.",
        "",
        *tables(dialect, found),
        "",
    ]
    return "\n".join(lines)


def tables(dialect: str | None, found: Sequence[probe.Outcome]) -> list[str]:
    """Its two tables: what each recipe of this package lacks there, and each check."""
    wanted, refused = _wanted(dialect)
    return [*_recipes(wanted, refused, found), "", *_checks(wanted, found)]


def _recipes(
    wanted: Mapping[str, Sequence[str]],
    refused: Mapping[str, str],
    found: Sequence[probe.Outcome],
) -> list[str]:
    lacking = {one.name for one in found if one.verdict != "yes"}
    told = {
        recipe: ", ".join(f"`{name}`" for name in names if name in lacking) or "nothing"
        for recipe, names in wanted.items()
    }
    rows = sorted({**told, **{name: f"refused: {why}" for name, why in refused.items()}}.items())
    return [
        "| recipe | what it needs and the server lacks |",
        "|---|---|",
        *(f"| {recipe} | {_cell(what)} |" for recipe, what in rows),
    ]


def _checks(wanted: Mapping[str, Sequence[str]], found: Sequence[probe.Outcome]) -> list[str]:
    lines = ["| check | what | does it | recipes that need it |", "|---|---|---|---|"]
    for one in found:
        told = f"{MARKS[one.verdict]}: {one.detail}" if one.detail else MARKS[one.verdict]
        recipes = [recipe for recipe, names in wanted.items() if one.name in names]
        users = ", ".join(recipes) if len(recipes) <= FEW else f"{len(recipes)} recipes"
        lines.append(f"| `{one.name}` | {_cell(one.summary)} | {_cell(told)} | {users} |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _wanted(dialect: str | None) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What each recipe of this package needs of an engine, by its name, with what that stands on;
    and those that are refused there, with the reason. What a recipe leaves open is as on such an
    engine.

    One that cannot be planned here at all, as for a package that is not installed, is left out.
    """
    overrides = []
    if dialect is not None:
        address = "http://127.0.0.1:1"  # planning asks nothing of a server whose dialect is named
        overrides = [f"engine={{use: server, base_url: '{address}', dialect: '{dialect}'}}"]
    wanted, refused = {}, {}
    for name, path in sorted(shipped.recipes().items()):
        try:
            plan = api.plan(path, overrides=overrides)
        except PtlError as error:
            with suppress(PtlError):
                api.plan(path)
                refused[name] = _why(error)
            continue
        wanted[name] = probe.with_requirements(needs.of(plan))
    return wanted, refused


def _why(error: PtlError) -> str:
    """The first sentence of what is wrong."""
    told = error.faults[0].message if isinstance(error, RecipeError) else error.what
    return told.split(". ")[0]
