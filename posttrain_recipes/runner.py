"""Runs a plan: one stage after another, each from the checkpoint that its start left.

A run of the same plan that did not finish is gone on with; a stage that an earlier run finished on
the same inputs is reused. Everything that a resumed run needs is in `run.json` before the runner
goes on to the next thing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from posttrain_recipes import report, store
from posttrain_recipes.data import load_records
from posttrain_recipes.errors import PtlError
from posttrain_recipes.events import Reporter
from posttrain_recipes.plan import BASE, Plan, PlannedEval, PlannedStage, model_location
from posttrain_recipes.plugin import (
    Checkpoint,
    EvalContext,
    EvalResult,
    Record,
    Renderer,
    Resume,
    StageContext,
    sampling_client,
)
from posttrain_recipes.store import Measured, RunDirectory, RunRecord, StageRecord, Store
from posttrain_recipes.tracking import Tracker
from posttrain_recipes.version import __version__
from posttrain_recipes.waiting import EngineWaiter, GoneError, Interrupts, in_thread

if TYPE_CHECKING:
    import tinker

    from posttrain_recipes.tracking import RecipeRun, StageRun


def run(
    plan: Plan,
    home: Path,
    reporter: Reporter | None = None,
    *,
    fresh: bool = False,
) -> RunRecord:
    """Run a plan to its end and return what is known about it.

    Args:
        home: the directory that runs, checkpoints and tracking are kept in.
        reporter: hears what happens.
        fresh: start from nothing, whatever earlier runs left.

    Raises:
        PtlError: the run failed; what it had is kept and the same call goes on from there.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after what was trained has been saved.
    """
    reporter = reporter or Reporter()
    kept = Store(home)
    earlier = None if fresh else kept.latest(plan.fingerprint)
    if earlier is not None and earlier.status == "finished":
        reporter.run_started(plan, earlier, resumed=True)
        reporter.run_finished(earlier)
        return earlier
    record = earlier or _new_record(plan, kept)
    interrupts = Interrupts()
    with kept.open(record) as directory, interrupts.installed():
        reporter.run_started(plan, record, resumed=earlier is not None)
        record.status, record.error = "running", None
        directory.save()
        try:
            _Run(plan, kept, directory, reporter, interrupts, fresh).work()
        except KeyboardInterrupt:
            _end(directory, "killed", "interrupted")
            raise
        except BaseException as error:
            _end(directory, "failed", str(error).split("\n")[0])
            raise
        _end(directory, "finished", None)
    reporter.run_finished(record)
    return record


def _new_record(plan: Plan, kept: Store) -> RunRecord:
    return RunRecord(
        id=kept.next_id(plan.name),
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
            StageRecord(s.name, s.fingerprint, s.method.name if s.method else None)
            for s in plan.stages
        ],
        version=__version__,
    )


def _end(directory: RunDirectory, status: str, error: str | None) -> None:
    record = directory.record
    for stage in record.stages:
        if stage.status == "running":
            stage.status = status
    record.status, record.error, record.finished = status, error, store.now()
    directory.save()


class _Run:
    """One run at work."""

    def __init__(
        self,
        plan: Plan,
        kept: Store,
        directory: RunDirectory,
        reporter: Reporter,
        interrupts: Interrupts,
        fresh: bool,
    ) -> None:
        self.plan = plan
        self.kept = kept
        self.directory = directory
        self.record = directory.record
        self.reporter = reporter
        self.interrupts = interrupts
        self.fresh = fresh
        self.base = Checkpoint(plan.model)
        self.checkpoints: dict[str, Checkpoint] = {BASE: self.base}
        self.results: dict[tuple[str, str], EvalResult] = {}

    def work(self) -> None:
        log_path = self.directory.path / "engine.log"
        location = model_location(self.plan)
        tracker = Tracker(self.kept.home, warn=self.reporter.warning)
        tracker.start()
        self.reporter.doing(f"starting the engine ({self.plan.engine.name})")
        models = {self.plan.model: location}
        with self.plan.engine.connect(models, self.kept.home / "engine", log_path) as connection:
            self.connection = connection
            self.wait = EngineWaiter(connection.alive, self.interrupts, self._death)
            self.renderer = self._renderer(location)
            tracker.mark_dead_runs()
            with tracker.run(
                recipe=self.plan.name,
                run_name=self.record.id,
                resolved_yaml=report.resolved_yaml(self.plan.resolved),
                description_md=self.plan.description or None,
                params=report.run_params(self.record),
                tags=report.run_tags(self.record),
                run_id=self.record.tracking_id,
            ) as tracked:
                self.record.tracking_id, self.record.tracking_uri = tracked.run_id, tracker.uri
                self.directory.save()
                for stage in self.plan.stages:
                    self._stage(stage, tracked)
                tracked.summary(report.markdown(self.record))

    def _renderer(self, location: str) -> Renderer:
        from posttrain_recipes.training.rendering import load_renderer

        return load_renderer(location)

    def _death(self) -> PtlError:
        log = self.connection.log_path
        tail = ""
        if log is not None and log.is_file():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        return PtlError(
            "the engine ended while the run needed it",
            why=tail or None,
            hint=f"its log is {log}; 'ptl run' of the same recipe goes on from what was saved",
        )

    # --- one stage -------------------------------------------------------------------------------

    def _stage(self, stage: PlannedStage, tracked: RecipeRun) -> None:
        kept = self._kept(stage)
        if not kept.done and not self.fresh:
            self._reuse(stage, kept)
        start = self._start(stage)
        if kept.done and kept.checkpoint and not self._missing_evals(stage, kept):
            self.checkpoints[stage.name] = kept.checkpoint
            self.reporter.stage_reused(stage, kept)
            return
        kept.start = start
        kept.started = kept.started or store.now()
        trained = kept.done
        kept.status = "reused" if trained else "running"
        self.directory.save()
        self.reporter.stage_started(stage, kept, len(self.plan.stages))
        began = time.monotonic()
        with tracked.stage(
            name=stage.name,
            index=stage.index,
            params=report.stage_params(stage),
            tags={"ptl.stage": stage.name, "ptl.fingerprint": stage.fingerprint},
            run_id=kept.tracking_id,
        ) as child:
            kept.tracking_id = child.run_id
            self.directory.save()
            self._evaluate(stage, kept, child, "before", start)
            if not trained:
                kept.checkpoint = self._train(stage, kept, child, start)
            assert kept.checkpoint is not None
            self._evaluate(stage, kept, child, "after", kept.checkpoint)
        kept.seconds += time.monotonic() - began
        kept.status = "reused" if trained else "finished"
        kept.finished = store.now()
        self.directory.save()
        self.checkpoints[stage.name] = kept.checkpoint
        self.reporter.stage_finished(stage, kept)

    def _reuse(self, stage: PlannedStage, kept: StageRecord) -> None:
        """Take over what an earlier run trained on the same inputs, if it is still there."""
        found = self.kept.finished_stage(stage.fingerprint)
        if found is None:
            return
        run, earlier = found
        if earlier.checkpoint is None or not self._alive(earlier.checkpoint.state_uri):
            return
        kept.status = "reused"
        kept.reused_from = run.id
        kept.checkpoint, kept.start = earlier.checkpoint, earlier.start
        kept.total_steps, kept.records, kept.tokens = (
            earlier.total_steps,
            earlier.records,
            earlier.tokens,
        )
        wanted = {planned.fingerprint for planned in stage.evals}
        kept.before = [m for m in earlier.before if m.fingerprint in wanted]
        kept.after = [m for m in earlier.after if m.fingerprint in wanted]
        kept.tracking_id = None
        self.directory.save()

    def _kept(self, stage: PlannedStage) -> StageRecord:
        """What earlier tries left of the stage: nothing, where the engine has it no more."""
        kept = self.record.stage(stage.name)
        made = kept.checkpoint if kept.done else kept.resume
        if made is None or self._alive(made.state_uri):
            return kept
        self.reporter.warning(
            f"the checkpoint of stage '{kept.name}' at step {made.step} is gone; it starts over"
        )
        fresh = StageRecord(kept.name, kept.fingerprint, kept.method)
        self.record.stages[stage.index - 1] = fresh
        self.directory.save()
        return fresh

    def _alive(self, state_uri: str | None) -> bool:
        """Whether the engine has that state; the base model is always there."""
        if state_uri is None:
            return True
        try:
            self.wait(self.connection.rest.get_weights_info_by_tinker_path(state_uri))
        except GoneError:
            return False
        return True

    def _missing_evals(self, stage: PlannedStage, kept: StageRecord) -> bool:
        wanted = [planned.fingerprint for planned in stage.evals]
        return any(
            fingerprint not in {m.fingerprint for m in measured}
            for measured in (kept.before, kept.after)
            for fingerprint in wanted
        )

    def _start(self, stage: PlannedStage) -> Checkpoint:
        if not stage.start.startswith("tinker://"):
            return self.checkpoints[stage.start]
        kept = self.record.stage(stage.name)
        if kept.start is not None:
            return kept.start
        # A state cannot be sampled from: make a sampler of the same weights.
        from_state = self.connection.service.create_training_client_from_state
        client: tinker.TrainingClient = self.wait(
            in_thread(lambda: from_state(stage.start).result())
        )
        sampler = self.wait(client.save_weights_for_sampler(f"{stage.name}-start"))
        return Checkpoint(self.plan.model, stage.start, sampler.path)

    def _train(
        self, stage: PlannedStage, kept: StageRecord, child: StageRun, start: Checkpoint
    ) -> Checkpoint:
        if stage.method is None or stage.data is None:
            return start
        assert stage.wants is not None
        self.reporter.doing(f"reading {stage.data.label}")
        records = load_records(stage.data, stage.wants)
        kept.records = len(records)
        child.log_dataset(
            Path(stage.data.label).name,
            stage.data.label,
            stage.data.digest,
            "train",
            count=len(records),
        )
        context = StageContext(
            name=stage.name,
            seed=stage.seed,
            base_model=self.plan.model,
            start=start,
            lora=stage.lora,
            train=records,
            renderer=self.renderer,
            service=self.connection.service,
            sink=_Sink(self, stage, kept, child),
            wait=self.wait,
            rewards=stage.rewards,
            resume=kept.resume,
        )
        try:
            return stage.method.train(context)
        finally:
            child.flush()

    # --- evals -----------------------------------------------------------------------------------

    def _evaluate(
        self,
        stage: PlannedStage,
        kept: StageRecord,
        child: StageRun,
        when: Literal["before", "after"],
        checkpoint: Checkpoint,
    ) -> None:
        """Run the stage's evals on a checkpoint, each once however many stages ask for it."""
        done: list[Measured] = getattr(kept, when)
        step = 0 if when == "before" else kept.total_steps
        for planned in stage.evals:
            if any(m.fingerprint == planned.fingerprint for m in done):
                continue
            result = self._result(planned, checkpoint, f"{planned.name} {when} {stage.name}")
            if result.samples:
                self.directory.save_samples(stage.name, planned.name, when, result.samples)
            child.log_eval(
                planned.name,
                when,
                result,
                step,
                dataset_name=Path(planned.data.label).name,
                dataset_digest=planned.data.digest,
                checkpoint_uri=checkpoint.sampler_uri,
            )
            child.log_samples(planned.name, when, result.samples, step)
            done.append(
                store.measured(
                    planned.name,
                    planned.eval.name,
                    planned.fingerprint,
                    planned.data.label,
                    result,
                )
            )
            self.directory.save()
            self.reporter.evaluated(stage, planned, when, result)

    def _result(self, planned: PlannedEval, checkpoint: Checkpoint, what: str) -> EvalResult:
        key = (planned.fingerprint, checkpoint.sampler_uri or BASE)
        if key in self.results:
            return self.results[key]
        self.reporter.doing(f"evaluating {what}")
        sampler = sampling_client(self.connection.service, checkpoint, self.wait)
        records: Sequence[Record] = load_records(planned.data, planned.wants)
        if not records:
            raise PtlError(f"eval '{planned.name}' has no records", why=planned.data.label)
        context = EvalContext(
            name=planned.name,
            seed=planned.data.split_seed,
            records=records,
            renderer=self.renderer,
            sampler=sampler,
            wait=self.wait,
        )
        self.results[key] = planned.eval.evaluate(context)
        return self.results[key]


class _Sink:
    """Where a stage's numbers and checkpoints go. See `plugin.StageSink`."""

    def __init__(self, run: _Run, stage: PlannedStage, kept: StageRecord, child: StageRun) -> None:
        self.run = run
        self.stage = stage
        self.kept = kept
        self.child = child
        self.tokens = kept.tokens

    def begin(self, total_steps: int) -> None:
        self.kept.total_steps = total_steps
        done = self.kept.resume.step if self.kept.resume else 0
        self.run.reporter.training(self.stage, done, total_steps)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.tokens += int(metrics.get("train/tokens", 0))
        self.child.log_metrics(metrics, step)
        self.run.reporter.step(step, self.kept.total_steps, metrics)

    def checkpoint(self, resume: Resume) -> None:
        # Tracking first: a run that is killed in between logs no step twice and misses none.
        self.child.log_checkpoint(resume.state_uri, resume.sampler_uri, resume.step)
        self.child.flush()
        self.kept.resume, self.kept.tokens = resume, self.tokens
        self.run.directory.save()
        self.run.reporter.saved(resume)
