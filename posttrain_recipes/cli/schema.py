"""`ptl schema`."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain_recipes import registry
from posttrain_recipes.language import schema as schemas
from posttrain_recipes.progress.terminal import exact
from posttrain_recipes.store import write_atomic


@click.command()
@click.option("--events", is_flag=True, help="That of the lines of 'ptl run --events'.")
@click.option("--plugins", "index", is_flag=True, help="That of the index of plugin packages.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to this file.")
def schema(events: bool, index: bool, output: Path | None) -> None:
    """Print the JSON Schema of recipes, with every installed plugin in it.

    Editors complete and explain recipes by it: put
    '# yaml-language-server: $schema=PATH' in a recipe's first line.
    """
    if events:
        from posttrain_recipes.progress.event_schema import event_schema

        text = schemas.dump(event_schema())
    elif index:
        from posttrain_recipes import listed

        text = schemas.dump(listed.schema())
    else:
        text = schemas.dump(schemas.recipe_schema(registry.load()))
    if output is None:
        exact(text)
    else:
        write_atomic(output, text)
        click.echo(f"wrote {output}")
