"""Runs a plan: one stage after another, each from the checkpoint that its start left.

A run of the same plan that did not finish is gone on with; a stage that an earlier run finished on
the same inputs is reused. Everything that a resumed run needs is in `run.json` before the runner
goes on to the next thing. A stage that fails takes along those that need it, and no others. Stages
that do not need each other may run side by side, on one engine, and the evals of a stage beside the
stages after it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain_recipes import content, private, store
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.language.flat import Origin
from posttrain_recipes.planning import costs, gates, needs, pricing
from posttrain_recipes.planning.costs import Estimator
from posttrain_recipes.planning.data import reading_ahead
from posttrain_recipes.planning.plans import Plan, PlannedStage, Resources
from posttrain_recipes.planning.reuse import (
    Action,
    History,
    Scope,
    current_run,
    decisions,
    finished,
    new_evals,
    restarted,
    take,
)
from posttrain_recipes.plugin import Connection, Engine
from posttrain_recipes.running import (
    activity,
    billing,
    death,
    ending,
    hearing,
    preflight,
    stalls,
    telling,
    texts,
    tokenizers,
    weights,
)
from posttrain_recipes.running.beside import Beside, failed_above, judged_before
from posttrain_recipes.running.cluster import driver, ray_tasks
from posttrain_recipes.running.cluster.driver import ClusterStages
from posttrain_recipes.running.cluster.ray_tasks import Cluster
from posttrain_recipes.running.events import Reporter, patient
from posttrain_recipes.running.limits import Spending
from posttrain_recipes.running.serving import Serving, locations
from posttrain_recipes.running.stages import StageWork
from posttrain_recipes.running.tracked import log_kept, tell_again, track_reused, tracked_stage
from posttrain_recipes.shown import redact
from posttrain_recipes.store import RunDirectory, RunRecord, StageRecord, Store
from posttrain_recipes.tracking import mlstore
from posttrain_recipes.tracking.tracker import MlflowTracker
from posttrain_recipes.version import __version__
from posttrain_recipes.waiting import (
    TICK,
    EngineLostError,
    EngineWaiter,
    Interrupts,
    StopAsked,
    as_worker,
)

if TYPE_CHECKING:
    from posttrain_recipes.tracking.runs import RecipeRun


def run(
    plan: Plan,
    home: Path,
    reporter: Reporter | None = None,
    *,
    scope: Scope | None = None,
    jobs: int | Cluster = 1,
) -> RunRecord:
    """Run a plan to its end and return what is known about it.

    Args:
        home: the directory that runs, checkpoints and tracking are kept in.
        reporter: hears what happens.
        scope: which stages, and whether to take what earlier runs left.
        jobs: how many stages that do not need each other may run at the same time; or the cluster
            of which each of them takes a node.

    Raises:
        PtlError: the run failed; what it had is kept and the same call goes on from there.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after what was trained has been saved.
    """
    reporter, scope = patient(reporter or Reporter()), scope or Scope()
    scope.check(plan)
    telling.check(plan)
    hearing.check(plan)
    if not isinstance(jobs, int):
        ray_tasks.check(jobs, plan)
    mlstore.configured_uri()  # refuses what is no address before anything is spent
    kept = Store(home)
    prices = pricing.load(home)
    interrupts = Interrupts()
    with ExitStack() as held:
        held.enter_context(private.home(home))
        with kept.choosing():
            runs, unreadable = kept.listed()
            earlier = current_run(plan, scope, runs)
            # Decided as 'ptl plan' decides it: a run whose checkpoint is gone is not finished.
            decided = decisions(plan, scope, runs, home)
            done = earlier is not None and finished(decided, scope.stages(plan), earlier)
            if not done:
                record = earlier or new_record(plan, kept.next_id(plan.name))
                directory = held.enter_context(kept.open(record))
                if earlier is None:
                    for name, why in scope.reasons(plan).items():
                        record.stage(name).fresh = why
                directory.save()
        for one in unreadable:
            reporter.warning(f"{one}; nothing of it is reused ({one.hint})")
        if earlier is not None and done:
            # Of what it asks for, bounds and words may have changed.
            earlier.resolved = plan.resolved
            for stage in plan.stages:
                earlier.stage(stage.name).auto = dict(stage.auto)
            ending.complete(plan, kept, earlier, reporter, scope)
            telling.tell_late(plan, kept, earlier, reporter)
            return earlier
        held.enter_context(interrupts.installed())
        held.enter_context(reading_ahead(scope.left(plan, record)))
        reporter = held.enter_context(stalls.looked_after(directory, reporter))
        record.status, record.error = "running", None
        reporter.run_started(plan, record, resumed=earlier is not None)
        directory.save()
        spending = Spending(plan, record, prices, interrupts)
        if isinstance(jobs, int):
            spending.jobs = jobs

        def end(status: str, text: str | None, error: BaseException | None = None) -> None:
            record.seconds = spending.seconds
            ending.record(kept, directory, status, text and redact(text), reporter)
            telling.tell(plan, directory, error, reporter)

        try:
            with spending.meter.installed():
                cluster = None if isinstance(jobs, int) else jobs
                _Run(plan, kept, directory, reporter, interrupts, scope, spending, cluster).work()
        except StopAsked as stop:
            reached = ending.limit_reached(stop, plan, record)
            end("stopped", str(stop), reached)
            raise reached from None
        except KeyboardInterrupt as error:
            end("killed", "interrupted", error)
            raise
        except BaseException as error:
            end("failed", str(error).split("\n")[0], error)
            raise
        end(*ending.status(plan, scope))
    reporter.run_finished(record)
    return record


def new_record(plan: Plan, run_id: str) -> RunRecord:
    """A run of which nothing is done yet."""
    return RunRecord(
        id=run_id,
        recipe=plan.name,
        fingerprint=plan.fingerprint,
        model=plan.model,
        engine=plan.engine.name,
        path=str(plan.path),
        preset=plan.preset,
        seed=plan.resolved.get("seed", 0),
        resolved=plan.resolved,
        created=store.now(),
        stages=[
            StageRecord(
                s.name,
                s.fingerprint,
                s.method.name if s.method else None,
                inputs=dict(s.inputs),
                auto=dict(s.auto),
                model=s.model,
            )
            for s in plan.stages
        ],
        version=__version__,
    )


class _Run:
    """One run at work."""

    def __init__(
        self,
        plan: Plan,
        kept: Store,
        directory: RunDirectory,
        reporter: Reporter,
        interrupts: Interrupts,
        scope: Scope,
        spending: Spending,
        cluster: Cluster | None,
    ) -> None:
        self.spending = spending
        self.cluster = cluster
        self.plan = plan
        self.kept = kept
        self.directory = directory
        self.record = directory.record
        self.reporter = reporter
        self.interrupts = interrupts
        self.scope = scope
        self.failures: dict[str, Exception] = {}
        self.choosing = threading.Lock()
        """Held while a stage looks for what earlier runs left."""
        self.stand_ins: dict[str, str] = {}
        """Stages of a loop that ended early -> the one of the last round that ran."""
        self.decided: dict[str, Action] = {}
        """By stage: what was decided of it before the engine was up."""
        last = scope.stages(plan)[-1]
        self.beside = Beside(plan.engine.beside, last, interrupts, self._failed)

    def work(self) -> None:
        """Run every stage that is asked for; raises what the first one that failed raised."""
        with MlflowTracker(self.kept.home, warn=self.reporter.warning) as tracker:
            tracker.start()
            self._work(tracker)
        if len(self.failures) > 1:
            raise PtlError(
                f"{len(self.failures)} stages failed: {', '.join(self.failures)}",
                why="; ".join(f"{n}: {ending.first_line(e)}" for n, e in self.failures.items()),
                hint="what is done is kept; the same command goes on with the rest",
                code="stages-failed",
            )
        for error in self.failures.values():
            raise error

    def _work(self, tracker: MlflowTracker) -> None:
        for pin in self.plan.pins:
            self.reporter.note(pin)
        self._preflight()
        self._estimate()
        self.spending.start()
        shared = (self.plan, self.directory, self.reporter, self.interrupts.noticed)
        with (
            self._connected() as connection,
            ending.tracker_run(tracker, *shared) as run,
        ):
            self.directory.save()
            self.connection = connection
            with self.beside:
                if self.spending.jobs > 1 or self.cluster is not None:
                    self._side_by_side(run)
                else:
                    for stage in self.scope.stages(self.plan):
                        self._stage(stage, run)
            if self.plan.engine.billed:
                billing.note_session(self.record, connection)
                self.record.billed = billing.ask(connection.rest, self.record)
            ending.summarize(run, self.record)
            if not self.failures:
                ending.log_report(run, self.plan, self.kept, self.record, self.reporter, self.scope)

    def _side_by_side(self, tracked: RecipeRun) -> None:
        """Run each stage as soon as what it needs is there, so many at a time as was asked for.

        Where one has to stop, no other is begun, and those under way save what they have: each is
        told of the same signal, bound or loss of the engine.
        """
        ahead = list(self.scope.stages(self.plan))
        # Ray has all of them at once: what waits there is what a cluster grows by.
        most = self.spending.jobs if self.cluster is None else len(ahead)
        busy: dict[Future[None], PlannedStage] = {}
        stop: BaseException | None = None
        while busy or (ahead and stop is None):
            for stage in list(ahead) if stop is None else ():
                if len(busy) < most and self._ready(stage, ahead, busy.values()):
                    ahead.remove(stage)
                    work = partial(self._stage, stage, tracked)
                    busy[as_worker(stage.name, work)] = stage
            done, _ = wait(busy, TICK, FIRST_COMPLETED)
            try:
                self.interrupts.check()
            except KeyboardInterrupt as error:
                stop = stop or error
            for future in done:
                busy.pop(future)
                stop = stop or future.exception()
        if stop is not None:
            raise stop

    def _ready(
        self, stage: PlannedStage, ahead: Sequence[PlannedStage], busy: Iterable[PlannedStage]
    ) -> bool:
        """Whether nothing that the stage needs, or could take over, is still to come."""
        origin = self.plan.origins[stage.index - 1]
        before = [s for s in (*ahead, *busy) if s.index < stage.index]
        return not any(
            other.name in stage.needs
            or other.fingerprint == stage.fingerprint
            # Whether a round is run depends on all of the round before.
            or (origin.loop and self.plan.origins[other.index - 1].loop == origin.loop)
            for other in before
        )

    def _preflight(self) -> None:
        """Refuse what is known to fail, and say what may, before an engine is started.

        Raises:
            UsageError: a data set is too small for its test split, say.
        """
        failed = []
        found = [*preflight.cheap(self.plan, self.kept.home), *preflight.held_out(self.plan)]
        found += [
            replace(one, message=f"{one.check}: {one.message}") for one in preflight.room(self.plan)
        ]
        for finding in found:
            if finding.verdict == "warning":
                self.reporter.warning("; ".join(filter(None, (finding.message, finding.hint))))
            elif finding.verdict == "failed":
                failed.append(finding)
        if failed:
            raise UsageError(
                "; ".join(f"{finding.check}: {finding.message}" for finding in failed),
                hint=failed[0].hint,
                code="preflight-failed",
            )

    def _estimate(self) -> None:
        """Say what is ahead, before any of it is spent."""
        content.make_cache_dir()  # where what is measured of this machine is kept
        runs = self.kept.runs()
        decided = list(decisions(self.plan, self.scope, runs, self.kept.home))
        for line in restarted(decided, self.plan, self.scope):
            self.reporter.note(line)
        estimator = Estimator(self.plan, self.spending.prices, runs)
        ahead = []
        self.decided = {stage.name: decision.action for stage, decision in decided}
        for stage, _, estimate in estimator.stages(decided):
            kept = self.record.stage(stage.name)
            if estimate is not None:
                ahead.append(estimate)
                kept.estimate = kept.estimate or estimate
        self.directory.save()
        if ahead:
            self.reporter.estimated(self.plan, costs.total(ahead), self.spending.prices.note)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        self.reporter.doing(f"starting the engine ({_described(self.plan.engine)})")
        log_path = self.directory.path / "engine.log"
        data_dir = self.kept.home / "engine"
        models = locations(self.plan)
        with self.plan.engine.connect(models, data_dir, log_path) as connection:
            wait = EngineWaiter(
                connection.alive,
                self.interrupts,
                lambda: death.explain(connection),
                connection.trouble,
                self.reporter.warning,
                activity.tick,
            )
            self.reporter.doing("looking at models and data")
            needs.check(self.plan, connection, wait)
            self.plan.check_models()
            self.serving = Serving(self.plan, connection, wait, data_dir)
            weights.check(self.plan, self.serving, self.decided)
            tokenizers.check(self.plan, self.serving)
            left = self.scope.left(self.plan, self.record)
            seen = texts.check(self.plan, left, self.serving.renderer, self.reporter.warning)
            for text in seen.looked:
                self.reporter.note(text)
            with self._workers(seen.first) as self.stages:
                self.history = History.of(self.kept.runs(), self.serving.lost, self.kept.runs_dir)
                yield connection

    @contextmanager
    def _workers(self, first: dict[str, list[list[int]]]) -> Iterator[StageWork | ClusterStages]:
        """What runs a stage: this process, or nodes of a cluster."""
        shared = (self.plan, self.directory, self.serving, self.reporter, self.spending)
        home = self.kept.home
        to = self.cluster
        place = driver.place_of(self.record, to.shared, home) if to is not None else None
        self.taken = driver.take_over(self.plan, self.directory, self.reporter, place)
        if self.cluster is None:
            if any(stage.resources != Resources() for stage in self.plan.stages):
                self.reporter.note("'resources:' is read by --jobs ray alone, and not here")
            yield StageWork(*shared, self._made, first, self.beside)
            return
        self.reporter.doing("connecting to Ray")
        with driver.opened(self.cluster, *shared, self.interrupts, self._made, first) as stages:
            yield stages

    def _made(self, stage: str) -> Path:
        """Where the records that a stage of this run made lie."""
        kept = self.record.stage(self.stand_ins.get(stage, stage))
        return self.kept.runs_dir / kept.made_in

    def _stage(self, stage: PlannedStage, tracked: RecipeRun) -> None:
        kept = self.record.stage(stage.name)
        origin = self.plan.origins[stage.index - 1]
        self.beside.settle(judged_before(stage, self.plan))
        if why := gates.ended(origin, self.plan.origins, self.record):
            self._leave_out(stage, origin, why)
            return
        needs = {name: self.stand_ins.get(name, name) for name in stage.needs}
        missing = [n for n, made in sorted(needs.items()) if not self.record.stage(made).done]
        missing += failed_above(stage, self.plan, self.failures)
        if missing:
            kept.status, kept.error = "skipped", f"needs '{missing[0]}', which did not finish"
            self.directory.save()
            self.reporter.stage_skipped(stage, kept)
            return
        try:
            self._run_stage(stage, tracked)
        except Exception as error:
            self._failed(stage, error)

    def _failed(self, stage: PlannedStage, error: Exception) -> None:
        """Keep why a stage failed. One that has trained stays so: its evals alone are left.

        Raises:
            Exception: `error`, where the engine is gone.
        """
        kept = self.record.stage(stage.name)
        kept.status = "trained" if kept.status == "trained" else "failed"
        kept.error = ending.first_line(error)
        self.directory.save()
        if isinstance(error, EngineLostError) or not self.connection.alive():
            raise error
        self.failures[stage.name] = error
        self.reporter.stage_failed(stage, kept)

    def _leave_out(self, stage: PlannedStage, origin: Origin, why: str) -> None:
        """Pass over a round of a loop that has ended: the round before stands in for it."""
        assert origin.before is not None
        method = stage.method.name if stage.method else None
        kept = StageRecord(stage.name, stage.fingerprint, method, status="left_out", error=why)
        self.record.stages[stage.index - 1] = kept
        self.stand_ins[stage.name] = self.stand_ins.get(origin.before, origin.before)
        self.serving.checkpoints[stage.name] = self.serving.checkpoints[origin.before]
        self.directory.save()
        self.reporter.stage_skipped(stage, kept)

    def _run_stage(self, stage: PlannedStage, tracked: RecipeRun) -> None:
        with self.choosing:
            kept = self._kept(stage)
        start = self.serving.start(stage, kept.start)
        whole = kept.done and kept.status != "trained" and not new_evals(stage, kept)
        if whole and kept.checkpoint:
            self.serving.checkpoints[stage.name] = kept.checkpoint
            track_reused(self.directory, stage, kept, tracked)
            self.reporter.stage_reused(stage, kept)
            return
        if self.plan.engine.billed:
            billing.note_session(self.record, self.connection)
        if stage.name in self.taken:
            with tracked_stage(stage, kept, tracked) as child:
                log_kept(self.directory.path, stage, kept, child)
        tell_again(self.directory, stage, kept, tracked)
        self.stages.run(stage, kept, start, tracked)
        assert kept.checkpoint is not None
        self.serving.checkpoints[stage.name] = kept.checkpoint
        with self.choosing:
            self.history.add(self.record, kept)

    def _kept(self, stage: PlannedStage) -> StageRecord:
        """What there is of the stage: of this run, of an earlier one, or nothing."""
        kept = self.record.stage(stage.name)
        decision = self.history.decide(stage, self.record, self.plan.name)
        if decision.stage is kept:
            if decision.action == "resume":
                kept.inputs = dict(stage.inputs)  # `bad_rows` may be another: see `depends.usable`
            return kept
        if decision.stage is None and not (kept.done or kept.resume):
            return kept
        if kept.done or kept.resume:
            self.reporter.warning(f"stage '{stage.name}': {decision.why}")
        fresh = StageRecord(
            kept.name,
            kept.fingerprint,
            kept.method,
            dict(stage.inputs),
            kept.fresh,
            auto=kept.auto,
            model=kept.model,
            training=kept.training,
            evaluation=kept.evaluation,
            lost=kept.lost,
            watching=kept.watching,
            usd=kept.usd,
        )
        if decision.run and decision.stage:
            take(stage, fresh, decision.run, decision.stage)
        self.record.stages[stage.index - 1] = fresh
        self.directory.save()
        return fresh


def _described(engine: Engine) -> str:
    return f"{engine.name}, {engine.computes}" if engine.computes else engine.name
