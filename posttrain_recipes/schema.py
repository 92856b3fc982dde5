"""Recipe x registry -> JSON Schema 2020-12, and a recipe's faults against it, in words.

The schema is composed from the grammar below and from the `Config` of every installed plugin, so
that an editor completes a stranger's options as well as ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from posttrain_recipes.errors import Fault
from posttrain_recipes.plugin import LoraConfig, PluginConfig
from posttrain_recipes.recipe import Key, Recipe
from posttrain_recipes.registry import Entry, Registry, suggest

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"
RESERVED = {
    "repeat": "loops over stages",
    "matrix": "grids of values",
    "compare": "stages compared at one budget",
    "limits": "bounds on cost and time",
}
"""Words of the language that a later version gives a meaning; nobody else may take them."""

NAME = {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_-]*$", "maxLength": 64}
EXTRA_OPTIONS: dict[str, dict[str, Any]] = {
    "eval": {
        "name": {
            **NAME,
            "description": "What tables and metrics call it, and what other stages refer to; "
            "by default the plugin's name.",
        },
        "dataset": {
            "$ref": "#/$defs/dataset",
            "description": "What to evaluate on; by default the stage's own test split.",
        },
    },
    "reward": {
        "weight": {
            "type": "number",
            "default": 1.0,
            "description": "The factor of this reward in the sum.",
        },
    },
}
"""Options that the core reads beside the plugin's own, by kind."""


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """The JSON Schema of recipes in this environment."""
    definitions: dict[str, Any] = {}
    for kind in ("dataset", "method", "reward", "eval", "engine"):
        definitions[kind] = _use(kind, registry)
        for entry in registry.entries[kind].values():
            definitions.update(_plugin(entry))
    definitions["lora"] = _config_schema(LoraConfig, "lora", definitions)
    definitions["stage"] = _stage()
    overlay = {
        "type": "object",
        "description": "Keys of the recipe; stages are addressed by name.",
    }
    return {
        "$schema": SCHEMA_ID,
        "title": "posttrain_recipes recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "model", "stages"],
        "properties": {
            "name": {**NAME, "description": "The recipe's name; its runs are named after it."},
            "description": {"type": "string", "description": "What the recipe does or teaches."},
            "model": {
                "type": "string",
                "minLength": 1,
                "description": "The base model: bundled (ptl/tiny, ptl/nano), a Hugging Face id "
                "or a local directory.",
            },
            "engine": {
                "description": "Where training runs: local (embedded, the default), tinker "
                "(hosted) or a compatible server.",
                "default": "local",
                "if": {"type": "string"},
                "then": {"enum": registry.names("engine")},
                "else": {"$ref": "#/$defs/engine"},
            },
            "seed": {
                "type": "integer",
                "minimum": 0,
                "default": 0,
                "description": "Seeds data order, splits, adapters and sampling.",
            },
            "lora": {"$ref": "#/$defs/lora", "description": "The adapter that is trained."},
            "stages": {
                "type": "array",
                "minItems": 1,
                "items": {"$ref": "#/$defs/stage"},
                "description": "What is done, in order; each starts from the one before it.",
            },
            "presets": {
                "type": "object",
                "additionalProperties": overlay,
                "description": "Named changes: `ptl run --preset NAME`; `quick` is what a bare "
                "run uses.",
            },
            "extends": {"type": "string", "description": "A recipe that this one changes."},
        },
        "$defs": definitions,
    }


def _stage() -> dict[str, Any]:
    def ref(kind: str, description: str) -> dict[str, Any]:
        return {"$ref": f"#/$defs/{kind}", "description": description}

    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "properties": {
            "name": {**NAME, "description": "The stage's name, unique in the recipe."},
            "init_from": {
                "type": "string",
                "minLength": 1,
                "description": "Where it starts: `base`, a stage's name or a tinker:// state; by "
                "default the stage above. The optimizer starts fresh.",
            },
            "dataset": ref("dataset", "What it trains on."),
            "method": ref("method", "How it trains; a stage without one only evaluates."),
            "reward": {
                "description": "What scores replies, for methods that take rewards; a list is a "
                "weighted sum.",
                "if": {"type": "array"},
                "then": {"items": {"$ref": "#/$defs/reward"}, "minItems": 1},
                "else": {"$ref": "#/$defs/reward"},
            },
            "eval": {
                "type": "array",
                "description": "Run before and after training: evals, or names of evals above.",
                "items": {"if": {"type": "string"}, "else": {"$ref": "#/$defs/eval"}},
            },
            "seed": {"type": "integer", "minimum": 0, "description": "Overrides the recipe's."},
            "lora": ref("lora", "Overrides the recipe's; only where the stage starts from base."),
        },
    }


def _use(kind: str, registry: Registry) -> dict[str, Any]:
    entries = registry.entries[kind]
    return {
        "type": "object",
        "required": ["use"],
        "properties": {
            "use": {
                "enum": sorted(entries),
                "description": "; ".join(f"{n}: {entries[n].summary}" for n in sorted(entries)),
            }
        },
        "allOf": [
            {
                "if": {"properties": {"use": {"const": name}}, "required": ["use"]},
                "then": {"$ref": f"#/$defs/{kind}.{name}"},
            }
            for name in sorted(entries)
        ],
    }


def _plugin(entry: Entry) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    prefix = f"{entry.kind}.{entry.name}"
    schema = _config_schema(entry.config, prefix, definitions)
    own = schema.get("properties", {})
    schema["properties"] = {
        "use": {"const": entry.name},
        **EXTRA_OPTIONS.get(entry.kind, {}),
        **own,
    }
    schema["description"] = entry.summary
    definitions[prefix] = schema
    return definitions


def _config_schema(
    config: type[PluginConfig], prefix: str, definitions: dict[str, Any]
) -> dict[str, Any]:
    """The schema of a config; models nested in it go to `definitions` as `prefix.Model`."""
    schema = config.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    for name, nested in schema.pop("$defs", {}).items():
        definitions[f"{prefix}.{name}"] = _untitled(nested)
    return _untitled(schema)


def _untitled(schema: Any) -> Any:
    """Without the titles that pydantic derives from names: they tell an editor nothing."""
    if isinstance(schema, dict):
        return {
            key: {name: _untitled(inner) for name, inner in value.items()}
            if key == "properties"
            else _untitled(value)
            for key, value in schema.items()
            if key != "title"
        }
    if isinstance(schema, list):
        return [_untitled(inner) for inner in schema]
    return schema


def dump(schema: dict[str, Any]) -> str:
    """The schema as it is committed under `schemas/`."""
    return json.dumps(schema, indent=2, ensure_ascii=False, sort_keys=False) + "\n"


# --- a recipe against the schema -----------------------------------------------------------------


def structural_faults(recipe: Recipe, registry: Registry) -> list[Fault]:
    """Every place where the recipe does not have the form that the schema asks for."""
    validator = Draft202012Validator(recipe_schema(registry))
    faults: dict[tuple[str, str], Fault] = {}
    for key in _not_finite(recipe.data, ()):
        fault = recipe.fault(key, "must be a number that is finite")
        faults[fault.key, fault.message] = fault
    for error in validator.iter_errors(recipe.data):
        for fault in _explain(recipe, error, registry):
            faults.setdefault((fault.key, fault.message), fault)
    return list(faults.values())


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


def _explain(recipe: Recipe, error: Any, registry: Registry) -> Iterator[Fault]:
    """A `jsonschema.ValidationError` (whose stubs type its parts as anything) in words."""
    key: Key = tuple(error.absolute_path)
    if error.validator in ("anyOf", "oneOf"):
        yield from _explain_choice(recipe, error, registry)
    elif error.validator == "additionalProperties" and isinstance(error.schema, dict):
        known = list(error.schema.get("properties", {}))
        for name in sorted(set(error.instance) - set(known)):
            message = _unknown(recipe, key, name, [k for k in known if k != "use"])
            yield recipe.fault((*key, name), message, of_key=True)
    elif error.validator == "required":
        for name in error.validator_value:
            if name not in error.instance:
                yield recipe.fault(key, _missing(key, name, registry))
    else:
        yield recipe.fault(key, _phrase(error, key, registry))


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
    same_type = [e for e in meant if not any(i.validator == "type" and not i.path for i in e)]
    if same_type or len(meant) == 1:
        for inner in (same_type or meant)[0]:
            yield from _explain(recipe, inner, registry)
        return
    types = [str(option.get("type", "value")) for option in error.validator_value]
    words = " or ".join(TYPE_WORDS.get(name, name) for name in types)
    key = tuple(error.absolute_path)
    yield recipe.fault(key, f"must be {words}, not {_show(error.instance)}")


def _unknown(recipe: Recipe, key: Key, name: str, known: list[str]) -> str:
    if (not key and name in RESERVED) or (key and key[0] == "stages" and name in RESERVED):
        return f"'{name}' is reserved for {RESERVED[name]}, which this version does not have"
    owner = _owner(recipe, key)
    return f"unknown {owner}; {suggest(name, known)}"


def _owner(recipe: Recipe, key: Key) -> str:
    value: Any = recipe.data
    for part in key:
        value = value[part]
    if isinstance(value, dict) and isinstance(value.get("use"), str):
        kind = next((p for p in reversed(key) if isinstance(p, str)), "plugin")
        return f"option for {kind} '{value['use']}'"
    if not key:
        return "key in a recipe"
    if key[0] == "stages" and len(key) == 2:
        return "key in a stage"
    return f"key in '{key[-1]}'"


def _missing(key: Key, name: str, registry: Registry) -> str:
    if name == "use":
        kind = next((p for p in reversed(key) if isinstance(p, str)), "")
        return f"needs 'use:', which names the {kind}; {suggest('', registry.names(kind))}"
    if not key:
        return f"a recipe needs '{name}:'"
    if key[0] == "stages" and len(key) == 2:
        return f"a stage needs '{name}:'"
    return f"needs the option '{name}'"


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
            hint = f"; write {{use: {value}}}"
        elif value is None:
            return f"is empty; it must be {words}"
        return f"must be {words}, not {shown}{hint}"
    if error.validator in ("enum", "const"):
        options = [str(option) for option in (rule if error.validator == "enum" else [rule])]
        if key and (key[-1] == "use" or key == ("engine",)):
            kind = next((p for p in reversed(key) if isinstance(p, str) and p != "use"), "plugin")
            return f"unknown {kind} {shown}; {suggest(str(value), options)}"
        return f"must be one of {', '.join(options)}, not {shown}; {suggest(str(value), options)}"
    phrases = {
        "minimum": f"must be at least {rule}, not {shown}",
        "exclusiveMinimum": f"must be more than {rule}, not {shown}",
        "maximum": f"must be at most {rule}, not {shown}",
        "exclusiveMaximum": f"must be less than {rule}, not {shown}",
        "minLength": "must not be empty",
        "minItems": f"needs at least {rule} item{'s' if rule != 1 else ''}",
        "maxLength": f"must have at most {rule} characters",
        "pattern": f"{shown} must start with a letter and have only letters, digits, '_' and '-'"
        if rule == NAME["pattern"]
        else f"{shown} must match {rule}",
    }
    return phrases.get(str(error.validator), error.message)
