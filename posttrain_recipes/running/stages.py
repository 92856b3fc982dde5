"""Runs one stage: start weights, evals before, training, checkpoints, evals after."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from posttrain_recipes import store
from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning.plans import Plan, PlannedEval, PlannedStage
from posttrain_recipes.plugin import (
    Checkpoint,
    DataMethod,
    Method,
    Record,
    Resume,
    Sample,
    StageContext,
)
from posttrain_recipes.records import EvalResult
from posttrain_recipes.reporting import report, scores
from posttrain_recipes.running import activity, firstlook, logged, rendered
from posttrain_recipes.running.beside import Beside
from posttrain_recipes.running.during import During
from posttrain_recipes.running.evaluation import Evaluator
from posttrain_recipes.running.events import Reporter, also
from posttrain_recipes.running.health import Health, overview
from posttrain_recipes.running.limits import Spending
from posttrain_recipes.running.making import Made, provenance
from posttrain_recipes.running.reading import read_records
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.running.tracked import tracked_stage
from posttrain_recipes.running.watched import Watching
from posttrain_recipes.store import RunDirectory, Spent, StageRecord
from posttrain_recipes.streamed import Streamed
from posttrain_recipes.tracking import curves
from posttrain_recipes.tracking.curves import CurveWriter

if TYPE_CHECKING:
    from posttrain_recipes.tracking.runs import RecipeRun, StageRun

KEPT_CHECKPOINTS = 2
"""Checkpoints of a stage in training that are kept: the last to go on from, and the one before,
which may still be sampled from."""
TTL_S = 14 * 24 * 3600
"""How long a service that bills keeps the checkpoints of a stage that is not done: what a run that
is killed leaves does not cost for ever. It can be gone on with for as long."""
DELETE_SECONDS = 5.0
"""How long a stage's end waits for the engine to delete the others."""


@dataclass
class StageWork:
    """What the stages of one run share: engine, evaluator, tracker, limits; runs one stage."""

    plan: Plan
    directory: RunDirectory
    serving: Serving
    reporter: Reporter
    spending: Spending
    made: Callable[[str], Path]
    """Where the records that a stage made lie."""
    first: dict[str, list[list[int]]] = field(default_factory=dict)
    """By base model, records as token ids: those that no stage has looked at yet."""
    beside: Beside | None = None
    """Where evals go on while later stages train; None where they do not."""

    def __post_init__(self) -> None:
        shared = (self.plan, self.directory, self.serving, self.spending, self.made)
        self.watching = Watching(*shared, self.reporter.warning)
        self.reporter = also(self.reporter, self.watching)
        self.evaluator = Evaluator(
            self.directory, self.serving, self.reporter, self.spending, self.made
        )

    def run(
        self, stage: PlannedStage, kept: StageRecord, start: Checkpoint, tracked: RecipeRun
    ) -> None:
        """Evaluate, train and evaluate again, without repeating what `kept` has already. The evals
        after it may still be under way when this returns: see `Beside`."""
        stage.check_held()
        kept.start = start
        kept.started = kept.started or store.now()
        trained = kept.done
        if stage.method is None and kept.checkpoint:
            kept.checkpoint = start  # the same weights may have had another name in an earlier run
        ends = "reused" if kept.status in ("finished", "reused") else "finished"
        if kept.status != "trained":
            kept.status = "reused" if trained else "running"
        kept.error = None
        self.directory.save()
        self.reporter.stage_started(stage, kept, len(self.plan.stages))
        began = time.monotonic()
        with ExitStack() as held:
            child = held.enter_context(tracked_stage(stage, kept, tracked))
            self.directory.save()
            for text in kept.warnings:  # of an earlier try
                child.warn(text)
            for text in kept.notes:
                child.note(text)
            records = [] if trained else self._read(stage)
            if not trained:
                self._look(stage)
            # What decides while it trains is compared with what was found before.
            waits = stage.method is None or any(planned.every for planned in stage.evals)
            self.evaluator.measure(stage, kept, child, "before", start, waits=waits)
            if not trained:
                kept.checkpoint = self._train(stage, kept, child, start, records)
            assert kept.checkpoint is not None
            beside = self.beside if self.beside and self.beside.takes(stage) else None
            if beside is not None:
                kept.status = kept.status if trained else "trained"
                self.directory.save()
                self.reporter.stage_trained(stage, kept)
                held.enter_context(self.evaluator.promised(stage, kept.checkpoint))
            rest = partial(self._rest, held.pop_all(), stage, kept, child, began, ends)
        if beside is not None:
            beside.start(stage, rest)
        else:
            rest()

    def _rest(
        self,
        held: ExitStack,
        stage: PlannedStage,
        kept: StageRecord,
        child: StageRun,
        began: float,
        ends: str,
    ) -> None:
        """What comes once a stage has trained: its evals, and its end. `held` is its run in MLflow,
        which ends here."""
        assert kept.start is not None
        assert kept.checkpoint is not None
        with held:
            self.evaluator.measure(stage, kept, child, "before", kept.start)
            self.evaluator.measure(stage, kept, child, "after", kept.checkpoint)
            child.log_metrics(report.spent(kept), kept.total_steps)
        kept.seconds += time.monotonic() - began
        if kept.best is not None and kept.resume is not None and kept.resume != kept.best:
            # Only now: until here a next try had gone on from the last step.
            kept.superseded += kept.resume.saved
            kept.resume = kept.best
        if kept.resume is not None:  # nobody trains on what was trained beside
            kept.superseded += kept.resume.beside.values()
        kept.status = ends
        kept.finished = store.now()
        self.directory.save()
        self.reporter.stage_finished(stage, kept)

    def _read(self, stage: PlannedStage) -> Sequence[Record]:
        """What the stage trains on: read before its evals, which take longer than to find what is
        wrong with a record."""
        if stage.method is None or stage.data is None:
            return []
        assert stage.wants is not None
        self.reporter.doing(f"reading {stage.data.label}")
        renderer = self.serving.renderer(stage.model, stage.renderer)
        return read_records(stage.data, stage.wants, renderer, self.made, stage.method)

    def _look(self, stage: PlannedStage) -> None:
        """Say where the base model reads the data no better than a guess: once a model."""
        sequences = self.first.pop(stage.model, None)
        if sequences is None:
            return
        self.reporter.doing(f"reading a few records with {stage.model}")
        with self.spending.meter.into(Spent()):  # nothing is billed, and it is no part of a stage
            found = firstlook.look(self.plan, self.serving, stage.model, sequences)
        if found is not None and found.verdict != "ok":
            self.reporter.warning("; ".join(filter(None, (found.message, found.hint))))

    def _train(
        self,
        stage: PlannedStage,
        kept: StageRecord,
        child: StageRun,
        start: Checkpoint,
        records: Sequence[Record],
    ) -> Checkpoint:
        if stage.method is None:
            return start
        renderer = self.serving.renderer(stage.model, stage.renderer)
        kept.records = len(records)
        if stage.data is not None:
            child.log_dataset(
                Path(stage.data.label).name,
                stage.data.label,
                stage.data.digest,
                "train",
                count=len(records),
            )
        if (first := next(iter(records), None)) is not None:
            renderers = rendered.renderers_of(self.plan, stage, self.serving.renderer)
            child.write_text(rendered.page(stage.method, first, renderers), "rendered.html")
        made = Made(store.made_path(self.directory.path, stage.name))
        sink = Sink(self, stage, kept, child, made)
        context = StageContext(
            name=stage.name,
            seed=stage.seed,
            base_model=stage.model,
            start=start,
            lora=stage.lora,
            train=records,
            renderer=renderer,
            service=self.serving.connection.service,
            sink=sink,
            wait=self.serving.wait,
            rewards=stage.rewards,
            resume=kept.resume,
            resolve=lambda ref: self.serving.resolve(ref, stage.model, stage.renderer),
            cache=self.directory.path.parents[1] / "cache",
            exact=self.plan.engine.exact,
            ttl_s=TTL_S if self.plan.engine.billed else None,
            adapters=self.serving.connection.adapters,
            watch=sink.watch.replies,
        )
        sink.during.check()
        self.spending.check(f"training {stage.name}")
        try:
            with (
                self.spending.into(stage, kept, kept.training),
                activity.watched(f"{_verb(stage.method)} {stage.name}", self.reporter.sampling),
                logged.kept(stage.name, sink.warn),
            ):
                if isinstance(stage.method, DataMethod) and sink.left is None:
                    batches = stage.method.make(context, sink.done)
                    for number, batch in enumerate(batches, sink.done + 1):
                        made.write(number, batch)
                        self.reporter.made(stage, number)
                checkpoint = stage.method.train(context)
                checkpoint = sink.end(checkpoint)
                sink.hold(checkpoint)
            if stage.method.collects():
                source = provenance(self.plan, self.directory.record, stage, start)
                # Batches are gone once they were put together: an earlier try's end stands.
                kept.made = made.finish(source) if sink.left is None else sink.left
                kept.made_in = f"{self.directory.record.id}/made/{stage.name}"
                self._show(kept, made, child)
        finally:
            if isinstance(records, Streamed) and records.left_out:
                assert stage.data is not None
                sink.warn(
                    f"{len(records.left_out):,} of {len(records):,} rows of {stage.data.label} "
                    "cannot be used and were left out when their turn came: batches were smaller"
                )
            sink.curves.close()
            child.flush()
        sink.delete_superseded(keep=0)
        return checkpoint

    def _show(self, kept: StageRecord, made: Made, child: StageRun) -> None:
        """Log the records that the stage made, as MLflow datasets."""
        for name, count in kept.made.items():
            path = made.path / f"{name}.jsonl"
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            child.log_dataset(
                f"{kept.name}/{path.name}", str(path), digest, context="made", count=count
            )


def _verb(method: Method) -> str:
    return "making records of" if isinstance(method, DataMethod) else "training"


class Sink:
    """Receives a stage's metrics, samples and checkpoints. See `plugin.StageSink`."""

    def __init__(
        self,
        work: StageWork,
        stage: PlannedStage,
        kept: StageRecord,
        child: StageRun,
        made: Made,
    ) -> None:
        self.work = work
        self.made = made
        self.done = kept.resume.step if kept.resume else 0
        """Steps, or batches of records, that an earlier try left."""
        self.left = made.left(stage.fingerprint)
        """The records that an earlier try made to its end; None where there is more to make."""
        if isinstance(stage.method, DataMethod):
            self.done = made.batches
        elif not self.done:
            made.clear()
            self.left = None
        elif self.left is None:
            made.forget_after(self.done)
        self.collected: list[Record] = []
        """Records of the steps since the last checkpoint."""
        self.stage = stage
        self.kept = kept
        self.child = child
        self.tokens = kept.tokens
        self.begun = False
        self.deleting: dict[str, Future[None]] = {}
        bound = getattr(getattr(stage.method, "config", None), "max_tokens", None)
        self.health = Health(bound, auto_rate="learning_rate" in stage.auto)
        for step, metrics in curves.steps(work.directory.path, stage.name).items():
            if step <= self.done:
                list(self.health.step(metrics))  # told by an earlier try
        self.curves = CurveWriter(work.directory.path, stage.name)
        self.during = During(stage, kept, self._measure)
        self.watch = work.watching.stage(stage, kept)

    def _measure(self, planned: PlannedEval, checkpoint: Checkpoint) -> None:
        self.child.flush()
        self.work.evaluator.during(self.stage, self.kept, self.child, planned, checkpoint)

    def begin(self, total_steps: int) -> None:
        """How many optimizer steps the stage will take, as far as is known by now."""
        # One that its evals ended in an earlier try takes no more than it has.
        self.kept.total_steps = self.done if self.kept.ended else total_steps
        if self.begun:
            return
        self.begun = True
        self.watch.begin()
        if not self.kept.ended:
            self.work.reporter.training(self.stage, self.done, total_steps)
        asked = getattr(self.stage.method and self.stage.method.config, "max_steps", None)
        epochs = getattr(self.stage.method and self.stage.method.config, "epochs", None)
        if asked and epochs and total_steps < asked:
            told = len(self.kept.notes)
            text = f"max_steps is {asked}, and the data end after {total_steps} steps: epochs is "
            text += f"{epochs}; {math.ceil(asked * epochs / total_steps)} would reach it"
            self.kept.notes += [text] if text not in self.kept.notes else []
            self._note(told)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of optimizer step `step` (counted from 1)."""
        self.tokens += int(metrics.get("train/tokens", 0))
        self.curves.add(step, metrics)
        self.child.log_metrics({**metrics, **overview(metrics)}, step)
        self.work.reporter.step(step, self.kept.total_steps, metrics)
        for text in self.health.step(metrics, last=step >= self.kept.total_steps):
            self.warn(f"by step {step} {text}")
        self.work.spending.step(self.stage, self.kept)
        self.watch.step(step, metrics)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after step `step`, as an eval is due there."""
        return self.during.due(step) or self.watch.due(step)

    def review(self) -> bool:
        """Run the evals that are due on the last checkpoint. True where the stage ends with it."""
        told = len(self.kept.notes)
        self.watch.review()
        ends = self.during.review(self.kept.resume)
        self._note(told)
        return ends

    def end(self, last: Checkpoint) -> Checkpoint:
        """What the stage leaves, once it has trained."""
        if not isinstance(self.stage.method, DataMethod):
            self.review()
            self.watch.end(last)
        told = len(self.kept.notes)
        made = self.during.result(last)
        for planned in self.during.evals:
            if planned.every and planned.every >= self.kept.total_steps and not self.kept.ended:
                text = f"{planned.name} was not run in between: every {planned.every} steps, and "
                text += f"there were {self.kept.total_steps}"
                self.kept.notes += [text] if text not in self.kept.notes else []
        self._note(told)
        every = [planned.every for planned in self.during.evals if planned.every]
        if every and min(every) < self.kept.total_steps and not self.kept.during:
            name = self.stage.method.name if self.stage.method else ""
            self.warn(f"method '{name}' stops for no evals while it trains: none was run there")
        if made.state_uri is not None and (self.stage.keep or self.kept.ended):
            self.child.log_checkpoint(made.state_uri, made.sampler_uri, made.step)
        return made

    def _note(self, told: int) -> None:
        """Say what was noted since `told` notes."""
        self.work.directory.save()
        for text in self.kept.notes[told:]:
            self.child.note(text)
            self.work.reporter.note(text)

    def note(self, text: str) -> None:
        """Say what was found, now and wherever the stage is looked at later."""
        told = len(self.kept.notes)
        self.kept.notes += [text] if text not in self.kept.notes else []
        self._note(told)

    def warn(self, text: str) -> None:
        """Say what is wrong, now and wherever the stage is looked at later."""
        if text not in self.kept.warnings:  # or a try that was killed after its checkpoint told it
            self.kept.warnings.append(text)
        self.child.warn(text)
        self.work.directory.save()
        self.work.reporter.warning(f"stage '{self.stage.name}': {text}")

    def show(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """Samples of optimizer step `step` for people to read."""
        self.child.show_samples(name, samples, step)

    def collect(self, records: Sequence[Record]) -> None:
        """Records of this step that later stages may train on."""
        self.collected += records

    def measured(self, name: str, when: Literal["before", "after"], result: EvalResult) -> None:
        """A measurement by the method itself, shown in the table of results beside the evals."""
        kept, stage, directory = self.kept, self.stage, self.work.directory
        assert stage.method is not None
        assert stage.data is not None
        step = 0 if when == "before" else kept.total_steps
        scores.keep(directory, stage.name, name, when, result)
        self.child.log_eval(name, when, result, step)
        self.child.log_samples(name, when, result.samples, step)
        mark = f"{store.OWN}{name}"
        found = store.measured(name, stage.method.name, mark, stage.data.label, result)
        others = [m for m in getattr(kept, when) if m.name != name]
        setattr(kept, when, [*others, found])
        directory.save()

    def artifact(self, name: str, text: str) -> None:
        """A file to look at; it lies beside the run, and in MLflow."""
        path = store.artifacts_path(self.work.directory.path, self.stage.name) / name
        store.write_atomic(path, text)
        self.child.write_text(text, f"artifacts/{name}")

    def checkpoint(self, resume: Resume) -> None:
        """A checkpoint that is saved on the engine; from now on a resumed stage starts here."""
        if self.collected:
            self.made.write(resume.step, self.collected)
            self.collected = []
        # Tracking first: a run that is killed in between logs no step twice and misses none.
        if resume.step >= self.kept.total_steps and not self.stage.keep:
            # Earlier ones are deleted when the next is there: MLflow names what stays.
            self.child.log_checkpoint(resume.state_uri, resume.sampler_uri, resume.step)
        self.child.flush()
        before, self.kept.resume, self.kept.tokens = self.kept.resume, resume, self.tokens
        if before not in (None, self.kept.best) and before.state_uri != resume.state_uri:
            self.kept.superseded += before.saved
        self.work.directory.save()
        self.work.reporter.saved(resume)
        self.delete_superseded(keep=len(resume.saved) * (KEPT_CHECKPOINTS - 1))
        if self.kept.best is not None and self.work.plan.engine.billed:
            for uri in (self.kept.best.state_uri, self.kept.best.sampler_uri):
                self._ttl(uri, TTL_S)  # it may have to last for longer than any other

    def hold(self, left: Checkpoint) -> None:
        """Have the service keep what the stage leaves until it is deleted."""
        if not self.work.plan.engine.billed or left == self.kept.start:
            return
        for uri in filter(None, (left.state_uri, left.sampler_uri)):
            try:
                self.work.serving.wait(self._ttl(uri, None))
            except PtlError as error:
                days = TTL_S // (24 * 3600)
                text = f"the service may delete {uri} {days} days after it was saved: {error.what}"
                self.warn(text)

    def _ttl(self, uri: str, seconds: int | None) -> Future[None]:
        rest = self.work.serving.connection.rest
        return rest.set_checkpoint_ttl_from_tinker_path(uri, seconds).future()

    def delete_superseded(self, keep: int) -> None:
        """Have the engine delete the checkpoints that nothing resumes from: all but the last `keep`
        URIs.

        Nothing depends on it and nothing waits for it long: `ptl gc` tries again what failed.
        """
        kept, rest = self.kept, self.work.serving.connection.rest
        needed = kept.resume.samplers if kept.resume else ()
        for uri in kept.superseded[: max(0, len(kept.superseded) - keep)]:
            if uri not in self.deleting and uri not in needed:
                self.deleting[uri] = rest.delete_checkpoint_from_tinker_path(uri).future()
        _, waiting = wait(self.deleting.values(), 0 if keep else DELETE_SECONDS)
        for uri, done in self.deleting.items():
            if done not in waiting and done.exception() is None and uri in kept.superseded:
                kept.superseded.remove(uri)
