"""Verbs on recipes: check, plan, run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes import registry
from posttrain_recipes.errors import UsageError
from posttrain_recipes.language import named
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.planning import overlap
from posttrain_recipes.planning.planner import build
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.planning.reuse import Scope

if TYPE_CHECKING:
    from posttrain_recipes.results import Result
    from posttrain_recipes.running.events import Reporter


def _source(recipe: str | Path | Mapping[str, Any]) -> Path | Mapping[str, Any]:
    if isinstance(recipe, Mapping):
        return recipe
    if not isinstance(recipe, str | Path):
        raise UsageError(
            f"a recipe is a path, a name or a mapping, and no {type(recipe).__name__}",
            code="wrong-value",
        )
    return (named.find(recipe) if isinstance(recipe, str) else None) or Path(recipe)


def _read(
    recipe: str | Path | Mapping[str, Any], preset: str | None, overrides: Sequence[str]
) -> recipes.Recipe:
    if isinstance(overrides, str):
        overrides = (overrides,)
    if not isinstance(preset, str | None):
        raise UsageError(f"preset is a name, and no {type(preset).__name__}", code="wrong-value")
    if not isinstance(overrides, Sequence) or not all(isinstance(o, str) for o in overrides):
        raise UsageError(
            "overrides is a list of texts, as ['stages.sft.method.learning_rate=1e-4']",
            code="wrong-value",
        )
    return recipes.load(_source(recipe), preset=preset, overrides=overrides)


def _file(recipe: str | Path | Mapping[str, Any]) -> Path:
    found = _source(recipe)
    if isinstance(found, Mapping):
        raise UsageError("a recipe that a program made has no lock", hint="write it to a file")
    return found


def plan(
    recipe: str | Path | Mapping[str, Any],
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    home: str | Path | None = None,
) -> Plan:
    """Check a recipe and say what running it would do. Asks the hub what its branches are now, and
    MLflow's registry which version `models:/NAME@ALIAS` is.

    Args:
        recipe: path of the recipe; the name of one that ships or of a package's (`ptl-chess:kqk`);
            or the recipe itself: a mapping, or what `typed.recipe` makes.
        preset: one of its presets; by default `quick` where it has one.
        overrides: as `--set` takes them, `stages.sft.method.learning_rate=1e-4`.
        home: where that registry is, if `MLFLOW_TRACKING_URI` names none.

    Raises:
        RecipeError: everything that is wrong with the recipe.
        UsageError: the file or the preset is not there.
        PtlError: MLflow's registry does not answer, where the recipe names a model of it.
    """
    written = _read(recipe, preset, overrides)
    return build(written, registry.load(), ask=True, home=home)


def validate(
    recipe: str | Path | Mapping[str, Any],
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> list[str]:
    """Raise `RecipeError` with everything that is wrong with a recipe, or return what may be.

    Needs no network. Warnings are of evals that measure on prompts that are trained on, in files on
    this machine.
    """
    return validated(recipe, preset, overrides, {})


def validated(
    recipe: str | Path | Mapping[str, Any],
    preset: str | None,
    overrides: Sequence[str],
    known: overlap.Known,
) -> list[str]:
    """`validate` of one of several: what their data ask is read once."""
    planned = build(_read(recipe, preset, overrides), registry.load())
    found = overlap.find(planned, overlap.VALIDATED_BYTES, splits=False, known=known)
    return [f"{one}; {one.hint}" for one in found]


def run(
    recipe: str | Path | Mapping[str, Any],
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    home: str | Path | None = None,
    fresh: bool = False,
    from_stage: str | None = None,
    until: str | None = None,
    jobs: int | str = 1,
    shared: str | None = None,
    locked: bool = False,
    progress: bool | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Run a recipe; an unfinished run of the same recipe goes on where it stopped.

    Args:
        home: where runs are kept; by default `$PTL_HOME` or `.ptl` here.
        fresh: start from nothing, whatever earlier runs left.
        from_stage: run this stage and those after it again.
        until: stop after this stage; the next run goes on with the rest.
        jobs: how many stages that do not need each other may run at the same time; `ray` or
            `ray:ADDRESS`: each is a task of a Ray cluster.
        shared: where all nodes of a cluster see checkpoints: any URL that fsspec knows.
        locked: refuse to run on anything but what `ptl lock` wrote down beside the recipe.
        progress: whether a person is told how far it is; None: in a notebook and in a terminal.
        reporter: hears what happens, in place of that.

    Raises:
        RecipeError, UsageError: as `plan`.
        PtlError: the run failed; what it had is kept.
    """
    from posttrain_recipes.planning import lock
    from posttrain_recipes.progress import told
    from posttrain_recipes.results import Result
    from posttrain_recipes.running import runner
    from posttrain_recipes.running.cluster.ray_tasks import parallel
    from posttrain_recipes.store import default_home

    many = parallel(jobs, shared)
    planned = plan(recipe, preset=preset, overrides=overrides, home=home)
    if locked:
        for text in lock.check(planned, _file(recipe)):
            warnings.warn(text, stacklevel=2)
    scope = Scope(fresh, from_stage, until)
    with told(False if reporter else progress) as shown:
        record = runner.run(planned, default_home(home), reporter or shown, scope=scope, jobs=many)
    return Result(record)
