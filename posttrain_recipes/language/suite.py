"""A suite: a list of evals in a file of its own, as a recipe of one stage that measures something.

    - {use: gsm8k, limit: 200}
    - {use: nll, name: chat, dataset: {use: jsonl, path: held_out.jsonl}}

or a mapping with `eval:` and, beside it, `expect:` and `renderer:` as a recipe has them. Relative
paths start from the suite's file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain_recipes.errors import Fault, Location, RecipeError, display_path
from posttrain_recipes.language.given import dumped
from posttrain_recipes.language.nodes import Node
from posttrain_recipes.language.parsing import parse_any, placed
from posttrain_recipes.language.recipe import Recipe, read_text

KEYS = ("description", "eval", "expect", "renderer", "seed", "limits")
"""What a suite may hold beside its list."""
_LONGEST = 64


@dataclass(frozen=True)
class Measurand:
    """What is measured."""

    said: str
    """What a person calls it: `sft_then_dpo-1/dpo`, `ptl/tiny`."""
    model: str
    """The base model."""
    start: str = "base"
    """`base`, or the checkpoint as a `tinker://` path."""
    engine: Any = "local"
    """As a recipe has it."""
    renderer: Mapping[str, Any] = field(default_factory=dict)
    """How it was asked when it was trained, where the suite says nothing."""


def recipe(
    suite: Path | Sequence[Any] | Mapping[str, Any], of: Measurand, bounds: Mapping[str, str]
) -> Recipe:
    """The recipe that runs a suite on something.

    Args:
        suite: its file, or what would stand in it, with paths from the working directory.
        bounds: more of what `expect:` has.

    Raises:
        RecipeError: what the file holds is no suite.
        UsageError: the file cannot be read.
    """
    if isinstance(suite, Path):
        path, text, file = suite, read_text(suite, "suite"), display_path(suite)
    else:
        path, text, file = Path("suite"), dumped(suite, "the suite"), "the suite"
    root = parse_any(text, file)
    if not isinstance(suite, Path):
        root = placed(root, Location(file))
    given = {"eval": root} if isinstance(root.value, list) else root.value
    if not isinstance(given, dict):
        raise RecipeError([Fault(root.at, "", "a suite is a list of evals: '- {use: gsm8k}'")])
    faults = [
        Fault(node.key_at or node.at, key, _misplaced(key), code="unknown-key")
        for key, node in given.items()
        if key not in KEYS
    ]
    if "eval" not in given and not faults:
        faults = [Fault(root.at, "", "has no evals: write them as a list, or under 'eval:'")]
    if faults:
        raise RecipeError(faults)
    if given["eval"].value in (None, [], {}):
        at = given["eval"].at
        raise RecipeError([Fault(at, "", "the suite is empty: list an eval, '- {use: gsm8k}'")])
    evals = given["eval"].value if isinstance(given["eval"].value, list) else []
    faults = [
        Fault(
            node.key_at or node.at,
            f"eval[{index}].every",
            "is of a stage that trains: leave it out",
        )
        for index, one in enumerate(evals)
        if isinstance(one.value, dict) and (node := one.value.get("every"))
    ]
    if faults:
        raise RecipeError(faults)
    stage = {"name": Node.of(name_of(of.said)), "init_from": Node.of(of.start)}
    stage["eval"] = given["eval"]
    if bounds or "expect" in given:
        own = given.get("expect", Node.of({}))
        if not isinstance(own.value, dict):
            raise RecipeError([Fault(own.at, "expect", "is to be a mapping of bounds")])
        for name in set(own.value) & set(bounds):
            text = f"has a bound here, and --fail-under {name} would take its place; leave one out"
            raise RecipeError([Fault(own.value[name].at, f"expect.{name}", text)])
        stage["expect"] = Node(own.value | Node.of(dict(bounds)).value, own.at)
    top = {
        "name": Node.of(name_of(f"{path.stem}-{of.said}")),
        "description": Node.of(f"The suite {path.name} on {of.said}."),
        "model": Node.of(of.model),
        "engine": Node.of(of.engine),
        **({"renderer": Node.of(dict(of.renderer))} if of.renderer else {}),
        **{key: node for key, node in given.items() if key not in ("eval", "expect")},
        "stages": Node([Node(stage, root.at)], root.at),
    }
    return Recipe(Node(top, root.at), path)


def name_of(text: str) -> str:
    """A text as the name of a recipe or a stage; a long one ends in a digest of all of it."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_")
    name = name if name[:1].isalpha() else f"of_{name}"
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def _misplaced(key: str) -> str:
    if key == "stages":
        return "a suite has evals and no stages; 'ptl run' is for recipes"
    if key in ("model", "engine"):
        return "a suite is for any model: what is measured is named on the command line"
    return f"is nothing that a suite has; it has {', '.join(KEYS)}"
