"""`ptl plugins`."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain_recipes import registry, shipped
from posttrain_recipes.cli.options import json_option
from posttrain_recipes.cli.streams import answer
from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.language.parsing import parse
from posttrain_recipes.plugin import Method, PluginConfig
from posttrain_recipes.progress.terminal import styled
from posttrain_recipes.registry import KINDS, Entry

if TYPE_CHECKING:
    from posttrain_recipes.testing import Finding


@click.group()
def plugins() -> None:
    """List, show, check, find and begin what recipes can use."""


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
        answer(data)
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
        answer(data)
        return
    for entry in entries:
        click.echo(f"{entry.kind} {entry.name}  ({entry.distribution} {entry.version})")
        click.echo(f"  {entry.summary}")
        for line in option_lines(entry):
            click.echo(f"  {line}")


@plugins.command("check")
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(list(KINDS)), help="Which one, where plugins of two kinds share it."
)
@click.option(
    "--set", "options", multiple=True, metavar="OPTION=VALUE", help="An option of the plugin."
)
@click.option(
    "--badge",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a picture (SVG) of what came of it, for a README.",
)
@click.option("--read-only", is_flag=True, help="Only what can be read: the plugin does no work.")
@json_option
def check_plugin(
    name: str,
    kind: str | None,
    options: tuple[str, ...],
    badge: Path | None,
    read_only: bool,
    as_json: bool,
) -> None:
    """Check plugin NAME as a reviewer would; exit 1 where something is wrong, and 3 where nothing
    is, but it was not seen at work: an engine, or a reward that abstained from every sample.

    Methods and evals run on small records on the embedded engine, which takes some 20 seconds, and
    RL some minutes.
    """
    from posttrain_recipes import testing

    given = dict(_option(text) for text in options)
    entry = _one(name, kind)
    if not as_json:
        click.echo(f"{entry.kind} {entry.name}  ({entry.distribution} {entry.version})")
    found = testing.findings(entry, given, work=not read_only)
    if as_json:
        answer([{"kind": entry.kind, **vars(finding)} for finding in found])
    else:
        for finding in found:
            _tell(finding)
    failed = not all(finding.passed for finding in found)
    unseen = testing.unexercised(found)
    if unseen and not as_json:
        click.echo("not tried: it was read, and nothing was seen of how it works")
    if badge is not None:
        from posttrain_recipes.testing import badge as badges

        seen = unseen is None and not read_only
        badges.write(badge, badges.verdict(found, seen=seen))
    sys.exit(1 if failed else 3 if unseen else 0)


def _one(name: str, kind: str | None) -> Entry:
    """The plugin of that name. Raises `UsageError` where two kinds share it and none is given."""
    if kind is not None:
        return registry.load().get(kind, name)
    entries = find(name)
    if len(entries) > 1:
        kinds = [entry.kind for entry in entries]
        ways = " or ".join(f"'ptl plugins check {name} --kind {kind}'" for kind in kinds)
        raise UsageError(
            f"'{name}' is the name of several plugins: {', '.join(kinds)}",
            hint=f"say which: {ways}",
        )
    return entries[0]


def _option(text: str) -> tuple[str, Any]:
    """`beta=0.1` as a name and a YAML value. Raises `UsageError` where it is no such pair."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"'--set {text}' is no option", hint="write --set OPTION=VALUE")
    return name, parse(f"{name}: {value}", f"--set {text}").plain()[name]


def _tell(finding: Finding) -> None:
    mark = (
        "  ok   "
        if finding.passed and not finding.skipped
        else "  skip "
        if finding.passed
        else "  FAIL "
    )
    colour = {"  ok   ": "green", "  skip ": "yellow", "  FAIL ": "red"}[mark]
    styled(mark, "", fg=colour)
    click.echo(finding.check)
    for line in finding.told.split("; ") if finding.told else ():
        click.echo(f"         {line}")


@plugins.command("search")
@click.argument("words", nargs=-1)
@click.option("--kind", type=click.Choice(list(KINDS)), help="Packages with such a plugin alone.")
@click.option(
    "--index", type=click.Path(path_type=Path), help="Another index than the one that ships."
)
@json_option
def search(words: tuple[str, ...], kind: str | None, index: Path | None, as_json: bool) -> None:
    """Packages of the index that have all WORDS in their names or sentences.

    The index ships with ptl and is as old as it is: nothing is asked of the network.
    """
    from posttrain_recipes import listed

    packages = listed.read(index or shipped.INDEX).packages
    found = [package for package in packages if package.matches(words, kind)]
    here = {entry.distribution: entry.version for entry in registry.load()}
    if as_json:
        answer([{**one.model_dump(), "installed": here.get(one.name)} for one in found])
        return
    for package in found:
        click.echo(f"{package.name}  {package.summary}")
        for plugin in package.plugins:
            click.echo(f"  {plugin.kind} {plugin.name}: {plugin.summary}")
        if package.name in here:
            click.echo(f"  installed: {here[package.name]}")
        elif not listed.usable(package):
            click.echo(f"  needs a newer ptl: it is written for version {package.api} of the API")
        else:
            click.echo(f"  source: {package.source}  install: pip install {package.name}")
    asked = " ".join(words) or "such a plugin"
    if found:
        click.echo(f"\n{len(found)} of {len(packages)} listed; to be listed is no review")
    else:
        click.echo(f"none of {len(packages)} listed packages has '{asked}'")


class _Kind(click.Choice[str]):
    """A kind of plugin; who asks for an environment is told which one that is."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value.startswith("env"):
            raise UsageError(
                "an environment is a dataset, whose records are its tasks",
                hint="'ptl plugins new dataset NAME'; ptl-textgames is one to read, and "
                "docs/environments.md says what a task is",
                code="unknown-name",
            )
        if value not in self.choices:
            self.fail(f"'{value}' is not one of {', '.join(self.choices)}.", param, ctx)
        return value


@plugins.command("new")
@click.argument("kind", type=_Kind(list(KINDS)), metavar="KIND")
@click.argument("name")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
def new_plugin(kind: str, name: str, directory: Path | None) -> None:
    """Write a package with the plugin NAME into DIRECTORY (default: ptl-NAME).

    KIND is method, dataset, reward, eval, engine or tracker. An environment is a dataset, whose
    records are its tasks.

    It installs, conforms and passes its own tests as it is written; change it from there.
    """
    from posttrain_recipes import scaffold

    written = scaffold.write(kind, name, directory)
    for path in written:
        click.echo(f"wrote {display_path(path)}")
    folder = Path(display_path(written[0].parent))
    place = folder if folder.is_absolute() else f"./{folder}"
    click.echo(f"\nnext: pip install -e '{place}[test]' && ptl plugins check {name}")


def find(name: str) -> list[Entry]:
    """Every plugin of that name. Raises `UsageError` with the nearest one."""
    found = registry.load()
    entries = found.search(name)
    if not entries:
        names = sorted({entry.name for entry in found})
        raise UsageError(
            f"no plugin is named '{name}'", hint=registry.suggest(name, names), code="unknown-name"
        )
    return entries


@dataclass(frozen=True)
class Option:
    """One option of a plugin, in words."""

    name: str
    type: str
    default: str
    """As YAML has it; `required` where there is none."""
    description: str
    own: bool
    """Whether the plugin has it to itself, rather than from the class that it builds on."""


def options(config: type[PluginConfig]) -> list[Option]:
    """The options of a plugin, those that are its own first."""
    schema = config.model_json_schema()
    found = schema.get("properties", {})
    own = [name for name in config.__annotations__ if name in found]
    required = schema.get("required", [])
    return [
        Option(
            name,
            _type(found[name]),
            "required" if name in required else json.dumps(found[name].get("default")),
            " ".join(found[name].get("description", "").split()),
            name in own,
        )
        for name in dict.fromkeys([*own, *found])
    ]


def option_lines(entry: Entry, width: int = 1000) -> list[str]:
    """Each option with its type, default and description, wrapped at `width` columns."""
    lines: list[str] = []
    for option in options(entry.config):
        default = "required" if option.default == "required" else f"default {option.default}"
        head = f"{option.name}: {option.type}  [{default}]"
        for text, first in ((head, ""), (option.description, " " * 4)):
            lines += textwrap.wrap(
                text,
                width,
                initial_indent=first,
                subsequent_indent=" " * 4,
                break_on_hyphens=False,
            )
    return lines or ["no options"]


def _type(option: dict[str, Any]) -> str:
    if "enum" in option:
        return " | ".join(str(value) for value in option["enum"])
    if "anyOf" in option:
        return " | ".join(_type(choice) for choice in option["anyOf"])
    if "const" in option:
        return str(option["const"])
    if "$ref" in option:
        return str(option["$ref"]).rpartition("/")[2]
    if option.get("type") == "array":
        return f"list of {_type(option.get('items', {}))}"
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
