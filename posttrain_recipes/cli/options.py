"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def recipe_options(function: F) -> F:
    """`RECIPE --preset NAME --set PATH=VALUE`."""
    for decorator in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="PATH=VALUE",
            help="Change one option: stages.sft.method.learning_rate=1e-4. Repeatable.",
        ),
        click.option("--preset", metavar="NAME", help="One of the recipe's presets."),
        click.argument("recipe", type=click.Path(path_type=Path)),
    ):
        function = decorator(function)
    return function


def scope_options(function: F) -> F:
    """`--fresh --from STAGE --until STAGE`, as the argument `scope`."""
    from posttrain_recipes.planning.reuse import Scope

    @click.option("--fresh", is_flag=True, help="Start from nothing, whatever earlier runs left.")
    @click.option("--from", "first", metavar="STAGE", help="Run STAGE and those after it again.")
    @click.option("--until", "last", metavar="STAGE", help="Stop after STAGE.")
    @functools.wraps(function)
    def scoped(*, fresh: bool, first: str | None, last: str | None, **rest: Any) -> Any:
        return function(scope=Scope(fresh, first, last), **rest)

    return scoped  # type: ignore[return-value]


def home_option(function: F) -> F:
    """`--home DIR`."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where runs are kept. [default: $PTL_HOME or ./.ptl]",
    )(function)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
