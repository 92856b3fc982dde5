"""A stage's run in MLflow: opened, and told again what the directory of its run has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain_recipes.planning.plans import PlannedStage
from posttrain_recipes.records import EvalResult
from posttrain_recipes.reporting import report
from posttrain_recipes.running.health import overview
from posttrain_recipes.store import RunDirectory, StageRecord
from posttrain_recipes.tracking import curves

if TYPE_CHECKING:
    from posttrain_recipes.tracking.delivery import ToldStage
    from posttrain_recipes.tracking.runs import RecipeRun, StageRun


@contextmanager
def tracked_stage(
    stage: PlannedStage,
    kept: StageRecord,
    tracked: RecipeRun,
    tags: Mapping[str, str] | None = None,
) -> Iterator[StageRun]:
    """The stage's run in MLflow, a new one or that of an earlier try; its record names it."""
    with tracked.stage(
        name=stage.name,
        index=stage.index,
        params=report.stage_params(stage),
        tags={"ptl.stage": stage.name, "ptl.fingerprint": stage.fingerprint, **(tags or {})},
        run_id=kept.tracking_id,
    ) as child:
        kept.tracking_id = child.run_id
        yield child


def track_reused(
    directory: RunDirectory, stage: PlannedStage, kept: StageRecord, tracked: RecipeRun
) -> None:
    """Log a reused stage's curves and evals, from the earlier run, under this run as well."""
    if kept.tracking_id or not kept.reused_from:
        tell_again(directory, stage, kept, tracked)
        return
    runs = directory.path.parent
    tags = {"ptl.reused_from": kept.reused_from}
    with tracked_stage(stage, kept, tracked, tags) as child:
        log_kept(runs / kept.reused_from, stage, kept, child)
        for text in kept.notes:
            child.note(text)
    directory.save()


def tell_again(
    directory: RunDirectory, stage: PlannedStage, kept: StageRecord, tracked: RecipeRun
) -> None:
    """Tell trackers what an earlier try found of a stage: one that was killed may not have come to
    tell it, and one that is new to the run heard nothing. MLflow has it."""
    if not tracked.told or not (kept.done or kept.resume):
        return
    told = tracked.told.stage(stage.name, stage.index, report.stage_params(stage))
    log_kept(directory.path.parent / (kept.reused_from or directory.record.id), stage, kept, told)
    for text in kept.warnings:
        told.warn(text)
    for text in kept.notes:
        told.note(text)
    if kept.done and kept.status != "trained":
        told.log_metrics(report.spent(kept), kept.total_steps)
        told.ended("finished")


def log_kept(
    run: Path, stage: PlannedStage, kept: StageRecord, child: StageRun | ToldStage
) -> None:
    """Log the curves and evals of a stage as the directory of a run and its record have them; what
    MLflow has already is not logged twice."""
    for step, metrics in curves.steps(run, stage.name).items():
        child.log_metrics({**metrics, **overview(metrics)}, step)
    made = kept.checkpoint
    if made and made.state_uri and stage.method:
        child.log_checkpoint(made.state_uri, made.sampler_uri, kept.total_steps)
    for when, step in (("before", 0), ("after", kept.total_steps)):
        weights = kept.start if when == "before" else made
        for m in getattr(kept, when):
            found = EvalResult(m.metrics, (), m.higher_is_better, notes=tuple(m.notes))
            uri = weights.sampler_uri if weights else None
            child.log_eval(m.name, when, found, step, checkpoint_uri=uri)
    for m in kept.during:
        child.log_during(m.name, EvalResult(m.metrics), m.step or 0)
