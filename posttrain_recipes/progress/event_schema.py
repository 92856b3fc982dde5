"""The JSON Schema of the lines that `ptl run --events` writes, from one table.

A key may come to an event within a version; one that goes, or means another thing, makes the next.
"""

from __future__ import annotations

from typing import Any

from posttrain_recipes.running.outcomes import VERSION

TEXT = {"type": "string"}
TEXT_OR_NULL = {"type": ["string", "null"]}
WHOLE = {"type": "integer"}
NUMBER = {"type": "number"}
NUMBER_OR_NULL = {"type": ["number", "null"]}
OBJECT = {"type": "object"}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


METRICS = {"type": "object", "additionalProperties": NUMBER_OR_NULL}
ESTIMATE = {
    "type": "object",
    "required": ["value", "low", "high", "count"],
    "properties": {
        "value": NUMBER_OR_NULL,
        "low": NUMBER_OR_NULL,
        "high": NUMBER_OR_NULL,
        "count": WHOLE,
    },
}
STAGE = ("stage", TEXT, "The stage.")
STEP = ("step", WHOLE, "Steps that are done.")
TOTAL = ("total", WHOLE, "Steps, or batches of records, of the stage.")

Field = tuple[str, dict[str, Any], str]

ALL: tuple[Field, ...] = (
    ("v", {"const": VERSION}, "The version of this schema."),
    ("event", TEXT, "Which event it is."),
    ("time", TEXT, "UTC, ISO 8601 with milliseconds."),
    ("run", TEXT_OR_NULL, "The run's id; null before there is one."),
)
"""What every event has. `lost` may stand beside it: so many before it could not be written."""

EVENTS: dict[str, tuple[str, tuple[Field, ...]]] = {
    "run_started": (
        "A run began, or goes on.",
        (
            ("recipe", TEXT, "The recipe's name."),
            ("model", TEXT, "The base model."),
            ("engine", TEXT, "The engine."),
            ("preset", TEXT_OR_NULL, "The preset."),
            ("resumed", {"type": "boolean"}, "Whether an earlier try began it."),
            ("status", TEXT, "`running`; `finished` where nothing is left to do."),
            ("stages", _list(TEXT), "Names of the stages, in order."),
        ),
    ),
    "estimated": (
        "What is ahead, before any of it is spent.",
        (
            ("steps", WHOLE, "Optimizer steps."),
            ("tokens", WHOLE, "Tokens."),
            ("seconds", NUMBER_OR_NULL, "Seconds; null where nothing like it was run."),
            ("usd", NUMBER_OR_NULL, "US dollars; null where nothing is billed."),
        ),
    ),
    "doing": (
        "Something without steps is under way.",
        (("text", TEXT, "What, for a person."),),
    ),
    "sampling": (
        "How far something is that asks the engine for much; every 5 s while it lasts.",
        (
            ("what", TEXT, "As `evaluating nll before sft`."),
            ("done", WHOLE, "So many are there."),
            ("total", WHOLE, "Of so many; 0 where that is not known."),
            ("unit", TEXT, "What is counted: `replies`."),
            ("asked", WHOLE, "Requests sent."),
            ("answered", WHOLE, "Requests answered."),
            ("read", WHOLE, "Tokens of prompts."),
            ("written", WHOLE, "Tokens of replies."),
            ("seconds", NUMBER, "Since it began."),
        ),
    ),
    "stage_started": (
        "A stage began.",
        (
            STAGE,
            ("index", WHOLE, "Its place, from 1."),
            ("count", WHOLE, "Stages of the run."),
            ("method", TEXT_OR_NULL, "The method; null where it only measures."),
            ("start", TEXT, "`base`, a stage or a checkpoint."),
        ),
    ),
    "stage_reused": (
        "An earlier run trained the same weights.",
        (STAGE, ("of", TEXT_OR_NULL, "That run.")),
    ),
    "training": ("Training begins, after `step` steps of an earlier try.", (STAGE, STEP, TOTAL)),
    "step": (
        "An optimizer step is done.",
        (
            STAGE,
            STEP,
            TOTAL,
            ("metrics", METRICS, "By name, as `ptl explain NAME` tells; null for no number."),
        ),
    ),
    "made": (
        "A batch of records that the stage makes is safe.",
        (STAGE, ("batch", WHOLE, "Which, from 1.")),
    ),
    "saved": ("A checkpoint is safe: another try goes on from there.", (STAGE, STEP)),
    "evaluated": (
        "An eval is done.",
        (
            STAGE,
            ("eval", TEXT, "Its name."),
            ("when", TEXT, "`before`, `after` or `step 20`."),
            (
                "metrics",
                {"type": "object", "additionalProperties": ESTIMATE},
                "By name: `value`, its 95% interval `low` to `high`, and `count` records.",
            ),
        ),
    ),
    "stage_trained": ("A stage has trained, and its evals go on beside what follows.", (STAGE,)),
    "stage_finished": (
        "A stage is done.",
        (
            STAGE,
            ("seconds", NUMBER, "How long it took, all tries together."),
            ("checkpoint", TEXT_OR_NULL, "What it left, as `tinker://...`."),
        ),
    ),
    "stage_failed": (
        "A stage failed; what it saved is kept.",
        (STAGE, ("error", TEXT_OR_NULL, "What failed and why, in one line.")),
    ),
    "stage_skipped": (
        "A stage is not run.",
        (
            STAGE,
            ("status", TEXT, "`skipped`: what it needs failed; `left_out`: its loop ended before."),
            ("error", TEXT_OR_NULL, "Why."),
        ),
    ),
    "note": ("Something that should be known, and is not wrong.", (("text", TEXT, "What."),)),
    "warning": ("Something that stops nothing and should be known.", (("text", TEXT, "What."),)),
    "stalled": (
        "No step within ten times the median, and the run goes on waiting.",
        (
            STAGE,
            ("seconds", NUMBER, "Since the last step."),
            ("usual", NUMBER, "Seconds of a step, the median."),
            ("text", TEXT, "All of it, with what was heard last and what to do."),
        ),
    ),
    "ended": (
        "The last one: how it ended. The keys after `error` are there once a run began.",
        (
            ("text", TEXT, "One line for a person."),
            ("status", TEXT, "A word of the table of exit codes; `stopped` for `--until`."),
            ("exit_code", WHOLE, "The exit code of the command."),
            ("code", TEXT_OR_NULL, "The kind of error."),
            ("error", TEXT_OR_NULL, "What failed and why."),
        ),
    ),
}
"""By event: what it means, and what it has beside `ALL`."""

AT_AN_END: tuple[Field, ...] = (
    ("recipe", TEXT, "The recipe's name."),
    ("path", TEXT, "Its file."),
    ("preset", TEXT_OR_NULL, "The preset."),
    ("model", TEXT, "The base model."),
    ("engine", TEXT, "The engine."),
    ("created", TEXT, "When the run began, UTC."),
    ("finished", TEXT_OR_NULL, "When this try ended, UTC."),
    ("seconds", NUMBER, "All tries together."),
    ("stages", _list(OBJECT), "Of each: `name`, `status`, `error`, `step`, `total`, `warnings`."),
    (
        "results",
        _list(OBJECT),
        "Of each metric: `stage`, `eval`, `metric`, `count`, `before`, `after`, `change`, `p`, "
        "`verdict`.",
    ),
    ("gates", _list(OBJECT), "Of each bound: `subject`, `bound`, `value`, `passed`, `text`."),
)
"""What `ended` has of a run that began."""


def event_schema() -> dict[str, Any]:
    """The JSON Schema of one line."""
    branches = []
    for name, (meaning, fields) in EVENTS.items():
        more = AT_AN_END if name == "ended" else ()
        then = {
            "description": meaning,
            "required": [key for key, _, _ in fields],
            "properties": _properties((*fields, *more)),
        }
        branches.append({"if": {"properties": {"event": {"const": name}}}, "then": then})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a line of ptl run --events",
        "type": "object",
        "required": [key for key, _, _ in ALL],
        "properties": {
            **_properties(ALL),
            "event": {"enum": list(EVENTS), "description": "Which event it is."},
            "lost": {"type": "integer", "description": "Events before it that were not written."},
        },
        "allOf": branches,
    }


def _properties(fields: tuple[Field, ...]) -> dict[str, Any]:
    return {key: {**form, "description": meaning} for key, form, meaning in fields}
