"""`ptl explain`."""

from __future__ import annotations

import inspect

import click

from posttrain_recipes.cli.plugins import find, option_lines
from posttrain_recipes.plugin import Eval, Method


@click.command()
@click.argument("name")
def explain(name: str) -> None:
    """Explain NAME: what it does, when to use it, the loss, the paper, its options."""
    for index, entry in enumerate(find(name)):
        if index:
            click.echo()
        click.echo(f"{entry.name}, a {entry.kind} of {entry.distribution} {entry.version}\n")
        click.echo(inspect.cleandoc(entry.cls.__doc__ or "It says nothing about itself."))
        if issubclass(entry.cls, (Method, Eval)):
            click.echo(f"\ndata    {', '.join(t.__name__ for t in entry.cls.takes)} records")
        if issubclass(entry.cls, Method):
            if entry.cls.loss:
                click.echo(f"loss    {entry.cls.loss}")
            if entry.cls.paper:
                click.echo(f"paper   {entry.cls.paper}")
        click.echo("\noptions")
        for line in option_lines(entry):
            click.echo(f"  {line}")
