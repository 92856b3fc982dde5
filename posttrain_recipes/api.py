"""The verbs of the command line for notebooks and programs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain_recipes import registry
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.planning import gates, overlap
from posttrain_recipes.planning.gates import Gate
from posttrain_recipes.planning.planner import build
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.planning.reuse import Scope
from posttrain_recipes.records import Checkpoint, Estimate
from posttrain_recipes.reporting import report
from posttrain_recipes.store import RunRecord, Store, default_home

if TYPE_CHECKING:
    from posttrain_recipes.running.events import Reporter


@dataclass(frozen=True)
class StageResult:
    """What one stage left."""

    name: str
    checkpoint: Checkpoint | None
    before: Mapping[str, Mapping[str, Estimate]]
    """Eval name -> metric -> estimate, before training."""
    after: Mapping[str, Mapping[str, Estimate]]
    """The same after training, on the same records."""


@dataclass(frozen=True)
class Result:
    """What a run left. `result["sft"]` is a stage; printed, it is the before/after table."""

    record: RunRecord

    @property
    def run_id(self) -> str:
        """The run's id, as `ptl show` takes it."""
        return self.record.id

    @property
    def status(self) -> str:
        """running, finished, failed, killed or stopped."""
        return self.record.status

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The last stage's checkpoint."""
        return self.record.stages[-1].checkpoint

    @property
    def stages(self) -> dict[str, StageResult]:
        """Every stage by name, in the recipe's order."""
        return {
            s.name: StageResult(
                s.name,
                s.checkpoint,
                {m.name: m.metrics for m in s.before},
                {m.name: m.metrics for m in s.after},
            )
            for s in self.record.stages
        }

    @property
    def gates(self) -> list[Gate]:
        """The bounds that the recipe sets with `expect:`, and whether they hold."""
        return gates.check(self.record)

    def __getitem__(self, stage: str) -> StageResult:
        return self.stages[stage]

    def __str__(self) -> str:
        return report.markdown(self.record)


def plan(recipe: str | Path, *, preset: str | None = None, overrides: Sequence[str] = ()) -> Plan:
    """Check a recipe and say what running it would do. Asks the hub what its branches are now.

    Args:
        recipe: path of the recipe.
        preset: one of its presets; by default `quick` where it has one.
        overrides: as `--set` takes them, `stages.sft.method.learning_rate=1e-4`.

    Raises:
        RecipeError: everything that is wrong with the recipe.
        UsageError: the file or the preset is not there.
    """
    read = recipes.load(Path(recipe), preset=preset, overrides=overrides)
    return build(read, registry.load(), ask=True)


def validate(
    recipe: str | Path, *, preset: str | None = None, overrides: Sequence[str] = ()
) -> list[str]:
    """Raise `RecipeError` with everything that is wrong with a recipe, or return what may be.

    Needs no network. Warnings are of evals that measure on prompts that are trained on, in files on
    this machine.
    """
    planned = build(recipes.load(Path(recipe), preset=preset, overrides=overrides), registry.load())
    found = overlap.find(planned, overlap.VALIDATED_BYTES, splits=False)
    return [f"{one}; {one.hint}" for one in found]


def run(
    recipe: str | Path,
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
