"""A run in MLflow, with writes queued in order and retried, and how values are formatted for it."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from posttrain_recipes.records import Estimate, Messages, Sample
from posttrain_recipes.shown import cell, redact
from posttrain_recipes.tracking import mlstore
from posttrain_recipes.tracking.mlstore import MlflowStore

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

Write = Callable[["MlflowClient"], object]

PAUSE = 10
"""A store that failed slowly is left alone for so many times as long as that took: waiting for a
server that is down costs training a tenth of its time at most."""
MAX_PENDING = 1000
"""Failed writes that are kept for another try; beyond it the oldest are dropped and counted."""
ERROR = "ptl.error"
"""The tag that says why a run failed."""
NOTE = "mlflow.note.content"
"""The tag that is the Markdown at the top of a run's page."""

SOURCE = "mlflow.source.name"
"""The tag that MLflow shows in its list of runs, up to its last slash; metrics it shows there only
once their columns are chosen."""


class TrackingBackend(Protocol):
    """The tracker that a run is written to."""

    def store(self) -> MlflowStore | None:
        """The open store; None where it cannot be opened."""

    def report(self, what: str, error: BaseException | str) -> None:
        """Remember that `what` failed."""


class TrackedRun:
    """One run: begins or goes on when it is made, ends with `close`."""

    def __init__(
        self,
        tracker: TrackingBackend,
        name: str,
        tags: Mapping[str, Any],
        params: Mapping[str, Any],
        run_id: str | None,
    ) -> None:
        self.tracker = tracker
        self.name = name
        self.status = "RUNNING"
        self.experiment_id = ""
        self._client: MlflowClient | None = None
        self._lock = threading.RLock()
        self._pending: deque[tuple[str, Write]] = deque()
        self._lost = 0
        self._retry_at = 0.0
        self._logged_params: set[str] = set()
        self._last_step: dict[str, int] = {}
        """By metric: the last step that the store has or will be given."""
        self._at_start: dict[str, float] = {}
        """By metric: the value at step 0 of a run that is gone on with."""
        self._inputs: set[tuple[str, str, str]] = set()
        self._non_finite: list[str] = []
        self.run_id = self._begin(strings({**tags, **mlstore.owner_tags()}), run_id)
        """Empty when the store could not be reached: then nothing of this run is tracked."""
        self.log_params(params)

    # --- the run itself --------------------------------------------------------------------------

    def _begin(self, tags: dict[str, str], run_id: str | None) -> str:
        store = self.tracker.store()
        if store is None:
            return ""
        try:
            run = self._find(store.client, run_id) if run_id else None
            if run is not None:
                self._continue(store.client, run, tags)
            else:
                run = store.client.create_run(store.experiment_id, tags=tags, run_name=self.name)
        except Exception as error:
            self.tracker.report("begin a run, which stays untracked", error)
            return ""
        self._client = store.client
        self.experiment_id = str(run.info.experiment_id)
        return str(run.info.run_id)

    def _find(self, client: MlflowClient, run_id: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _continue(self, client: MlflowClient, run: Run, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        run_id = run.info.run_id
        self._logged_params = set(run.data.params)
        for key in run.data.metrics:
            history = client.get_metric_history(run_id, key)
            self._remember(key, {metric.step for metric in history})
            for metric in history:
                if metric.step == 0:
                    self._at_start[key] = metric.value
        # The new owner first: a run that is RUNNING under a dead process would be ended.
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        client.update_run(run_id, status="RUNNING")
        if ERROR in run.data.tags:
            client.delete_tag(run_id, ERROR)

    def url(self, base: str = "") -> str:
        """The page of this run, on the server in use or below `base`; else as a bare path."""
        configured = mlstore.configured_uri() or ""
        if not base and mlstore.is_remote(configured):
            base = redact(configured)
        # Without the query MLflow opens its page for agents, which has no charts.
        path = f"/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"{base.rstrip('/')}{path}?workflowType=machine_learning"

    def close(self, status: str, error: BaseException | None = None) -> None:
        """End the run with what is still to be written."""
        self.status = status
        if error is not None:
            self.set_tags({ERROR: f"{type(error).__name__}: {error}"})
        self._retry_at = 0.0
        self.flush()
        self.write("end a run", lambda client: client.set_terminated(self.run_id, status))
        lost = self._lost + len(self._pending)
        if lost:
            self.tracker.report(f"write {lost} records of {self.name}", "they are lost")

    # --- writing ---------------------------------------------------------------------------------

    def write(self, what: str, call: Write) -> None:
        """Do `call` in its turn: now, or at a later flush if the store fails now."""
        if self._client is None:
            return
        with self._lock:
            self._pending.append((what, call))
            if len(self._pending) > MAX_PENDING:
                self._pending.popleft()
                self._lost += 1
            self._drain()

    def flush(self) -> None:
        """Write everything that waits, unless the store failed just now."""
        with self._lock:
            self._drain()

    def _drain(self) -> None:
        if self._client is None or time.monotonic() < self._retry_at:
            return
        while self._pending:
            what, call = self._pending[0]
            began = time.monotonic()
            try:
                call(self._client)
            except Exception as error:
                now = time.monotonic()
                self.tracker.report(what, error)
                if getattr(error, "error_code", None) != "INVALID_PARAMETER_VALUE":
                    if now - began > 0.5:
                        self._retry_at = now + PAUSE * (now - began)
                    return
                self._lost += 1
            self._pending.popleft()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, dotted where nested; MLflow lets none change, so known ones are kept."""
        new = {
            key: value
            for key, value in strings(dict(flatten(params))).items()
            if key not in self._logged_params
        }
        self._logged_params |= set(new)
        items = [(key, value[:6000]) for key, value in new.items()]

        def write(client: MlflowClient) -> None:
            from mlflow.entities import Param

            for start in range(0, len(items), 100):
                part = [Param(key, value) for key, value in items[start : start + 100]]
                client.log_batch(self.run_id, params=part)

        if items:
            self.write("log parameters", write)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        texts = strings(tags)

        def write(client: MlflowClient) -> None:
            for key, value in texts.items():
                client.set_tag(self.run_id, key, value)

        self.write("set tags", write)

    def _remember(self, key: str, steps: set[int]) -> None:
        """The store has this metric at these steps."""
        self._last_step[key] = max(steps)

    def is_new(self, key: str, step: int) -> bool:
        """Whether the store has yet to get this metric at `step`; asked once for each."""
        if step <= self._last_step.get(key, step - 1):
            return False
        self._last_step[key] = step
        return True

    def metric(self, key: str, value: float, step: int, **ties: Any) -> list[Metric]:
        """The metric as MLflow takes it, as a list: empty when it is not finite."""
        if not self.run_id:
            return []
        from mlflow.entities import Metric

        value = float(value)
        if math.isfinite(value):
            return [Metric(key, value, int(time.time() * 1000), step, **ties)]
        # A chart shows a gap, which tells nobody that the loss went to infinity.
        if len(self._non_finite) < 20:
            self._non_finite.append(f"{key} = {value} at step {step}")
            self.set_tags({"non_finite": "; ".join(self._non_finite)})
        return []

    def write_metrics(self, metrics: Sequence[Metric]) -> None:
        """Log metrics in as few calls as MLflow allows."""

        def write(client: MlflowClient, part: Sequence[Metric]) -> None:
            client.log_batch(self.run_id, metrics=part)

        for start in range(0, len(metrics), 1000):
            self.write("log metrics", partial(write, part=metrics[start : start + 1000]))

    def write_input(self, dataset: DatasetInput, context: str) -> None:
        """Log a dataset, once."""
        known = (dataset.dataset.name, dataset.dataset.digest, context)
        if known not in self._inputs:
            self._inputs.add(known)
            self.write("log a dataset", lambda client: client.log_inputs(self.run_id, [dataset]))

    def write_text(self, text: str, path: str) -> None:
        """Log a text file."""
        text = redact(text)
        self.write(f"log {path}", lambda client: client.log_text(self.run_id, text, path))

    def write_file(self, file: Path, path: str) -> None:
        """Log a file as it is, into the folder that `path` ends in."""
        folder = str(PurePosixPath(path).parent)
        self.write(f"log {path}", lambda client: client.log_artifact(self.run_id, file, folder))


# --- how things look -----------------------------------------------------------------------------


def metric_name(name: str) -> str:
    """`name` as MLflow takes it for a metric or a parameter: `pass@8` becomes `pass_at_8`."""
    name = re.sub(r"[^\w/.\- ]", "_", name.replace("@", "_at_"))
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:250].rstrip("/") or "_"


def strings(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags or parameters as MLflow takes them: text, without secrets."""
    return {metric_name(key): redact(_text(value))[:8000] for key, value in values.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings with dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def dataset_input(
    name: str,
    path_or_uri: str,
    digest: str | None,
    split: str | None,
    revision: str | None,
    context: str,
    count: int | None,
) -> DatasetInput:
    """A dataset as MLflow shows it, with a link where it is on the web."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if path_or_uri.startswith(("http://", "https://")):
        kind, source = "http", {"url": redact(path_or_uri)}
    elif re.fullmatch(r"(hf://)?[\w.-]+/[\w.-]+", path_or_uri) and not Path(path_or_uri).exists():
        kind = "hugging_face"
        source = {"path": path_or_uri.removeprefix("hf://"), "split": split or ""}
    else:
        kind, source = "local", {"uri": path_or_uri}
    if revision:
        source["revision"] = revision
    tags = [InputTag("mlflow.data.context", context)]
    if split:
        tags.append(InputTag("split", split))
    return DatasetInput(
        Dataset(
            name=name[:500],
            digest=short_digest(digest),
            source_type=kind,
            source=json.dumps(source),
            profile=json.dumps({"num_rows": count}) if count is not None else None,
        ),
        tags,
    )


def short_digest(digest: str | None) -> str:
    """A digest of a length that people read; MLflow takes 36 characters at most."""
    return (digest or "unknown").removeprefix("sha256:")[:12]


def results_table(results: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Estimates before and after a stage as a Markdown table."""
    rows = ["| eval | before | after |", "| --- | --- | --- |"]
    for name, found in results.items():
        cells = [_estimate(found[when]) if when in found else "" for when in ("before", "after")]
        rows.append(f"| {cell(name)} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def results_line(results: Mapping[str, Sequence[float]]) -> str:
    """Values, one or before and after, in one line for a list of runs: `qa accuracy 0.1 → 0.9`.

    Without slashes, up to the last of which MLflow cuts what it shows.
    """
    told = []
    for name, values in results.items():
        shown = " → ".join(f"{value:.3g}" for value in values)
        told.append(f"{name.replace('/', ' ')} {shown}")
    return "; ".join(told)


def _estimate(found: Estimate) -> str:
    """A value with its interval; without one that is not known, as that of a single record."""
    value = f"**{found.value:.3g}**"
    return value if math.isnan(found.low) else f"{value} [{found.low:.3g}, {found.high:.3g}]"


def samples_table(samples: Iterable[Sample]) -> str:
    """Prompts and replies as a Markdown table."""
    samples = list(samples)
    scores = sorted({score for sample in samples for score in sample.scores})
    expected = any(sample.answer is not None for sample in samples)
    head = ["Prompt", "Reply", *(["Expected"] if expected else []), *map(cell, scores)]
    rows = [head, ["---"] * len(head)]
    for sample in samples:
        cut = " *(cut at the token limit)*" if sample.truncated else ""
        row = [_cell(last_words(sample.prompt)), _cell(sample.completion) + cut]
        if expected:
            row.append(_cell(sample.answer or ""))
        rows.append(
            row + [f"{sample.scores[name]:.3g}" if name in sample.scores else "" for name in scores]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def last_words(messages: Messages) -> str:
    """The last message of a prompt."""
    return messages[-1].content if messages else ""


def _cell(text: str) -> str:
    return cell(text, 600)


def write_trace(
    experiment_id: str,
    run_id: str,
    title: str,
    tags: Mapping[str, str],
    sample: Sample,
    model_id: str | None,
) -> str:
    """A sample as a trace of a run, with its scores as feedback; returns the trace's id."""
    import mlflow
    from mlflow.entities import AssessmentSource, SpanType
    from mlflow.entities.trace_location import MlflowExperimentLocation

    source = AssessmentSource(source_type="CODE", source_id="posttrain_recipes")
    place = MlflowExperimentLocation(experiment_id)
    with mlflow.start_span(
        title, span_type=SpanType.CHAT_MODEL, trace_destination=place, run_id=run_id
    ) as span:
        messages = [message.as_dict() for message in sample.prompt]
        span.set_inputs({"messages": messages})
        span.set_outputs({"role": "assistant", "content": sample.completion})
        mlflow.update_current_trace(
            tags=dict(tags),
            request_preview=last_words(sample.prompt),
            response_preview=sample.completion,
            model_id=model_id,
        )
        for name, value in sample.scores.items():
            mlflow.log_feedback(
                trace_id=span.trace_id, name=name, value=float(value), source=source
            )
        if sample.answer is not None:
            mlflow.log_expectation(
                trace_id=span.trace_id, name="expected", value=sample.answer, source=source
            )
    return str(span.trace_id)
