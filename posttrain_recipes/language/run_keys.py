"""Keys of a recipe that say how it is run, and change no result: their part of the schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def limits() -> dict[str, Any]:
    """`limits:`, what a run may spend."""

    def bound(type_: str, description: str) -> dict[str, Any]:
        return {"type": type_, "exclusiveMinimum": 0, "description": description}

    return {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "description": "Bounds on what a run may spend, all its tries together. It stops before "
        "one is passed, keeps what it has, and goes on where it stopped once the bound is raised.",
        "properties": {
            "max_cost_usd": bound(
                "number", "US dollars, by the table of prices; only hosted engines are billed."
            ),
            "max_hours": bound("number", "Hours that the run is worked on."),
            "max_tokens": bound("integer", "Tokens: trained, read and written, by evals too."),
        },
    }


def on_end() -> dict[str, Any]:
    """`on_end:`, whom a run tells how it ended."""
    texts = {"type": "string", "minLength": 1}
    properties = {
        "command": {
            "type": "array",
            "minItems": 1,
            "items": texts,
            "description": "A program and its arguments, in the recipe's folder and without a "
            "shell. It reads the result as JSON on standard input, and PTL_RUN_ID, PTL_STATUS "
            "and PTL_EXIT_CODE.",
        },
        "webhook": {
            **texts,
            "description": "An address that the result is sent to as JSON, by POST: https, or "
            "http on this machine.",
        },
        "headers": {
            "type": "object",
            "additionalProperties": texts,
            "description": "Headers of the webhook; keys as ${env:NAME}.",
        },
        "timeout": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 3600,
            "default": 30,
            "description": "Seconds that it may take.",
        },
    }
    return {
        "description": "Told how each try of a run ended, whatever the end: a command or a "
        "webhook; false: nobody. It changes no result; one that fails is told, and fails no run.",
        "type": ["object", "boolean"],
        "if": {"type": "object"},
        "then": {"additionalProperties": False, "properties": properties},
    }


def trackers(names: Sequence[str]) -> dict[str, Any]:
    """`trackers:`, who hears of a run beside MLflow."""
    return {
        "type": "array",
        "items": {
            "if": {"type": "string"},
            "then": {"enum": list(names)},
            "else": {"$ref": "#/$defs/tracker"},
        },
        "description": "Plugins that hear what MLflow hears, by name or with options, as "
        "[tensorboard, {use: wandb, project: sums}]. They change no result, and what they fail at "
        "is told and fails no run.",
    }


def watch() -> dict[str, Any]:
    """`watch:`, what is answered again while a stage trains."""

    def count(least: int, most: int, default: Any, description: str) -> dict[str, Any]:
        bounds = {"type": "integer", "minimum": least, "maximum": most}
        return {**bounds, "default": default, "description": description}

    properties = {
        "prompts": count(1, 16, 3, "How many prompts, the first of the first eval."),
        "every": {
            "if": {"type": "string"},
            "then": {"const": "auto"},
            "else": {"type": "integer", "minimum": 1},
            "default": "auto",
            "description": "Steps between two answers; auto: at the start, about six times in "
            "between, at the end, and not at all in a stage of fewer than 5 steps.",
        },
        "max_tokens": count(1, 1024, 64, "Longest reply in tokens."),
    }
    return {
        "description": "The prompts that `ptl watch` shows answered again and again while a stage "
        "trains; false: none. By default there are, unless the engine bills for tokens. It changes "
        "no result, and nothing is trained again for it.",
        "if": {"type": "object"},
        "then": {"additionalProperties": False, "properties": properties},
        "else": {"type": "boolean"},
    }


def resources() -> dict[str, Any]:
    """`resources:`, what a stage asks of a node."""
    return {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "properties": {
            "cpus": {"type": "number", "exclusiveMinimum": 0, "default": 1, "description": "CPUs."},
            "gpus": {
                "type": "number",
                "minimum": 0,
                "default": 0,
                "description": "GPUs; a part of one lets stages share it.",
            },
            "memory_gb": {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "Memory, in 10^9 bytes.",
            },
        },
    }
