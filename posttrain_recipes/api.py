"""The verbs of the command line for notebooks and programs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes import registry
from posttrain_recipes.errors import UsageError
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.planning import overlap
from posttrain_recipes.planning.planner import build
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.planning.reuse import Scope
from posttrain_recipes.results import Result as Result
from posttrain_recipes.store import Store, default_home, write_atomic

if TYPE_CHECKING:
    from posttrain_recipes.reporting.comparing import Comparison
    from posttrain_recipes.running.events import Reporter


def _source(recipe: str | Path | Mapping[str, Any]) -> Path | Mapping[str, Any]:
    return recipe if isinstance(recipe, Mapping) else Path(recipe)


def plan(
    recipe: str | Path | Mapping[str, Any],
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """Check a recipe and say what running it would do. Asks the hub what its branches are now.

    Args:
        recipe: path of the recipe, or the recipe itself as a mapping.
        preset: one of its presets; by default `quick` where it has one.
        overrides: as `--set` takes them, `stages.sft.method.learning_rate=1e-4`.

    Raises:
        RecipeError: everything that is wrong with the recipe.
        UsageError: the file or the preset is not there.
    """
    read = recipes.load(_source(recipe), preset=preset, overrides=overrides)
    return build(read, registry.load(), ask=True)


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
    planned = build(
        recipes.load(_source(recipe), preset=preset, overrides=overrides), registry.load()
    )
    found = overlap.find(planned, overlap.VALIDATED_BYTES, splits=False)
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
        reporter: hears what happens; by default nobody does.

    Raises:
        RecipeError, UsageError: as `plan`.
        PtlError: the run failed; what it had is kept.
    """
    from posttrain_recipes.running import runner
    from posttrain_recipes.running.cluster.ray_tasks import parallel

    many = parallel(jobs, shared)
    planned = plan(recipe, preset=preset, overrides=overrides)
    scope = Scope(fresh, from_stage, until)
    return Result(runner.run(planned, default_home(home), reporter, scope=scope, jobs=many))


def runs(home: str | Path | None = None) -> list[Result]:
    """Every run that can be read, oldest first; the others are warned of."""
    found, unreadable = Store(default_home(home)).listed()
    for one in unreadable:
        warnings.warn(f"{one}; {one.hint}", stacklevel=2)
    return [Result(record) for record in found]


def show(run_id: str, home: str | Path | None = None) -> Result:
    """The run of that id, or the last one of the recipe of that name. Raises `UsageError`."""
    return Result(Store(default_home(home)).find(run_id))


def compare(*runs: str, home: str | Path | None = None) -> Comparison:
    """Compare runs with the first of them, in pairs where they were measured on the same records;
    one run with branches or a matrix with itself.

    Args:
        runs: ids, or names of recipes for their last runs.

    Returns:
        What a notebook shows as a table; `.to_frame()` is a pandas frame of it.

    Raises:
        UsageError: there is no such run.
    """
    from posttrain_recipes.reporting.comparing import Comparison

    names = list(dict.fromkeys(runs))
    if not names:
        raise UsageError("there is nothing to compare", hint="name a run, or several")
    return Comparison(default_home(home), [show(name, home).record for name in names])


def report(run: str, output: str | Path | None = None, *, home: str | Path | None = None) -> Path:
    """Write a run's report, one page without a server, and return where it is.

    Args:
        run: its id, or the name of a recipe for its last run.
        output: a file that ends in .html or .md; by default report.html in the run's directory.

    Raises:
        UsageError: there is no such run, or the file ends otherwise.
    """
    from posttrain_recipes.reporting.page import Pages

    pages = Pages(default_home(home), show(run, home).record)
    if output is None:
        return pages.write()[0]
    path = Path(output)
    ending = path.suffix.lower()
    if ending not in (".html", ".htm", ".md"):
        raise UsageError(f"{path} says no form", hint="let it end in .html or .md")
    write_atomic(path, pages.markdown() if ending == ".md" else pages.html())
    return path
