"""A recipe's faults against its schema, in words that say what to write instead."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator

from posttrain_recipes.errors import Fault
from posttrain_recipes.language import synonyms
from posttrain_recipes.language.nodes import NESTED, Key
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.language.schema import BOUND, NAME, WITHOUT_GAIN, recipe_schema
from posttrain_recipes.registry import KINDS, Registry, nearest, suggest
from posttrain_recipes.shipped import INDEX

MISPLACED = {
    "repeat": "stands in the list of stages: '- repeat: 3' with 'stages:' below it",
    "compare": "stands in the list of stages: '- compare:' with the branches below it",
    "until": "stands beside 'repeat:'",
    "matrix": "stands at the top of a recipe",
    **dict.fromkeys(("limits", "on_end", "trackers"), "stands at the top of a recipe"),
    "seed": "stands at the top of a recipe, or in a stage beside 'method:'",
    **dict.fromkeys(
        ("dataset", "reward", "eval", "init_from"), "stands in a stage, beside 'method:'"
    ),
}
"""Words of the language with the place where they mean something."""


# --- a recipe against the schema -----------------------------------------------------------------


def structural_faults(recipe: Recipe, registry: Registry) -> list[Fault]:
    """Every place where the recipe does not have the form that the schema asks for."""
    # A plugin that no value names cannot be meant, so it need not be imported.
    validator = Draft202012Validator(recipe_schema(registry, of=set(texts(recipe.data))))
    faults: dict[tuple[str, str], Fault] = {}
    expanded = recipe.source is not None
    for key in _not_finite(recipe.data, ()):
        fault = recipe.fault(key, "must be a number that is finite")
        faults[fault.key, fault.message] = fault
    for error in validator.iter_errors(recipe.data):
        if expanded and len(error.absolute_path) == 3 and error.absolute_path[2] == "name":
            continue  # the names of variants are ours
        for fault in _explain(recipe, error, registry):
            faults.setdefault((fault.key, fault.message), fault)
    better = {key for key, message in faults if not message.startswith(_EMPTY)}
    return [
        fault
        for (key, message), fault in faults.items()
        if not (message.startswith(_EMPTY) and key in better)
    ]


def _not_finite(value: Any, key: Key) -> Iterator[Key]:
    """Where `.inf` and `.nan` stand: JSON Schema does not know of them."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_finite(inner, (*key, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, (*key, index))


def texts(value: Any) -> Iterator[str]:
    """Every text in the recipe, keys aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def _explain(recipe: Recipe, error: Any, registry: Registry) -> Iterator[Fault]:
    """A `jsonschema.ValidationError` (whose stubs type its parts as anything) in words."""
    key: Key = tuple(error.absolute_path)
    if error.validator in ("anyOf", "oneOf"):
        yield from _explain_choice(recipe, error, registry)
    elif error.validator == "additionalProperties" and isinstance(error.schema, dict):
        known = list(error.schema.get("properties", {}))
        for name in sorted(set(error.instance) - set(known)):
            message = _unknown(recipe, key, name, [k for k in known if k != "use"])
            yield recipe.fault((*key, name), message, of_key=True, code="unknown-key")
    elif error.validator == "required":
        for name in error.validator_value:
            if name not in error.instance:
                yield recipe.fault(key, _missing(key, name, registry), code="missing-key")
    else:
        named = error.validator in ("enum", "const") and _names_plugin(key)
        code = "unknown-name" if named else "wrong-value"
        yield recipe.fault(key, _phrase(error, key, registry), code=code)


def _names_plugin(key: Key) -> bool:
    return bool(key) and (key[-1] == "use" or key == ("engine",) or key[:-1] == ("trackers",))


def _kind(key: Key) -> str:
    """The kind of the plugins that a key is about; empty where it is about none."""
    kinds = {**{kind: kind for kind in KINDS}, "trackers": "tracker"}
    return next((kinds[part] for part in reversed(key) if part in kinds), "")


def _explain_choice(recipe: Recipe, error: Any, registry: Registry) -> Iterator[Fault]:
    """Of several forms, speak of the one that was most likely meant: null is never it."""
    branches: dict[Any, list[Any]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.relative_schema_path[0], []).append(inner)
    meant = [
        errors
        for index, errors in branches.items()
        if error.validator_value[index].get("type") != "null"
    ]
    same_type = [
        errors
        for errors in meant
        if len(meant) == 1
        or not any(i.validator in ("type", "const") and not i.path for i in errors)
    ]
    if same_type or len(meant) == 1:
        for inner in (same_type or meant)[0]:
            yield from _explain(recipe, inner, registry)
        return
    named = [str(option["const"]) for option in error.validator_value if "const" in option]
    types = [_type(option) for option in error.validator_value if "const" not in option]
    words = " or ".join(TYPE_WORDS.get(name, name) for name in types)
    tail = f"; or write {' or '.join(named)}" if named else ""
    key = tuple(error.absolute_path)
    if "object" in types and isinstance(error.instance, str) and key[-1:] and key[-1] in FORMS:
        tail = f"; write {FORMS[str(key[-1])].format(error.instance)}"
    yield recipe.fault(key, f"must be {words}, not {_show(error.instance)}{tail}")


def _type(option: Mapping[str, Any]) -> str:
    if "$ref" in option or "properties" in option or "allOf" in option:
        return "object"
    return str(option.get("type", "value"))


def _unknown(recipe: Recipe, key: Key, name: str, known: list[str]) -> str:
    if name in MISPLACED and name not in known:
        return f"'{name}' {MISPLACED[name]}"
    if key[-1:] == ("lora",) and (why := synonyms.of_adapter(name)):
        return f"'{name}' {why}"
    elsewhere = synonyms.hint(name, known)
    return f"unknown {_owner(recipe, key)}; {elsewhere or suggest(name, known)}"


def _in_stages(key: Key) -> bool:
    """Whether an item of a list of stages stands there, at any depth."""
    return key[:1] == ("stages",) and all(
        part in NESTED if isinstance(part, str) else True for part in key
    )


def _owner(recipe: Recipe, key: Key) -> str:
    node = recipe.root
    for part in key:
        node = node.child(part) or node
    use = node.child("use")
    if use is not None and isinstance(use.value, str):
        kind = next((p for p in reversed(key) if isinstance(p, str)), "plugin")
        kind = _kind(key) if kind == "trackers" else kind
        return f"option for {kind} '{use.value}'"
    if not key:
        return "key in a recipe"
    if _in_stages(key) and isinstance(key[-1], int):
        block = next((word for word in ("repeat", "compare") if node.child(word)), "")
        return f"key beside '{block}:'" if block else "key in a stage"
    return f"key in '{key[-1]}'"


def _missing(key: Key, name: str, registry: Registry) -> str:
    if name == "use":
        # A data set among those of another one stands under a word of that one's own.
        kind = _kind(key)
        there = f"; {suggest('', registry.names(kind))}" if kind else ""
        return f"needs 'use:', which names the {kind or 'plugin'}{there}"
    if not key:
        return f"a recipe needs '{name}:'"
    if _in_stages(key) and isinstance(key[-1], int):
        if name == "stages":
            return "a loop needs 'stages:', a list of the stages of a round"
        return f"a stage needs '{name}:'"
    return f"needs the option '{name}'"


_EMPTY = "is empty"
"""How a null is told that may not stand there, unless more is known of the place."""
FORMS = {
    "keep": "{{best: EVAL}}",
    "stop": "{{after: 3 evals without gain}}",
    "renderer": "{{chat_template: {}}}",
    "lora": "{{rank: 16}}",
    "on_end": "{{command: [{}]}}",
    "teacher": "{{stage: {0}}} or {{model: {0}}}",
}
"""Mappings that name no plugin, with what was written in their place."""
TYPE_WORDS = {
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "object": "a mapping (key: value)",
    "array": "a list",
    "null": "null",
}


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def data_form(value: str) -> str:
    """How to write data of which a recipe names only the place: a file, or an id of the hub."""
    if value.lower().endswith((".jsonl", ".json", ".csv", ".tsv", ".parquet")):
        return f"{{use: jsonl, path: {value}}}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", value) and not value.startswith("."):
        return f"{{use: huggingface, path: {value}}}"
    return ""


def listed_in(kind: str, name: str) -> str:
    """How to install the plugin of that name, where the index that ships has it; else nothing."""
    try:
        packages = json.loads(INDEX.read_text(encoding="utf-8"))["packages"]
        for package in packages:
            if any((one["kind"], one["name"]) == (kind, name) for one in package["plugins"]):
                return f"it is in a package that is not installed: pip install {package['name']}"
    except (OSError, ValueError, LookupError, TypeError):
        pass  # it is a hint
    return ""


def _phrase(error: Any, key: Key, registry: Registry) -> str:
    value, rule = error.instance, error.validator_value
    shown = _show(value)
    if error.validator == "type":
        names = [rule] if isinstance(rule, str) else list(rule)
        words = " or ".join(TYPE_WORDS.get(name, name) for name in names)
        hint = ""
        if "boolean" in names and str(value).lower() in ("yes", "no", "on", "off"):
            hint = "; write true or false"
        elif "object" in names and isinstance(value, str) and key:
            own = "{{use: {}}}" if "use" in error.schema.get("properties", {}) else ""
            if key[-1] == "dataset" and (data := data_form(value)):
                return f"must be {words}, not {shown}; write {data}"
            form = FORMS.get(str(key[-1]), own).format(value)
            hint = f"; write {form}" if form else ""
        elif error.schema.get("pattern") == BOUND["pattern"] and isinstance(value, int | float):
            hint = f'; write ">= {shown}"'
        elif key == ("trackers",) and value is not None:
            hint = f"; write [{value}]" if isinstance(value, str) else "; [] for none"
        elif value is None:
            return f"{_EMPTY}; it must be {words}"
        return f"must be {words}, not {shown}{hint}"
    if error.validator in ("enum", "const"):
        options = [str(option) for option in (rule if error.validator == "enum" else [rule])]
        if _names_plugin(key):
            kind = _kind(key) or "plugin"
            data = data_form(value) if kind == "dataset" and isinstance(value, str) else ""
            found = listed_in(kind, str(value))
            meant = f"write {data}" if data else found or suggest(str(value), options)
            return f"unknown {kind} {shown}; {meant}"
        near = nearest(str(value), options)
        meant = f"; did you mean '{near}'?" if near else ""
        return f"must be one of {', '.join(options)}, not {shown}{meant}"
    phrases = {
        "minimum": f"must be at least {rule}, not {shown}",
        "exclusiveMinimum": f"must be more than {rule}, not {shown}",
        "maximum": f"must be at most {rule}, not {shown}",
        "exclusiveMaximum": f"must be less than {rule}, not {shown}",
        "minLength": "must not be empty",
        "minProperties": "must not be empty",
        "minItems": "a comparison needs at least two branches"
        if key[-1:] == ("compare",)
        else f"needs at least {rule} item{'s' if rule != 1 else ''}",
        "maxLength": f"must have at most {rule} characters",
        "pattern": f"{shown} must start with a letter and have only letters, digits, '_' and '-'"
        if rule == NAME["pattern"]
        else f'{shown} is no bound; write ">= 0.8" or "<= 5%"'
        if rule == BOUND["pattern"]
        else f"{shown} is no number of evals; write '3 evals without gain'"
        if rule == WITHOUT_GAIN
        else f"{shown} must match {rule}",
    }
    return phrases.get(str(error.validator), error.message)
