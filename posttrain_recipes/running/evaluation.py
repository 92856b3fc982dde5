"""Runs evals on checkpoints, each only once per checkpoint, however many stages need it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from posttrain_recipes import store
from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning.plans import PlannedEval, PlannedStage
from posttrain_recipes.plugin import Checkpoint, EvalContext, EvalResult
from posttrain_recipes.reporting import scores
from posttrain_recipes.running import activity
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.running.health import cut
from posttrain_recipes.running.limits import Spending
from posttrain_recipes.running.reading import read_records
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.store import Measured, RunDirectory, StageRecord

if TYPE_CHECKING:
    from posttrain_recipes.tracking.runs import StageRun


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

    def measure(
        self,
        stage: PlannedStage,
        kept: StageRecord,
        child: StageRun,
        when: Literal["before", "after"],
        checkpoint: Checkpoint,
    ) -> None:
        """Run those evals of the stage that `kept` has no result of yet."""
        done: list[Measured] = getattr(kept, when)
        step = 0 if when == "before" else kept.total_steps
        for planned in stage.evals:
            if any(m.fingerprint == planned.fingerprint for m in done):
                continue
            what = f"{planned.name} {when} {stage.name}"
            before = replace(kept.lost)
            # What comes to no end is made again by the next try: it is not an eval's cost.
            with self.spending.into(stage, kept, kept.lost):
                result = self._result(planned, checkpoint, what)
            kept.evaluation += kept.lost - before
            kept.lost = before
            scores.keep(self.directory, stage.name, planned.name, when, result)
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
            limit = getattr(planned.eval.config, "max_tokens", None)
            if text := cut([sample.truncated for sample in result.samples], limit):
                text = f"{planned.name} {when}: {text}"
                kept.warnings.append(text)
                child.warn(text)
                self.reporter.warning(f"stage '{stage.name}', {text}")
            self.directory.save()
            self.reporter.evaluated(stage, planned, when, result)

    def _result(self, planned: PlannedEval, checkpoint: Checkpoint, what: str) -> EvalResult:
        key = (planned.fingerprint, _weights(checkpoint))
        with self._busy.setdefault(key, threading.Lock()):  # another stage may be at it
            if key not in self.results:
                found = self._known(planned, checkpoint, what)
                self.results[key] = found or self._evaluate(planned, checkpoint, what)
            return self.results[key]

    def _known(self, planned: PlannedEval, checkpoint: Checkpoint, what: str) -> EvalResult | None:
        """The result that the run has of the same weights and records: after the stage above, in an
        earlier try or, where that stage is reused, in an earlier run."""
        record, runs = self.directory.record, self.directory.path.parent
        for kept in record.stages:
            for when, weights in (("before", kept.start), ("after", kept.checkpoint)):
                if weights is None or _weights(weights) != _weights(checkpoint):
                    continue
                for found in getattr(kept, when):
                    if found.fingerprint != planned.fingerprint:
                        continue
                    by_record = scores.load(record, kept, found, when)
                    if kept.reused_from and not by_record:
                        continue  # an older run kept none, and a change is tested record by record
                    self.reporter.doing(f"{what}: known from {when} {kept.name}")
                    run = runs / (kept.reused_from or record.id)
                    samples = tuple(store.load_samples(run, kept.name, found.name, when))
                    return EvalResult(found.metrics, samples, found.higher_is_better, by_record)
        return None

    def _evaluate(self, planned: PlannedEval, checkpoint: Checkpoint, what: str) -> EvalResult:
        self.spending.check(f"evaluating {what}")
        self.reporter.doing(f"evaluating {what}")
        sampler = self.serving.sampler(checkpoint)
        renderer = self.serving.renderer(checkpoint.base_model, planned.renderer)
        records = read_records(planned.data, planned.wants, renderer, self.made, planned.eval)
        if not records:
            raise PtlError(f"eval '{planned.name}' has no records", why=planned.data.label)
        context = EvalContext(
            name=planned.name,
            seed=planned.data.eval_seed,
            records=records,
            renderer=renderer,
            sampler=sampler,
            wait=self.serving.wait,
            resolve=lambda ref: self.serving.resolve(ref, checkpoint.base_model, planned.renderer),
        )
        with activity.watched(f"evaluating {what}", self.reporter.sampling) as watch:
            return planned.eval.evaluate(replace(context, progress=watch.progress))


def _weights(checkpoint: Checkpoint) -> str:
    """What tells weights from others, on one engine."""
    return checkpoint.sampler_uri or checkpoint.base_model
