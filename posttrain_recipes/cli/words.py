"""What a word means that is no plugin's name: an option, a value of one, a key of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from posttrain_recipes.language import synonyms
from posttrain_recipes.language.schema import recipe_schema
from posttrain_recipes.plugin import PluginConfig
from posttrain_recipes.registry import Entry, Registry


@dataclass(frozen=True)
class Meaning:
    """One meaning of a word, and who has it."""

    what: str
    """As `a value of 'advantage'` or `an option`."""
    text: str
    """What it does."""
    entries: Sequence[Entry]
    """The plugins that have it; of a key of a recipe none."""
    write: str
    """How it is written in a recipe."""


def meanings(word: str, registry: Registry) -> list[Meaning]:
    """What a word may mean in a recipe, the words of other tools among them."""
    plain = synonyms.plain(word)
    names = [plain, *synonyms.options(word)]
    found = [*_keys(names, registry), *_options(names, registry), *_values(plain, registry)]
    return list({(m.what, m.text): m for m in found}.values())


def all_words(registry: Registry) -> set[str]:
    """Every option, and every value that is a word."""
    options = [(name, option) for entry in registry for name, option in _properties(entry)]
    return {name for name, _ in options} | {v for _, option in options for v in _choices(option)}


def _keys(names: Sequence[str], registry: Registry) -> Iterator[Meaning]:
    recipe = recipe_schema(registry, of=())
    stage = recipe["$defs"]["stage"]["properties"]
    for place, properties in (("a recipe", recipe["properties"]), ("a stage", stage)):
        for name in names:
            if name in properties:
                text = str(properties[name].get("description", ""))
                yield Meaning(f"'{name}', a key of {place}", text, (), f"{name}: ...")


def _options(names: Sequence[str], registry: Registry) -> Iterator[Meaning]:
    for name in names:
        by_text: dict[str, list[Entry]] = {}
        for entry in registry:
            for option, about in _properties(entry):
                if option == name:
                    by_text.setdefault(_text(about), []).append(entry)
        for text, entries in by_text.items():
            first = entries[0]
            write = f"{first.kind}: {{use: {first.name}, {name}: ...}}"
            yield Meaning(f"'{name}', an option", text, entries, write)


def _values(value: str, registry: Registry) -> Iterator[Meaning]:
    by_option: dict[tuple[str, str], list[Entry]] = {}
    for entry in registry:
        for option, about in _properties(entry):
            if value in _choices(about):
                by_option.setdefault((option, _text(about)), []).append(entry)
    for (option, text), entries in by_option.items():
        first = entries[0]
        write = f"{first.kind}: {{use: {first.name}, {option}: {value}}}"
        yield Meaning(f"'{value}', a value of '{option}'", text, entries, write)


def _properties(entry: Entry) -> list[tuple[str, Any]]:
    return _schema(entry.config)


@cache
def _schema(config: type[PluginConfig]) -> list[tuple[str, Any]]:
    return list(config.model_json_schema().get("properties", {}).items())


def _text(about: Any) -> str:
    return " ".join(str(about.get("description", "")).split())


def _choices(about: Any) -> Iterator[str]:
    """The words that an option may be."""
    if isinstance(about, dict):
        for name, value in about.items():
            if name == "enum":
                yield from (v for v in value if isinstance(v, str))
            elif name == "const" and isinstance(value, str):
                yield value
            elif name in ("anyOf", "oneOf", "items"):
                yield from _choices(value)
    elif isinstance(about, list):
        for inner in about:
            yield from _choices(inner)
