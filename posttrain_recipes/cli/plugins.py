"""`ptl plugins`."""

from __future__ import annotations

import json
import shutil
from typing import Any

import click

from posttrain_recipes import registry
from posttrain_recipes.cli.options import json_option
from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import Method
from posttrain_recipes.registry import KINDS, Entry


@click.group()
def plugins() -> None:
    """List and show what recipes can use."""


@plugins.command("list")
@json_option
def list_plugins(as_json: bool) -> None:
    """Every plugin that is installed, by kind."""
    found = registry.load()
    if as_json:
        data = {
            "plugins": [_summary(entry) for entry in found],
            "broken": [vars(broken) for broken in found.broken],
        }
        click.echo(json.dumps(data, indent=2))
        return
    formatter = click.HelpFormatter(width=shutil.get_terminal_size().columns)
    for kind in KINDS:
        with formatter.section(f"{kind}s"):
            lines = [(name, _line(found.entries[kind][name])) for name in found.names(kind)]
            formatter.write_dl(lines or [("none", "")])
    click.echo(formatter.getvalue().rstrip())
    for broken in found.broken:
        click.echo(
            f"warning: plugin '{broken.name}' of {broken.distribution} cannot be loaded: "
            f"{broken.reason}",
            err=True,
        )


def _line(entry: Entry) -> str:
    origin = "" if entry.distribution == "posttrain-recipes" else f"  [{entry.distribution}]"
    lacking = f"  (needs {', '.join(entry.missing)})" if entry.missing else ""
    return entry.summary + origin + lacking


@plugins.command("show")
@click.argument("name")
@json_option
def show_plugin(name: str, as_json: bool) -> None:
    """The options of plugin NAME."""
    entries = find(name)
    if as_json:
        data = [{**_summary(e), "options": e.config.model_json_schema()} for e in entries]
        click.echo(json.dumps(data, indent=2))
        return
    for entry in entries:
        click.echo(f"{entry.kind} {entry.name}  ({entry.distribution} {entry.version})")
        click.echo(f"  {entry.summary}")
        for line in option_lines(entry):
            click.echo(f"  {line}")


def find(name: str) -> list[Entry]:
    """Every plugin of that name. Raises `UsageError` with the nearest one."""
    found = registry.load()
    entries = found.search(name)
    if not entries:
        names = sorted({entry.name for entry in found})
        raise UsageError(f"no plugin is named '{name}'", hint=registry.suggest(name, names))
    return entries


def option_lines(entry: Entry) -> list[str]:
    """Each option with its type, default and description; the plugin's own ones first."""
    schema = entry.config.model_json_schema()
    options = schema.get("properties", {})
    own = [name for name in entry.config.__annotations__ if name in options]
    lines = []
    for name in dict.fromkeys([*own, *options]):
        option = options[name]
        default = "required" if name in schema.get("required", []) else _default(option)
        lines.append(f"{name}: {_type(option)}  [{default}]")
        if option.get("description"):
            lines.append(f"    {' '.join(option['description'].split())}")
    return lines or ["no options"]


def _default(option: dict[str, Any]) -> str:
    return f"default {json.dumps(option.get('default'))}"


def _type(option: dict[str, Any]) -> str:
    if "enum" in option:
        return " | ".join(str(value) for value in option["enum"])
    if "anyOf" in option:
        return " | ".join(_type(choice) for choice in option["anyOf"])
    if "const" in option:
        return str(option["const"])
    return str(option.get("type", "value"))


def _summary(entry: Entry) -> dict[str, Any]:
    data: dict[str, Any] = {
        "kind": entry.kind,
        "name": entry.name,
        "summary": entry.summary,
        "distribution": entry.distribution,
        "version": entry.version,
        "missing": entry.missing,
    }
    if issubclass(entry.cls, Method):
        data["takes"] = [record.__name__ for record in entry.cls.takes]
    return data
