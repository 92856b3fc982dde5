"""Runs evals on checkpoints, each only once per checkpoint, however many stages need it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from posttrain_recipes import store
from posttrain_recipes.errors import PtlError
from posttrain_recipes.options import AS_EVER
from posttrain_recipes.planning.plans import PlannedEval, PlannedStage
from posttrain_recipes.plugin import Checkpoint, EvalContext, EvalResult
from posttrain_recipes.reporting import scores
from posttrain_recipes.running import activity
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.running.health import cut
from posttrain_recipes.running.limits import Spending
from posttrain_recipes.running.reading import read_records
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.shown import redact
from posttrain_recipes.store import Measured, RunDirectory, StageRecord

if TYPE_CHECKING:
    from posttrain_recipes.tracking.runs import StageRun


Keep = Callable[[str, str | bytes], None]


@dataclass
class Evaluator:
    """Runs evals on the checkpoints of one run and caches their results."""

    directory: RunDirectory
    serving: Serving
    reporter: Reporter
    spending: Spending
    made: Callable[[str], Path]
    """Where the records that a stage made lie."""
    results: dict[tuple[str, str], EvalResult] = field(default_factory=dict)
    """By eval and weights."""
    _busy: dict[tuple[str, str], threading.Lock] = field(default_factory=dict)
    _promised: dict[tuple[str, str], tuple[str, Future[None]]] = field(default_factory=dict)
    """By eval and weights: the stage that finds it beside others, and the end of that."""

    @contextmanager
    def promised(self, stage: PlannedStage, checkpoint: Checkpoint) -> Iterator[None]:
        """Have stages that start from this checkpoint wait for what this one finds of it, until the
        context ends: it is measured once, and paid for where it was asked first."""
        keys = {(planned.fingerprint, _weights(checkpoint)) for planned in stage.evals}
        end: Future[None] = Future()
        for key in keys:
            self._promised[key] = stage.name, end
        try:
            yield
        finally:
            for key in keys:
                del self._promised[key]
            end.set_result(None)

    def _awaited(
        self, stage: PlannedStage, planned: PlannedEval, checkpoint: Checkpoint
    ) -> Future[None] | None:
        """The end of another stage's work that finds the same."""
        whose, end = self._promised.get((planned.fingerprint, _weights(checkpoint)), ("", None))
        return end if whose != stage.name else None

    def measure(
        self,
        stage: PlannedStage,
        kept: StageRecord,
        child: StageRun,
        when: Literal["before", "after"],
        checkpoint: Checkpoint,
        *,
        waits: bool = True,
    ) -> None:
        """Run those evals of the stage that `kept` has no result of yet; without `waits` up to the
        first one that another stage is at."""
        step = 0 if when == "before" else kept.total_steps
        for planned in stage.evals:
            done: list[Measured] = getattr(kept, when)
            if any(m.fingerprint == planned.fingerprint for m in done):
                continue
            if (end := self._awaited(stage, planned, checkpoint)) is not None:
                if not waits:
                    return
                self.serving.wait(end)
            result = self._of(stage, kept, child, planned, when, checkpoint)
            child.log_eval(
                planned.name,
                when,
                result,
                step,
                dataset=planned.data.label,
                dataset_digest=planned.data.digest,
                checkpoint_uri=checkpoint.sampler_uri,
            )
            child.log_samples(planned.name, when, result.samples, step)
            done.insert(_place(when, done), _measured(planned, result))
            self.directory.save()
            self.reporter.evaluated(stage, planned, when, result)

    def during(
        self,
        stage: PlannedStage,
        kept: StageRecord,
        child: StageRun,
        planned: PlannedEval,
        checkpoint: Checkpoint,
    ) -> None:
        """Run an eval of the stage on a checkpoint in the middle of its training."""
        when = step_name(checkpoint.step)
        result = self._of(stage, kept, child, planned, when, checkpoint)
        for found in kept.before:
            if found.fingerprint == planned.fingerprint:
                child.log_during(planned.name, EvalResult(found.metrics), 0)
        child.log_during(planned.name, result, checkpoint.step)
        child.log_samples(planned.name, when, result.samples, checkpoint.step)
        kept.during.append(replace(_measured(planned, result), step=checkpoint.step))
        self.directory.save()
        self.reporter.evaluated(stage, planned, f"step {checkpoint.step}", result)

    def _of(
        self,
        stage: PlannedStage,
        kept: StageRecord,
        child: StageRun,
        planned: PlannedEval,
        when: str,
        checkpoint: Checkpoint,
    ) -> EvalResult:
        """What an eval finds, kept beside the run, with a warning where replies were cut."""
        before = replace(kept.lost)
        # What comes to no end is made again by the next try: it is not an eval's cost.
        with self.spending.into(stage, kept, kept.lost):
            place = when if when in ("before", "after") else f"at step {checkpoint.step} of"
            what = f"{planned.name} {place} {stage.name}"
            folder = f"{planned.name}-{when}"
            keep = partial(self._file, stage, child, folder)
            result = self._result(planned, checkpoint, when, what, keep)
        kept.evaluation += kept.lost - before
        kept.lost = before
        scores.keep(self.directory, stage.name, planned.name, when, result)
        if stage.method is None and when == "after":
            return result  # the same as before, which was told
        limit = getattr(planned.eval.config, "max_tokens", None)
        if text := cut([sample.truncated for sample in result.samples], limit):
            text = f"{planned.name} {when}: {text}"
            kept.warnings.append(text)
            child.warn(text)
            self.reporter.warning(f"stage '{stage.name}', {text}")
        return result

    def _file(
        self, stage: PlannedStage, child: StageRun, folder: str, name: str, content: str | bytes
    ) -> None:
        """Keep a file that an eval left to look at."""
        path = store.artifacts_path(self.directory.path, stage.name) / folder / name
        store.write_atomic(path, redact(content) if isinstance(content, str) else content)
        child.write_file(path, f"artifacts/{folder}/{name}")

    def _result(
        self, planned: PlannedEval, checkpoint: Checkpoint, when: str, what: str, keep: Keep
    ) -> EvalResult:
        key = (planned.fingerprint, _weights(checkpoint))
        with self._busy.setdefault(key, threading.Lock()):  # another stage may be at it
            if key not in self.results:
                found = self._known(planned, checkpoint, what)
                self.results[key] = found or self._evaluate(planned, checkpoint, when, what, keep)
            return self.results[key]

    def _known(self, planned: PlannedEval, checkpoint: Checkpoint, what: str) -> EvalResult | None:
        """The result that the run has of the same weights and records: after the stage above, in an
        earlier try or, where that stage is reused, in an earlier run."""
        record, runs = self.directory.record, self.directory.path.parent
        for kept in record.stages:
            for when, uri, measured in _places(kept):
                if uri != _weights(checkpoint):
                    continue
                for found in measured:
                    if found.fingerprint != planned.fingerprint:
                        continue
                    by_record = scores.load(record, kept, found, when)
                    if kept.reused_from and not by_record:
                        continue  # an older run kept none, and a change is tested record by record
                    self.reporter.note(f"{what}: known from {when} {kept.name}")
                    run = runs / (kept.reused_from or record.id)
                    samples = tuple(store.load_samples(run, kept.name, found.name, when))
                    better, notes = found.higher_is_better, tuple(found.notes)
                    return EvalResult(
                        found.metrics, samples, better, by_record, notes, found.tested
                    )
        return None

    def _evaluate(
        self, planned: PlannedEval, checkpoint: Checkpoint, when: str, what: str, keep: Keep
    ) -> EvalResult:
        self.spending.check(f"evaluating {what}")
        self.reporter.evaluating(planned, when, what)
        if not planned.eval.takes and planned.renderer != AS_EVER:
            self.reporter.warning(
                f"eval {planned.name}: 'renderer:' is not applied to it; {planned.eval.suite} is "
                "asked by the model's own chat template"
            )
        sampler = self.serving.sampler(checkpoint)
        renderer = self.serving.renderer(checkpoint.base_model, planned.renderer)
        records = read_records(planned.data, planned.wants, renderer, self.made, planned.eval)
        if not records and planned.eval.takes:
            raise PtlError(
                f"eval '{planned.name}' has no records", why=planned.data.label, code="no-records"
            )
        context = EvalContext(
            name=planned.name,
            seed=planned.data.eval_seed,
            records=records,
            renderer=renderer,
            sampler=sampler,
            wait=self.serving.wait,
            resolve=lambda ref: self.serving.resolve(ref, checkpoint.base_model, planned.renderer),
            served=lambda: self.serving.served(checkpoint),
            artifact=keep,
            spent=self.spending.meter.count,
        )
        with activity.watched(f"evaluating {what}", self.reporter.sampling) as watch:
            return planned.eval.evaluate(replace(context, progress=watch.progress))


def step_name(step: int) -> str:
    """What an eval in the middle of a stage is called beside `before` and `after`."""
    return f"step-{step}"


def _place(when: str, done: Sequence[Measured]) -> int:
    """Where a result stands among others: of before, ahead of what the method measured itself,
    which may be there already where an eval was waited for."""
    own = [i for i, m in enumerate(done) if m.fingerprint.startswith(store.OWN)]
    return own[0] if own and when == "before" else len(done)


def _measured(planned: PlannedEval, result: EvalResult) -> Measured:
    return store.measured(
        planned.name, planned.eval.name, planned.fingerprint, planned.data.label, result
    )


def _places(kept: StageRecord) -> Iterator[tuple[str, str, Sequence[Measured]]]:
    """Where a stage was measured: when, on what weights, and what was found."""
    for when, weights in (("before", kept.start), ("after", kept.checkpoint)):
        if weights is not None:
            yield when, _weights(weights), getattr(kept, when)
    for saved in (kept.best, kept.resume):
        if saved is not None:
            found = [one for one in kept.during if one.step == saved.step]
            yield step_name(saved.step), saved.sampler_uri, found


def _weights(checkpoint: Checkpoint) -> str:
    """What tells weights from others, on one engine."""
    return checkpoint.sampler_uri or checkpoint.base_model
