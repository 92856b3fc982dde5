"""What a server does, as a page of Markdown: check by check, and recipe by recipe."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence

from posttrain_recipes import api, probe, shipped
from posttrain_recipes.errors import PtlError
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
    wanted = _wanted(dialect)
    lines = [
        f"## {label}",
        "",
        f"{count} of {len(found)} checks, with the model `{model}`{spoken}; ptl {__version__}, "
        f"tinker {importlib.metadata.version('tinker')}, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.",
        "",
        *_recipes(wanted, found),
        "",
        *_checks(wanted, found),
        "",
    ]
    return "\n".join(lines)


def _recipes(wanted: Mapping[str, Sequence[str]], found: Sequence[probe.Outcome]) -> list[str]:
    lacking = {one.name for one in found if one.verdict != "yes"}
    lines = ["| recipe | what it needs and the server lacks |", "|---|---|"]
    for recipe, names in wanted.items():
        missing = [f"`{name}`" for name in names if name in lacking]
        lines.append(f"| {recipe} | {', '.join(missing) or 'nothing'} |")
    return lines


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


def _wanted(dialect: str | None) -> dict[str, list[str]]:
    """What each recipe of this package needs of an engine, by its name, with what that stands on.
    What a recipe leaves open is as on such an engine.

    One that cannot be planned here, as for a package that is not installed, is left out.
    """
    overrides = []
    if dialect is not None:
        address = "http://127.0.0.1:1"  # planning asks nothing of a server whose dialect is named
        overrides = [f"engine={{use: server, base_url: '{address}', dialect: '{dialect}'}}"]
    wanted = {}
    for name, path in sorted(shipped.recipes().items()):
        try:
            plan = api.plan(path, overrides=overrides)
        except PtlError:
            continue
        wanted[name] = probe.with_requirements(needs.of(plan))
    return wanted
