"""`ptl validate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from posttrain_recipes.cli.options import RECIPE, json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.errors import Fault, Location, PtlError, RecipeError, display_path
from posttrain_recipes.progress.terminal import point

if TYPE_CHECKING:
    from posttrain_recipes.planning.overlap import Known


@click.command()
@click.argument("recipes", nargs=-1, required=True, type=RECIPE)
@click.option("--preset", metavar="NAME", help="Check with this preset only.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="As in 'ptl run'.")
@json_option
def validate(
    recipes: tuple[Path, ...], preset: str | None, overrides: tuple[str, ...], as_json: bool
) -> int:
    """Check RECIPES: form, cross-references, data files. Exit 2 where one is at fault.

    All faults are reported at once, and each preset of a recipe is checked too. Evals that ask what
    is trained on are warned of, where files on this machine of a few megabytes tell it.
    """
    from posttrain_recipes.api.recipes import validated

    results = []
    known: Known = {}
    for path in recipes:
        faults: dict[tuple[Location, str, str], Fault] = {}
        warnings: dict[str, None] = {}
        for name in [preset] if preset else _presets(path):
            try:
                warnings.update(dict.fromkeys(validated(path, name, overrides, known)))
            except RecipeError as error:
                for fault in error.faults:
                    faults.setdefault((fault.location, fault.key, fault.message), fault)
            except PtlError as error:
                if error.exit_code != 2:
                    raise
                message = "; ".join(filter(None, (error.what, error.why, error.hint)))
                fault = Fault(Location(display_path(path)), "", message, error.code)
                faults.setdefault((fault.location, "", message), fault)
        results.append((path, list(faults.values()), list(warnings)))
    if as_json:
        listing = [
            {
                "recipe": str(path),
                "ok": not found,
                "faults": [f.as_dict() for f in found],
                **({"warnings": warned} if warned else {}),
            }
            for path, found, warned in results
        ]
        answer(listing)
    else:
        for path, found, warned in results:
            for text in warned:
                click.echo(f"{display_path(path)}: warning: {text}")
            for fault in sorted(found, key=lambda f: (f.location, f.key)):
                click.echo(str(fault))
            state = f"{len(found)} fault{'s' if len(found) != 1 else ''}" if found else "ok"
            click.echo(f"{display_path(path)}: {state}")
        point(list(dict.fromkeys(fault.code for _, found, _ in results for fault in found)))
    return 2 if any(found for _, found, _ in results) else 0


def _presets(path: Path) -> list[str | None]:
    """The bare recipe, then each preset of it; a file that cannot be read has none."""
    from posttrain_recipes.language import recipe

    try:
        names = recipe.preset_names(path)
    except PtlError:
        names = []
    return [None, *(name for name in names if name != "quick")]
