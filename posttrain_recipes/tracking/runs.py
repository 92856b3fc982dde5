"""What is logged to MLflow: a run for the recipe, with a nested run for each stage."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from posttrain_recipes.records import Estimate, EvalResult, Sample
from posttrain_recipes.tracking.delivery import Deliveries, ended
from posttrain_recipes.tracking.evaluations import EVALUATED, GROUP, EvaluationGroup, EvaluationRun
from posttrain_recipes.tracking.mlruns import (
    NOTE,
    SOURCE,
    TrackedRun,
    TrackingBackend,
    dataset_input,
    flatten,
    metric_name,
    results_line,
    results_table,
    samples_table,
    short_digest,
    write_trace,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

FLUSH_STEPS = 10
"""Metrics are written when this many steps wait, as one batch: 3.5 times faster than singly."""
FLUSH_SECONDS = 5.0
"""Metrics are also written when the last write is this long ago."""
MAX_TRACES = 32
"""Samples of one evaluation that are shown as traces, at 25 ms each."""


class RecipeRun(TrackedRun):
    """The run of a whole recipe, the parent of its stages' runs."""

    def __init__(
        self,
        tracker: TrackingBackend,
        recipe: str,
        name: str,
        tags: Mapping[str, Any],
        params: Mapping[str, Any],
        run_id: str | None,
        description: str | None,
        told: Deliveries | None = None,
    ) -> None:
        self.recipe = recipe
        self.told = told or Deliveries()
        """The trackers of the recipe. They hear first, and also where MLflow's store fails."""
        self.description = (description or "").strip()
        self.models: dict[str, str] = {}
        """URI of a checkpoint, or of its sampler -> the id of the model that MLflow shows it as."""
        self.stage_status: dict[str, str] = {}
        self._results: dict[str, dict[int, float]] = {}
        """By eval and metric, and by how many stages were done: what was found."""
        self._group: EvaluationGroup | None = None
        self._known_group: str | None = None
        """Its id, of an earlier try."""
        # Up to a second an evaluation that training need not wait for.
        self.trace_writer = ThreadPoolExecutor(1, "traces")
        self._there: dict[str, set[int]] = {}
        """By metric: where the store has it or will be given it. Stages end in any order."""
        source = {SOURCE: f"ptl run {recipe}", "ptl.recipe": recipe}
        super().__init__(tracker, name, {**source, **tags}, params, run_id)
        self.summary("")

    @contextmanager
    def stage(
        self,
        *,
        name: str,
        index: int,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> Iterator[StageRun]:
        """The run of a stage; `index` counts from 1. Its parameters show on the recipe's run too,
        because rows start collapsed."""
        stage = StageRun(self, name, index, tags or {}, params or {}, run_id)
        self.log_params({f"{name}/{key}": value for key, value in flatten(params or {})})
        try:
            with closing(stage):
                yield stage
        finally:
            self.stage_status[name] = stage.status

    def _continue(self, client: MlflowClient, run: Run, tags: dict[str, str]) -> None:
        super()._continue(client, run, tags)
        self._known_group = run.data.tags.get(GROUP)

    def evaluations(self) -> EvaluationGroup | None:
        """The run over what is measured before and after stages; None where there cannot be one."""
        with self._lock:
            if self._group is None and self.run_id:
                known = self._known_group
                made = EvaluationGroup(self.tracker, self.recipe, self.name, self.run_id, known)
                if made.run_id:
                    self._group = made
                    self.set_tags({GROUP: made.run_id})
            return self._group

    def _remember(self, key: str, steps: set[int]) -> None:
        self._there[key] = steps

    def is_new(self, key: str, step: int) -> bool:
        """Whether the store has yet to get this metric at `step`; asked once for each."""
        there = self._there.setdefault(key, set())
        new = step not in there
        there.add(step)
        return new

    def found(self, values: Mapping[str, float], stages_done: int) -> None:
        """Put results into the list of runs: from the first that is known to the last."""
        with self._lock:
            told = {}
            for key, value in values.items():
                self._results.setdefault(key, {})[stages_done] = value
            for key, known in self._results.items():
                known = {**known}
                if f"eval/{key}" in self._at_start:
                    known[0] = self._at_start[f"eval/{key}"]
                told[key] = [known[at] for at in dict.fromkeys((min(known), max(known)))]
            self.set_tags({SOURCE: results_line(told)})

    def summary(self, markdown: str) -> None:
        """What the run's page says at its top: `markdown` (results), then the description."""
        # The page folds after about three lines, so the description must not come first.
        text = "\n\n".join(part for part in (markdown.strip(), self.description) if part)
        if text:
            self.set_tags({NOTE: text})

    def close(self, status: str, error: BaseException | None = None) -> None:
        """End the run; it failed if a stage did and was not repeated with success."""
        if status == "FINISHED" and "FAILED" in self.stage_status.values():
            status = "FAILED"
        self.told.run_ended(ended(status), error)
        self.trace_writer.shutdown(cancel_futures=status == "KILLED")
        super().close(status, error)


class StageRun(TrackedRun):
    """The run of one stage."""

    def __init__(
        self,
        parent: RecipeRun,
        name: str,
        index: int,
        tags: Mapping[str, Any],
        params: Mapping[str, Any],
        run_id: str | None,
    ) -> None:
        self.parent = parent
        self.told = parent.told.stage(name, index, params)
        self.stage = name
        self.index = index
        self._metrics: list[Metric] = []
        self._steps: set[int] = set()
        self._written = time.monotonic()
        self._results: dict[str, dict[str, Estimate]] = {}
        """By eval and metric: what it was before and after."""
        self._notes: list[str] = []
        self._evaluated: dict[tuple[str, str], str | None] = {}
        """By eval and when: the model that was evaluated."""
        self._evaluations: dict[str, EvaluationRun] = {}
        """`before` and `after`: the runs with what was measured then."""
        self._known_evaluations: dict[str, str] = {}
        """Their ids, of an earlier try."""
        labels = {
            SOURCE: f"ptl run {parent.recipe}",
            "mlflow.parentRunId": parent.run_id,
            "ptl.recipe": parent.recipe,
            "ptl.stage": name,
        }
        full_name = f"{parent.name}/{index}-{name}"
        super().__init__(parent.tracker, full_name, {**labels, **tags}, params, run_id)

    def _begin(self, tags: dict[str, str], run_id: str | None) -> str:
        # Without its parent a stage would stand in the list as a run of its own.
        return super()._begin(tags, run_id) if self.parent.run_id else ""

    def _continue(self, client: MlflowClient, run: Run, tags: dict[str, str]) -> None:
        super()._continue(client, run, tags)
        tags_there = run.data.tags
        known = {when: tags_there.get(tag) for when, tag in EVALUATED.items()}
        self._known_evaluations = {when: found for when, found in known.items() if found}
        for output in (run.outputs.model_outputs or ()) if run.outputs else ():
            self._know(output.model_id, client.get_logged_model(output.model_id).params or {})
        for key, value in self._at_start.items():
            section, _, name = key.partition("/")
            if section == "eval":
                bounds = (
                    self._at_start.get(f"uncertainty/{name}_{end}") for end in ("low", "high")
                )
                low, high = (value if bound is None else bound for bound in bounds)
                self._results[name] = {"before": Estimate(value, low, high, 0)}

    def _know(self, model_id: str, params: Mapping[str, str]) -> None:
        for key in ("checkpoint_uri", "sampler_uri"):
            if params.get(key):
                self.parent.models[params[key]] = model_id

    def close(self, status: str, error: BaseException | None = None) -> None:
        """End the stage's run."""
        self.told.ended(ended(status))
        super().close(status, error)

    def flush(self) -> None:
        """Write everything that waits, buffered metrics included."""
        with self._lock:
            self._write_buffer()
            super().flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of a step; written in batches. Steps that the store already has are skipped."""
        self.told.log_metrics(metrics, step)
        if not self.run_id:
            return
        with self._lock:
            for name, value in metrics.items():
                key = metric_name(name)
                # Logged twice after a resume, a step would zigzag in the charts.
                if self.is_new(key, step):
                    self._metrics += self.metric(key, value, step)
            self._steps.add(step)
            waited = time.monotonic() - self._written
            if len(self._steps) >= FLUSH_STEPS or waited >= FLUSH_SECONDS:
                self._write_buffer()

    def _write_buffer(self) -> None:
        metrics, self._metrics = self._metrics, []
        self._steps.clear()
        self._written = time.monotonic()
        self.write_metrics(metrics)

    def log_dataset(
        self,
        name: str,
        path_or_uri: str,
        digest: str | None,
        split: str | None = None,
        revision: str | None = None,
        context: str = "train",
        count: int | None = None,
    ) -> None:
        """What the stage reads: a local path, a URL or the id of a Hugging Face dataset."""
        if self.run_id:
            data = dataset_input(name, path_or_uri, digest, split, revision, context, count)
            self.write_input(data, context)
            self.parent.write_input(data, context)

    def log_checkpoint(self, uri: str, sampler_uri: str | None, step: int) -> None:
        """A checkpoint, as a model that the run put out; what came before is written first."""
        self.told.log_checkpoint(uri, sampler_uri, step)
        self.flush()
        name = re.sub(r"[/:.%\"'\s]", "-", f"{self.parent.recipe}-{self.stage}-step-{step}")
        params = {"checkpoint_uri": uri, "sampler_uri": sampler_uri or "", "step": str(step)}
        created: list[str] = []

        def write(client: MlflowClient) -> None:
            import mlflow
            from mlflow.entities import LoggedModelOutput

            if uri in self.parent.models:
                return
            # A second try must not make a second model.
            if not created:
                model = mlflow.create_external_model(
                    name,
                    self.run_id,
                    tags={"mlflow.source.name": f"ptl run {self.parent.recipe}"},
                    params=params,
                    experiment_id=self.experiment_id,
                )
                created.append(model.model_id)
            # The recipe's run names them too: its stages' rows start collapsed.
            for run in (self, self.parent):
                client.log_outputs(run.run_id, [LoggedModelOutput(created[0], step)])
            self._know(created[0], params)

        self.write("log a checkpoint", write)

    def log_eval(
        self,
        name: str,
        when: str,
        result: EvalResult,
        step: int,
        dataset: str | None = None,
        dataset_digest: str | None = None,
        checkpoint_uri: str | None = None,
    ) -> None:
        """What an eval found `before` or `after` the stage, with its interval; on the recipe too.

        `dataset` is a path, a URL or the id of one of the hub, `checkpoint_uri` that of the
        checkpoint or of its sampler.
        """
        self.told.log_eval(name, when, result, step)
        if not self.run_id:
            return
        for text in result.notes:
            self._put(f"{name}: {text}")
        model_id = self._evaluated[name, when] = self.parent.models.get(checkpoint_uri or "")
        ties: dict[str, Any] = {"model_id": model_id}
        data = None
        if dataset and dataset_digest:
            name_of = Path(dataset).name
            ties |= {"dataset_name": name_of, "dataset_digest": short_digest(dataset_digest)}
            data = dataset_input(name_of, dataset, dataset_digest, None, None, "eval", None)
        metrics: list[Metric] = []
        mirrored: list[Metric] = []
        found_now: dict[str, float] = {}
        stages_done = self.index if when == "after" else self.index - 1
        for metric, estimate in result.metrics.items():
            key = metric_name(f"{name}/{metric}")
            self._results.setdefault(key, {})[when] = estimate
            values = {
                f"eval/{key}": estimate.value,
                # A section that sorts last: beside the value they would crowd out what matters.
                f"uncertainty/{key}_low": estimate.low,
                f"uncertainty/{key}_high": estimate.high,
            }
            for full, value in values.items():
                if self.is_new(full, step):
                    metrics += self.metric(full, value, step, **ties)
            # Over the stages a line that starts at the base model, and each stage's own numbers.
            for full, at in (
                (f"eval/{key}", stages_done),
                (f"stages/{metric_name(self.stage)}/{key}_{when}", 0),
            ):
                if self.parent.is_new(full, at):
                    mirrored += self.parent.metric(full, estimate.value, at)
            found_now[key] = estimate.value
        self.parent.found(found_now, stages_done)
        if evaluation := self._evaluation(when):
            evaluation.log_result(found_now, step, model_id, data)
        told = {
            key: [found[one].value for one in ("before", "after") if one in found]
            for key, found in self._results.items()
        }
        self.set_tags({SOURCE: results_line(told)})
        self.flush()
        self.write_metrics(metrics)
        self._show_results()
        self.parent.write_metrics(mirrored)

    def log_during(self, name: str, result: EvalResult, step: int) -> None:
        """What an eval found in the middle of the stage: a curve beside those of its training."""
        self.told.log_during(name, result, step)
        if not self.run_id:
            return
        metrics: list[Metric] = []
        for metric, estimate in result.metrics.items():
            full = f"during/{metric_name(f'{name}/{metric}')}"
            if self.is_new(full, step):
                metrics += self.metric(full, estimate.value, step)
        self.flush()
        self.write_metrics(metrics)

    def warn(self, text: str) -> None:
        """Put a warning at the top of the run's page."""
        self.told.warn(text)
        self._put(f"**warning:** {text}")

    def note(self, text: str) -> None:
        """Put a sentence at the top of the run's page."""
        self.told.note(text)
        self._put(text)

    def _put(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
        self._show_results()

    def _show_results(self) -> None:
        """Put warnings and results on the run's page, and where to read replies of before and
        after."""
        note = "".join(f"{text}\n\n" for text in self._notes)
        note += results_table(self._results)
        ids = self._known_evaluations | {k: run.run_id for k, run in self._evaluations.items()}
        if "before" in ids and "after" in ids:
            compare = self.url().replace(
                f"{self.run_id}?", f"{ids['after']}/traces?compareToRunUuid={ids['before']}&"
            )
            note += f"\n[Replies before and after, side by side]({compare.lstrip('/')})\n"
        self.set_tags({NOTE: note})

    def log_samples(
        self,
        name: str,
        when: str,
        samples: Sequence[Sample],
        step: int,
    ) -> None:
        """Prompts and replies, to read and compare: as traces and as a Markdown table.

        MLflow sets the traces of two runs side by side: one has those of before, one of after.
        """
        self.told.log_samples(name, when, samples, step)
        if not self.run_id or not samples:
            return
        self.write_text(samples_table(samples), f"samples/{metric_name(name)}-{when}.md")
        if when not in ("before", "after"):
            return  # traces are to compare these two
        if self._pending:
            # mlflow itself keeps quiet about traces that it drops.
            self.tracker.report("log traces", "the store does not answer")
            return
        evaluation = self._evaluation(when)
        if evaluation is None:
            return
        model_id = self._evaluated.get((name, when))
        tags = {"eval": name, "when": when, "stage": self.stage, "step": str(step)}
        title = f"{name} {when}"
        self.parent.trace_writer.submit(
            self._write_traces, evaluation.run_id, title, tags, samples[:MAX_TRACES], model_id
        )

    def _evaluation(self, when: str) -> EvaluationRun | None:
        """The run with what was measured `before` or `after`; None where there cannot be one."""
        if when not in self._evaluations and when in EVALUATED:
            group = self.parent.evaluations()
            if group is None:
                return None
            known = self._known_evaluations.get(when)
            made = EvaluationRun(group, self.parent.recipe, self.stage, self.name, when, known)
            if not made.run_id:
                return None
            self._evaluations[when] = made
            self.set_tags({EVALUATED[when]: made.run_id})
        return self._evaluations.get(when)

    def show_samples(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """What the policy did at a step, as traces and as a Markdown table with its scores."""
        self.told.show_samples(name, samples, step)
        if not self.run_id or not samples:
            return
        self.write_text(samples_table(samples), f"{metric_name(name)}/step-{step:06d}.md")
        if self._pending:
            return
        tags = {"shows": name, "stage": self.stage, "step": str(step)}
        title = f"{name} step {step}"
        self.parent.trace_writer.submit(
            self._write_traces, self.run_id, title, tags, samples[:MAX_TRACES], None
        )

    def _write_traces(
        self,
        run_id: str,
        title: str,
        tags: Mapping[str, str],
        samples: Sequence[Sample],
        model_id: str | None,
    ) -> None:
        try:
            for sample in samples:
                last = write_trace(self.experiment_id, run_id, title, tags, sample, model_id)
            if self._client is not None:
                # Raises if it did not arrive.
                self._client.get_trace(last, display=False)
        except Exception as error:
            self.tracker.report("log traces", error)


RunT = TypeVar("RunT", bound=TrackedRun)


@contextmanager
def closing(run: RunT) -> Iterator[RunT]:
    """Ends `run` with the status that its end deserves: MLflow itself calls them all finished."""
    try:
        yield run
    except Exception as error:
        run.close("FAILED", error)
        raise
    except BaseException:
        run.close("KILLED")
        raise
    run.close("FINISHED")
