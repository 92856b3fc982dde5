"""The JSON Schema 2020-12 of recipes in this environment.

The schema is composed from the grammar below and from the `Config` of every installed plugin, so
that an editor completes a stranger's options as well as ours.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from posttrain_recipes.language import run_keys
from posttrain_recipes.options import REFERS_TO
from posttrain_recipes.plugin import LoraConfig, RendererConfig
from posttrain_recipes.registry import KINDS, Entry, Registry

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"
NAMED = "urn:posttrain-recipes:recipe.schema.json"
"""The schema's `$id`: a name, since each environment has one of its own."""
REQUIRED = ("name", "model", "stages")
"""What a recipe says by itself, in its preset `quick`, or in the recipe that it extends."""
BOUND = {
    "type": "string",
    "pattern": r"^\s*(>=|<=|>|<)\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*%?\s*$",
    "examples": [">= 0.8", "<= 5%"],
}
NAME = {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_-]*$", "maxLength": 64}
WITHOUT_GAIN = r"^\s*[1-9][0-9]{0,5} evals? without gain\s*$"
"""What `stop: {after: ...}` says."""
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
        "every": {
            "type": "integer",
            "minimum": 1,
            "description": "Run it during training too, each time so many steps are done.",
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


def recipe_schema(registry: Registry, *, of: Collection[str] | None = None) -> dict[str, Any]:
    """The JSON Schema of recipes in this environment.

    Args:
        of: the plugins that matter, by name. Others are known by their names alone, and need not be
            imported: enough to judge a recipe that does not use them, but not to complete one.
    """
    definitions: dict[str, Any] = {}
    for kind in KINDS:
        names = [name for name in registry.entries[kind] if of is None or name in of]
        definitions[kind] = _use(kind, registry, names, described=of is None)
        for name in names:
            definitions.update(_plugin(registry.entries[kind][name]))
    definitions["lora"] = _flattened(_lora(), "lora", definitions)
    definitions["renderer"] = _flattened(_renderer(), "renderer", definitions)
    definitions["resources"] = run_keys.resources()
    definitions["stage"] = _stage()
    definitions["repeat"] = _repeat()
    definitions["compare"] = _compare()
    definitions["matrix"] = _matrix()
    definitions["stages"] = {
        "type": "array",
        "minItems": 1,
        "items": {
            "if": {"required": ["repeat"]},
            "then": {"$ref": "#/$defs/repeat"},
            "else": {
                "if": {"required": ["compare"]},
                "then": {"$ref": "#/$defs/compare"},
                "else": {"$ref": "#/$defs/stage"},
            },
        },
    }
    keys = _keys(registry)
    # What a recipe that extends another says is checked once it is merged, where a fault has a
    # meaning: it may change one option of a stage, and name no model.
    definitions["recipe"] = {
        "properties": keys,
        "allOf": [{"if": _in_quick(key), "else": {"required": [key]}} for key in REQUIRED],
    }
    told = {key: {"description": value["description"]} for key, value in keys.items()}
    return {
        "$schema": SCHEMA_ID,
        "$id": NAMED,
        "title": "posttrain_recipes recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **told,
            "presets": keys["presets"],
            "extends": {"type": "string", "description": "A recipe that this one changes."},
        },
        "if": {"required": ["extends"]},
        "else": {"$ref": "#/$defs/recipe"},
        "$defs": definitions,
    }


def _in_quick(key: str) -> dict[str, Any]:
    """Whether the preset that a bare run uses has the key."""
    quick = {"type": "object", "properties": {"quick": {"required": [key]}}, "required": ["quick"]}
    return {"properties": {"presets": quick}, "required": ["presets"]}


def _keys(registry: Registry) -> dict[str, Any]:
    """What stands at the top of a recipe that extends none."""
    overlay = {
        "type": "object",
        "description": "Keys of the recipe; stages are addressed by name.",
    }
    return {
        "name": {**NAME, "description": "The recipe's name; its runs are named after it."},
        "description": {"type": "string", "description": "What the recipe does or teaches."},
        "model": {
            "type": "string",
            "minLength": 1,
            "description": "The base model: bundled (ptl/tiny, ptl/nano), a Hugging Face id "
            "or a local directory; or a version of MLflow's registry to start from "
            "(models:/NAME@ALIAS).",
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
        "renderer": {
            "$ref": "#/$defs/renderer",
            "description": "How conversations are rendered by the model's chat template.",
        },
        "stages": {
            "$ref": "#/$defs/stages",
            "description": "What is done, in order; each starts from the one before it.",
        },
        "limits": run_keys.limits(),
        "watch": run_keys.watch(),
        "on_end": run_keys.on_end(),
        "trackers": run_keys.trackers(registry.names("tracker")),
        "resources": {
            "$ref": "#/$defs/resources",
            "description": "What each stage asks of the node that it runs on; read by "
            "`ptl run --jobs ray`.",
        },
        "matrix": {
            "$ref": "#/$defs/matrix",
            "description": "Values to try: the recipe runs with each combination of them.",
        },
        "expect": _expect("of each way through the recipe"),
        "presets": {
            "type": "object",
            "additionalProperties": overlay,
            "description": "Named changes: `ptl run --preset NAME`; `quick` is what a bare "
            "run uses.",
        },
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
            "model": {
                "type": "string",
                "minLength": 1,
                "description": "Another base model than the recipe's; only where the stage starts "
                "from base, as a teacher's does.",
            },
            "keep": {
                "type": "object",
                "additionalProperties": False,
                "required": ["best"],
                "description": "Which checkpoint the stage leaves; by default its last.",
                "properties": {
                    "best": {
                        "type": "string",
                        "minLength": 1,
                        "description": "The best by this eval (EVAL or EVAL/METRIC), which has an "
                        "'every:'.",
                    }
                },
            },
            "stop": {
                "type": "object",
                "additionalProperties": False,
                "required": ["after"],
                "description": "Ends the stage before its last step.",
                "properties": {
                    "after": {
                        "type": "string",
                        "pattern": WITHOUT_GAIN,
                        "description": "How many evals in a row may find nothing better than was "
                        "found before, as '3 evals without gain'.",
                    },
                    "by": {
                        "type": "string",
                        "minLength": 1,
                        "description": "The eval (EVAL or EVAL/METRIC); by default that of 'keep', "
                        "or the only one with an 'every:'.",
                    },
                },
            },
            "expect": _expect("of the stage"),
            "seed": {"type": "integer", "minimum": 0, "description": "Overrides the recipe's."},
            "lora": ref("lora", "Overrides the recipe's; only where the stage starts from base."),
            "renderer": ref("renderer", "Overrides the recipe's."),
            "resources": ref("resources", "Overrides the recipe's, key by key."),
        },
    }


def _expect(whose: str) -> dict[str, Any]:
    return {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": BOUND,
        "description": f"Bounds on results {whose}, as {{held_out: '>= 0.8', held_out change: "
        "'> 0', forgetting: '<= 0.05'}; where one does not hold, the run exits with 3.",
    }


def _repeat() -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["repeat", "stages"],
        "description": "A loop: each round starts from what the round before left.",
        "properties": {
            "repeat": {
                "type": "integer",
                "minimum": 1,
                "maximum": 1000,
                "description": "How many rounds; their stages are called NAME-1, NAME-2, ...",
            },
            "name": {**NAME, "description": "What presets and messages call the loop."},
            "stages": {"$ref": "#/$defs/stages", "description": "The stages of a round."},
            "until": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": BOUND,
                "description": "Bounds on evals of a round, as {held_out: '>= 0.9'}; once all "
                "hold, the rounds after it are left out.",
            },
        },
    }


def _compare() -> dict[str, Any]:
    branch = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "stages"],
        "properties": {
            "name": {**NAME, "description": "What tables call the branch."},
            "stages": {"$ref": "#/$defs/stages", "description": "The stages of the branch."},
        },
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["compare"],
        "description": "Branches from one start, on the same budget and seeds, with one report.",
        "properties": {
            "compare": {
                "type": "array",
                "minItems": 2,
                "items": {
                    "if": {"required": ["stages"]},
                    "then": branch,
                    "else": {"$ref": "#/$defs/stage"},
                },
                "description": "The branches: stages, or names with 'stages:' of their own.",
            },
            "name": {**NAME, "description": "What the report calls the comparison."},
            "init_from": {
                "type": "string",
                "minLength": 1,
                "description": "Where every branch starts; by default the stage above.",
            },
            "seeds": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "integer", "minimum": 0},
                "description": "Every branch is run once with each.",
            },
            "budget": {
                "type": "object",
                "additionalProperties": False,
                "minProperties": 1,
                "description": "What every branch may use, in steps, in tokens, or in both.",
                "properties": {
                    "steps": {
                        "type": "integer",
                        "minimum": 1,
                        "description": "Optimizer steps of each branch.",
                    },
                    "tokens": {
                        "type": "integer",
                        "minimum": 1,
                        "description": "Tokens that each branch trains on and writes.",
                    },
                },
            },
            "eval": {
                "type": "array",
                "description": "What the branches are judged by: added to each one's last stage.",
                "items": {"if": {"type": "string"}, "else": {"$ref": "#/$defs/eval"}},
            },
        },
    }


def _matrix() -> dict[str, Any]:
    values = {"type": "array", "minItems": 1}
    paths = {"type": "object", "minProperties": 1, "additionalProperties": values}
    return {
        "type": "object",
        "minProperties": 1,
        "properties": {
            "pair": {
                "if": {"type": "array"},
                "then": {"items": paths, "minItems": 1},
                "else": paths,
                "description": "Paths whose lists are gone through together, not combined.",
            }
        },
        "additionalProperties": {
            **values,
            "description": "By path, as stages.dpo.method.beta, seed or lora.rank: the values.",
        },
    }


def _use(kind: str, registry: Registry, names: Collection[str], *, described: bool) -> Any:
    entries = registry.entries[kind]
    use: dict[str, Any] = {"enum": sorted(entries)}
    if described:
        known = "; ".join(f"{n}: {entries[n].summary}" for n in sorted(entries))
        use["description"] = known or "None is installed: those of packages."
    made = {"type": "object", "required": ["use"], "properties": {"use": use}}
    branches = [
        {
            "if": {"properties": {"use": {"const": name}}, "required": ["use"]},
            "then": {"$ref": f"#/$defs/{kind}.{name}"},
        }
        for name in sorted(names)
    ]
    return {**made, "allOf": branches} if branches else made


def _plugin(entry: Entry) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    prefix = f"{entry.kind}.{entry.name}"
    schema = _flattened(entry.schema, prefix, definitions)
    own = schema.get("properties", {})
    schema["properties"] = {
        "use": {"const": entry.name},
        **EXTRA_OPTIONS.get(entry.kind, {}),
        **own,
    }
    schema["description"] = entry.summary
    definitions[prefix] = schema
    return definitions


@cache
def _lora() -> dict[str, Any]:
    return LoraConfig.model_json_schema(ref_template="#/$defs/lora.{model}")


@cache
def _renderer() -> dict[str, Any]:
    return RendererConfig.model_json_schema(ref_template="#/$defs/renderer.{model}")


def _flattened(
    schema: Mapping[str, Any], prefix: str, definitions: dict[str, Any]
) -> dict[str, Any]:
    """A copy of the schema; models nested in it go to `definitions` as `prefix.Model`."""
    for name, nested in schema.get("$defs", {}).items():
        definitions[f"{prefix}.{name}"] = _untitled(nested)
    own: dict[str, Any] = _untitled({key: value for key, value in schema.items() if key != "$defs"})
    return own


def _untitled(schema: Any) -> Any:
    """Without the titles that pydantic derives from names: they tell an editor nothing."""
    if isinstance(schema, dict):
        if REFERS_TO in schema:
            told = {key: value for key, value in schema.items() if key == "description"}
            return {"$ref": f"#/$defs/{schema[REFERS_TO]}", **told}
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
