"""What a recipe stood on when it was locked, by content: models, data, plugins, options.

A lock lies beside the recipe, `NAME.lock` beside `NAME.yaml`, and has one part for each preset that
was locked. It holds what the fingerprints of stages are made of, so that what differs later is told
in words. Values of the environment stand in it as hashes with a key of this user: others cannot
compare them.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrain_recipes.atomic import write_atomic
from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.planning import depends
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.planning.reuse import differences

FORMAT = 1
PACKAGES = ("posttrain-recipes", "tinker", "torch", "transformers", "tokenizers", "datasets")
"""Versions that are noted: with others numbers may differ in their last digits."""


@dataclass(frozen=True)
class StageLock:
    """What one stage stood on."""

    fingerprint: str
    inputs: Mapping[str, Any]
    evals: Mapping[str, str] = field(default_factory=dict)
    """By the eval's name: its fingerprint."""


@dataclass(frozen=True)
class Lock:
    """What a recipe stood on with one preset."""

    stages: Mapping[str, StageLock]
    pins: tuple[str, ...] = ()
    """Models and data of the hub and at addresses, with their revision or content."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """By name: the version; `python` among them."""

    @classmethod
    def of(cls, plan: Plan) -> Lock:
        """That of a plan."""
        stages = {
            stage.name: StageLock(
                stage.fingerprint,
                json.loads(json.dumps(stage.inputs)),
                {planned.name: planned.fingerprint for planned in stage.evals},
            )
            for stage in plan.stages
        }
        return cls(stages, tuple(plan.pins), versions())


def versions() -> dict[str, str]:
    """Python's version and those of `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def path_of(recipe: Path) -> Path:
    """Where the lock of a recipe lies.

    Raises:
        UsageError: the recipe is part of an installed package: nothing of ours lasts there.
    """
    if "site-packages" in recipe.resolve().parts:
        raise UsageError(
            f"{recipe.stem} is part of an installed package, where no lock can lie beside it",
            hint=f"write a recipe of your own with 'extends: {recipe.stem}' (of a package "
            "'extends: PACKAGE:NAME'), and lock and run that",
            code="not-writable",
        )
    return recipe.with_suffix(".lock")


def write(plan: Plan, recipe: Path) -> Path:
    """Lock a recipe with the preset of the plan; those of other presets stay. Returns the file.

    Raises:
        UsageError: a lock is there that cannot be read.
    """
    path = path_of(recipe)
    parts = _parts(path) if path.exists() else {}
    parts[plan.preset or ""] = asdict(Lock.of(plan))
    text = json.dumps({"format": FORMAT, "presets": parts}, indent=1, sort_keys=True)
    write_atomic(path, f"{text}\n".encode())
    return path


def read(recipe: Path, preset: str | None) -> Lock:
    """The lock of a recipe with a preset.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    path = path_of(recipe)
    words = f"ptl lock {display_path(recipe)}" + (f" --preset {preset}" if preset else "")
    if not path.is_file():
        raise UsageError(
            f"there is no lock {display_path(path)}",
            hint=f"'{words}' writes it",
            code="no-such-file",
        )
    part = _parts(path).get(preset or "")
    if part is None:
        what = f"preset {preset}" if preset else "the recipe without a preset"
        raise UsageError(
            f"{display_path(path)} does not lock {what}", hint=f"'{words}' adds it", code="changed"
        )
    try:
        stages = {name: StageLock(**stage) for name, stage in part["stages"].items()}
        return Lock(stages, tuple(part["pins"]), dict(part["packages"]))
    except (KeyError, TypeError, AttributeError):
        raise _unreadable(path, "it lacks what a lock has") from None


def _parts(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        if whole["format"] != FORMAT:
            raise _unreadable(path, f"its format is {whole['format']}, and not {FORMAT}")
        return dict(whole["presets"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, str(error) or type(error).__name__) from None


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"the lock {display_path(path)} cannot be read",
        why=why,
        hint="delete it, and lock the recipe again",
        code="wrong-value",
    )


def check(plan: Plan, recipe: Path) -> list[str]:
    """Refuse a plan that is not what was locked; what else differs, to be told.

    Raises:
        UsageError: there is no lock, or a stage would train or measure something else.
    """
    lock = read(recipe, plan.preset)
    found = list(changes(lock.stages, plan))
    for stage in plan.stages:
        if (locked := lock.stages.get(stage.name)) is not None:
            evals = {planned.name for planned in stage.evals}
            found += (f"{stage.name}: eval '{e}' is new" for e in sorted(evals - set(locked.evals)))
            found += (f"{stage.name}: no eval '{e}'" for e in sorted(set(locked.evals) - evals))
    there = {stage.name for stage in plan.stages}
    found += (f"{name}: no such stage any more" for name in lock.stages if name not in there)
    if found:
        raise UsageError(
            f"{plan.name} is not what {display_path(path_of(recipe))} locks",
            why="; ".join(found),
            hint="put it back, or lock it anew with 'ptl lock'",
            code="changed",
        )
    current = versions()
    return [
        f"{name} {then} when it was locked, {now} now: numbers may differ in their last digits"
        for name, then in lock.packages.items()
        if (now := current.get(name, "not installed")) != then
    ]


def changes(kept: Mapping[str, StageLock], plan: Plan) -> Iterator[str]:
    """What is not as it was: data, models, versions of plugins; in words, by stage."""
    for stage in plan.stages:
        earlier = kept.get(stage.name)
        if earlier is None:
            yield f"{stage.name}: there was no such stage"
            continue
        if depends.other_scheme(earlier.inputs):
            yield f"{stage.name}: {depends.UNKNOWN}"
            continue
        if earlier.inputs and earlier.fingerprint != stage.fingerprint:
            for change in differences(earlier.inputs, stage):
                if not change.startswith("parent "):
                    yield f"{stage.name}: {change}"
        for planned in stage.evals:
            if earlier.evals.get(planned.name, planned.fingerprint) != planned.fingerprint:
                yield f"{stage.name}: eval '{planned.name}' or {planned.data.label} changed"
