"""`ptl explain`."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click

from posttrain_recipes import registry, shipped
from posttrain_recipes.cli import codes, words
from posttrain_recipes.cli.plugins import option_lines
from posttrain_recipes.errors import UsageError
from posttrain_recipes.language import synonyms
from posttrain_recipes.learning_rate import HIDDEN, automatic
from posttrain_recipes.options import LoraConfig
from posttrain_recipes.planning import rates
from posttrain_recipes.plugin import Eval, Method
from posttrain_recipes.registry import Entry, Registry, nearest
from posttrain_recipes.reporting import metric_words

_WIDEST = 100
RANK = LoraConfig().rank


@click.command()
@click.argument("name")
def explain(name: str) -> None:
    """Explain NAME: a plugin, a recipe, an option, another tool's word for one, a kind of error.

    Of a plugin: what it does, when to use it, the loss, the paper, its options. Of a recipe: what
    it teaches, its methods, what it showed. Of an option or one of its values (rloo, gspo, lr):
    what it does, who has it, how it is written. Of a curve (zero_variance_share, entropy): what it
    should do. Of a kind of error (unknown-key, out-of-memory), as
    the last line of its message names it: what it looks like, why, what to do.
    """
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    found = registry.load()
    entries = found.search(name) or found.search(name.lower())
    recipe = shipped.lookup(name) or shipped.lookup(name.lower())
    if entries:
        _explain_plugins(entries, width)
    elif recipe is not None:
        _explain_recipe(recipe, width)
    elif (section := codes.sections().get(name.lower())) is not None:
        click.echo(f"{section.code}, a kind of error\n")
        click.echo(wrapped(section.plain(), width))
    elif (metric := metric_words.find(name)) is not None:
        click.echo(f"{metric}, a curve of training\n")
        click.echo(wrapped(metric_words.METRICS[metric], width))
    else:
        _explain_word(name, found, width)


def _explain_plugins(entries: Sequence[Entry], width: int) -> None:
    for index, entry in enumerate(entries):
        if index:
            click.echo()
        article = "an" if entry.kind[0] in "aeiou" else "a"
        click.echo(
            f"{entry.name}, {article} {entry.kind} of {entry.distribution} {entry.version}\n"
        )
        text = inspect.cleandoc(entry.cls.__doc__ or "It says nothing about itself.")
        click.echo(wrapped(text, width))
        facts = dict(_facts(entry))
        if facts:
            click.echo()
        for label, fact in facts.items():
            click.echo(_filled(f"{label:<8}{fact}", width, " " * 8))
        click.echo("\noptions")
        for line in option_lines(entry, width - 2):
            click.echo(f"  {line}")


def _explain_word(word: str, found: Registry, width: int) -> None:
    """An option, a value of one, or what another tool calls so. Raises `UsageError` with the
    nearest word that there is."""
    meanings = words.meanings(word, found)
    elsewhere = synonyms.elsewhere(word)
    if not meanings and elsewhere is None:
        names = {*shipped.recipes(), *codes.sections(), *(entry.name for entry in found)}
        names |= {name.partition("/")[2] for name in metric_words.METRICS}
        near = nearest(word.lower(), names) or nearest(word.lower(), words.all_words(found))
        lists = "'ptl plugins list' shows the plugins, 'ptl init --list' the recipes"
        raise UsageError(
            f"no plugin, shipped recipe or option is named '{word}'",
            hint=f"did you mean '{near}'?" if near else lists,
            code="unknown-name",
        )
    if elsewhere is not None:
        click.echo(_filled(f"'{word}' {elsewhere}", width))
    elif not any(f"'{synonyms.plain(word)}'" in meaning.what for meaning in meanings):
        click.echo(f"{word} of other tools is here:\n")
    for index, meaning in enumerate(meanings):
        if index:
            click.echo()
        click.echo(_filled(meaning.what, width))
        click.echo(_filled(f"  {meaning.text}", width, "  "))
        owners = dict.fromkeys(f"{entry.kind} {entry.name}" for entry in meaning.entries)
        facts = [("of", ", ".join(owners)), ("write", meaning.write)]
        for label, fact in facts:
            if fact:
                click.echo(_filled(f"  {label:<7}{fact}", width, " " * 9))


def _explain_recipe(path: Path, width: int) -> None:
    written = _yaml(path)
    lines = path.read_text(encoding="utf-8").splitlines()[1:]  # the first names the schema
    comment = " ".join(line[2:] for line in lines if line.startswith("# "))
    teaches, *look = re.split(r" (?=Look at |What to look at: )", comment)
    click.echo(f"{path.stem}, a recipe\n")
    for text in filter(None, (written["description"], teaches, " ".join(look))):
        click.echo(f"{_filled(text, width)}\n")
    methods = dict.fromkeys(_used(written["stages"], "method"))
    facts = [("run", _command(path)), ("methods", ", ".join(methods))]
    facts += [("" if i else "showed", one) for i, one in enumerate(_showed(path.stem))]
    for label, fact in facts:
        click.echo(_filled(f"{label:<9}{fact}", width, " " * 9))


@cache
def _effects() -> Sequence[str]:
    return shipped.EFFECTS.read_text(encoding="utf-8").splitlines()


def _showed(recipe: str, *, claims: bool = False) -> list[str]:
    """What `docs/effects.md` tells of a recipe: `tone after dpo 63.5% to 97.5%, 97.0%, 96.5%`.

    Args:
        claims: leave out what was measured and is not claimed.
    """
    found = []
    for line in _effects():
        if line.startswith(f"| `{recipe}` |"):
            _, measured, claim, before, after, *_ = (cell.strip() for cell in line[1:].split("|"))
            if claim != "none" or not claims:
                found.append(f"{measured} {before} to {after}")
    return list(dict.fromkeys(found))


def _showed_of(path: Path, entry: Entry) -> list[str]:
    """What a recipe claims of its stages that use this method."""
    stages = set(_stages_with(_yaml(path)["stages"], entry.name))
    told = re.compile(r" after (\S+) ")
    return [
        one
        for one in _showed(path.stem, claims=True)
        if (stage := told.search(one)) and stage[1] in stages
    ]


def _stages_with(stages: Any, method: str) -> Iterator[str]:
    """Names of stages that use a method, those in loops and comparisons too."""
    for stage in stages:
        inner = [stage.get("stages"), *(b.get("stages") for b in stage.get("compare") or ())]
        for nested in filter(None, inner):
            yield from _stages_with(nested, method)
        used = stage.get("method")
        if used and method == (used if isinstance(used, str) else used.get("use")):
            yield stage.get("name", "")


def wrapped(text: str, width: int) -> str:
    """Paragraphs refilled to `width` columns; what is indented or a list keeps its lines."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        shipped.with_pages(paragraph)
        if any(line.startswith((" ", "- ")) for line in paragraph.splitlines())
        else _filled(paragraph, width)
        for paragraph in paragraphs
    )


def _filled(text: str, width: int, indent: str = "") -> str:
    """Paths of pages are those of here; none is broken, so that it can be copied."""
    return textwrap.fill(
        shipped.with_pages(text),
        width,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    cls = entry.cls
    if issubclass(cls, (Method, Eval)):
        types = ", ".join(t.__name__ for t in cls.takes)
        none = "none" if issubclass(cls, Method) else "those of the suite that it calls"
        yield "data", f"{types} records" if types else none
    if issubclass(cls, Method):
        if cls.loss:
            yield "loss", cls.loss
        if cls.paper:
            yield "paper", cls.paper
        for name in rates.options(entry.config):
            small, large = (automatic(h, cls.family, RANK) for h in (HIDDEN, rates.LARGE))
            yield (
                "auto",
                f"{name}, of the family {cls.family}: {small:g} at a hidden size of {HIDDEN}, "
                f"{large:g} at {rates.LARGE} (8B)",
            )
    recipes = list(_recipes(entry))
    if recipes:
        yield "recipe", ", ".join(_command(path) for path in recipes[:3])
    showed = [f"{path.stem}: {one}" for path in recipes for one in _showed_of(path, entry)]
    if issubclass(cls, Method) and showed:
        yield "showed", "; ".join(showed[:3]) + " (docs/effects.md)"
    pages = (
        shipped.ROOT / "docs" / f"{entry.kind}s" / f"{entry.name}.md",
        shipped.ROOT / "docs" / f"{entry.kind}s.md",
    )
    for page in pages:
        if page.is_file():
            yield "docs", shipped.shown(page)
            break


def _recipes(entry: Entry) -> Iterator[Path]:
    """Shipped recipes that use the plugin, those of its name first: grpo, then grpo_arithmetic."""

    def order(path: Path) -> tuple[bool, bool, Path]:
        return path.stem != entry.name, not path.stem.startswith(f"{entry.name}_"), path

    paths = sorted(shipped.recipes().values(), key=order)
    for path in paths:
        if entry.name in set(_used(_yaml(path), entry.kind)):
            yield path


@cache
def _yaml(path: Path) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as safe, and faster
    return yaml.load(path.read_text(encoding="utf-8"), loader)


def _used(value: Any, kind: str, under: str = "") -> Iterator[str]:
    """Names after `use:` where a plugin of that kind stands: below a key of the kind's name, or of
    its plural."""
    if isinstance(value, dict):
        if under in (kind, f"{kind}s") and isinstance(value.get("use"), str):
            yield value["use"]
        for key, inner in value.items():
            yield from _used(inner, kind, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _used(inner, kind, under)


def _command(recipe: Path) -> str:
    """How to run a shipped recipe: from where it lies, or from where `ptl init` puts it."""
    if shipped.in_checkout():
        return f"ptl run {shipped.shown(recipe)}"
    return f"ptl init --recipe {recipe.stem}"
