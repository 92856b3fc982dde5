"""The end of a run: its status, its report and what MLflow has of it, whoever comes to write them.

A run may be killed after its last stage and before its end is written. The next try of it has
nothing to train, and writes what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from posttrain_recipes import store
from posttrain_recipes.errors import PtlError, display_path
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.planning.reuse import Scope
from posttrain_recipes.reporting import report
from posttrain_recipes.reporting.page import Pages
from posttrain_recipes.running import hearing
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.running.tracked import track_reused
from posttrain_recipes.shown import redact
from posttrain_recipes.store import RunDirectory, RunRecord, Store
from posttrain_recipes.tracking.tracker import MlflowTracker

if TYPE_CHECKING:
    from posttrain_recipes.tracking.runs import RecipeRun


def status(plan: Plan, scope: Scope) -> tuple[str, str | None]:
    """What a run is that did all that was asked for, and why it is not finished."""
    if len(scope.stages(plan)) == len(plan.stages):
        return "finished", None
    return "stopped", f"--until {scope.last}"


def record(
    kept: Store, directory: RunDirectory, status: str, error: str | None, reporter: Reporter
) -> None:
    """Write the report of a run that has ended, and then into `run.json` that it has: where that
    is there, the report is that of the end."""
    run = directory.record
    for stage in run.stages:
        if stage.status == "running":
            stage.status = status
    run.status, run.error, run.finished = status, error, store.now()
    write_report(kept, run, reporter)
    directory.save()


def complete(plan: Plan, kept: Store, run: RunRecord, reporter: Reporter, scope: Scope) -> None:
    """Tell of a run that has all that is asked for; where its end was not written, write it."""
    wanted, why = status(plan, scope)
    begun = any(s.started for s in run.stages[len(scope.stages(plan)) :])
    # A run that was killed beyond '--until STAGE' is not one that was stopped there.
    ended = run.status in ("finished", wanted) or (wanted == "stopped" and begun)
    reporter.run_started(plan, run, resumed=True)
    heard = kept.path(run.id) / "trackers"
    if unheard := [one.name for one in plan.trackers if not (heard / one.name).is_dir()]:
        reporter.warning(
            f"of this run, which was trained before, {', '.join(unheard)} heard nothing: trackers "
            "are told while a run goes on; --fresh runs it again"
        )
    if not ended:
        reporter.note("all of its stages are done; its end, which was not written, is written now")
        with kept.open(run) as directory:
            tracker = MlflowTracker(kept.home, warn=reporter.warning)
            with tracker, tracker_run(tracker, plan, directory, reporter) as tracked:
                for stage in scope.stages(plan):
                    track_reused(directory, stage, run.stage(stage.name), tracked)
                summarize(tracked, run)
                log_report(tracked, plan, kept, run, reporter, scope)
            run.seconds = max(run.seconds, sum(stage.seconds for stage in run.stages))
            record(kept, directory, wanted, why, reporter)
    if not all((kept.path(run.id) / f"report.{end}").is_file() for end in ("html", "md")):
        write_report(kept, run, reporter)
    reporter.run_finished(run)


def summarize(tracked: RecipeRun, run: RunRecord) -> None:
    """Results, and whether bounds hold, on the run's page in MLflow."""
    tracked.summary(report.markdown(run))
    tracked.set_tags(report.gate_tags(run))


def log_report(
    tracked: RecipeRun, plan: Plan, kept: Store, run: RunRecord, reporter: Reporter, scope: Scope
) -> None:
    """The report as it will be once the run has ended, which is as soon as this is written."""
    ended = replace(run, status=status(plan, scope)[0], error=status(plan, scope)[1])
    try:
        pages = Pages(kept.home, ended)
        tracked.write_text(pages.html(), "report.html")
        tracked.told.report = pages.markdown()
        tracked.write_text(tracked.told.report, "report.md")
        # All that 'ptl reproduce' needs.
        whole = replace(ended, path=str(plan.path.resolve()))
        tracked.write_text(store.dump(whole), "run.json")
    except Exception as error:
        reporter.warning(f"the report could not be made: {first_line(error)}")


@contextmanager
def tracker_run(
    tracker: MlflowTracker,
    plan: Plan,
    directory: RunDirectory,
    reporter: Reporter,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[RecipeRun]:
    """The recipe's run in MLflow, a new one or that of an earlier try, and in the trackers that the
    recipe names."""
    record = directory.record
    tracker.mark_dead_runs()
    with (
        hearing.told(plan, directory, reporter, stopped) as told,
        tracker.run(
            told=told,
            recipe=plan.name,
            run_name=record.id,
            resolved_yaml=report.resolved_yaml(plan.resolved),
            description_md=plan.description or None,
            params=report.run_params(record),
            tags=report.run_tags(record),
            run_id=record.tracking_id,
        ) as tracked,
    ):
        record.tracking_id, record.tracking_uri = tracked.run_id, tracker.uri
        yield tracked


def write_report(kept: Store, record: RunRecord, reporter: Reporter) -> None:
    """What was trained is safe by now: a report that cannot be made fails no run."""
    try:
        Pages(kept.home, record).write()
    except Exception as error:
        reporter.warning(f"the report could not be written: {first_line(error)}")


def limit_reached(stop: BaseException, plan: Plan, record: RunRecord) -> PtlError:
    """The error of a run that a bound of `limits:` stopped."""
    return PtlError(
        f"stopped: {stop}",
        why=kept_words(record),
        hint=f"raise the bound, and 'ptl run {display_path(plan.path)}' goes on from there",
        code="limit-reached",
    )


def kept_words(record: RunRecord) -> str:
    """What a run that was stopped has."""
    parts = []
    for word, statuses in (("done", ("finished", "reused")), ("trained", ("trained",))):
        names = [stage.name for stage in record.stages if stage.status in statuses]
        parts += [f"{', '.join(names)} {word}"] if names else []
    parts += [
        f"{stage.name} kept up to step {stage.resume.step} of {stage.total_steps}"
        for stage in record.stages
        if stage.resume and not stage.done
    ]
    return "; ".join(parts) or "nothing was trained yet"


def first_line(error: Exception) -> str:
    """What failed and why, in one line: what the record and a list of failures keep of it."""
    why = error.why if isinstance(error, PtlError) else None
    lines = [text.split("\n")[0] for text in (str(error), why or "") if text]
    return redact(": ".join(dict.fromkeys(lines))) or type(error).__name__
