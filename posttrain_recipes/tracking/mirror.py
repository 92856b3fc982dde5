"""Copies runs from the local MLflow store to a tracking server, whenever that can be reached.

Runs are written to the store of this machine, which is always there; a thread copies what is new
to the server. So a server that is slow or down holds up no training and loses nothing: what it
lacks stays on disk, and the thread, a later run or `ptl sync` brings it there. What was copied is
remembered beside the run, in `mirror.json`; a run is found again on the server by a tag, so that a
crash between the two makes no second one.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes import private
from posttrain_recipes.shown import redact
from posttrain_recipes.store import write_atomic
from posttrain_recipes.tracking import mlstore
from posttrain_recipes.tracking.evaluations import EVALUATED, GROUP

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Run

WANTED = "ptl.mirror"
"""Local runs: the server that they are copied to."""
COPIED = "ptl.mirrored"
"""Local runs: the server that has all of them."""
ORIGIN = "ptl.local_run"
"""Runs on the server: the local run that they are of."""
EVERY_SECONDS = 5.0
SHARE = 20
"""A pass is followed by a pause of so many times as long as it took: 5% of one core at most."""
LAST_SECONDS = 30.0
"""How long the end of a run waits for a server that answers."""
ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass
class Copied:
    """How much of one run the server has."""

    remote: str
    metrics: dict[str, int] = field(default_factory=dict)
    """By metric: how many points."""
    tags: str = ""
    params: int = 0
    inputs: int = 0
    models: list[str] = field(default_factory=list)
    """Local ones that it put out or, of an evaluation, that it measured."""
    files: dict[str, list[int]] = field(default_factory=dict)
    """By path: size and time of change."""
    traces: list[str] = field(default_factory=list)
    status: str = ""


@dataclass
class Memory:
    """What the server has of a recipe's run and of its stages' runs: `mirror.json`."""

    path: Path
    uri: str
    runs: dict[str, Copied] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    """Local model -> the server's."""

    @classmethod
    def read(cls, path: Path, uri: str) -> Memory:
        """What is remembered; nothing where it is of another server or cannot be read."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["uri"] == uri:
                runs = {name: Copied(**found) for name, found in data["runs"].items()}
                return cls(path, uri, runs, data["models"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return cls(path, uri)

    def save(self) -> None:
        """Remember it."""
        runs = {name: vars(found) for name, found in self.runs.items()}
        data = {"uri": self.uri, "runs": runs, "models": self.models}
        write_atomic(self.path, json.dumps(data, indent=1))


class Mirror:
    """Copies the runs of one machine to one server."""

    def __init__(self, home: Path, uri: str) -> None:
        """`uri` may hold a password, which is neither shown nor stored."""
        self.home = home
        self.uri = uri
        self.shown = redact(uri)

    def open(self) -> None:
        """Connect to both. Raises what mlflow raises where the server does not answer."""
        mlstore.make_quiet()
        from mlflow import MlflowClient

        self.local: MlflowClient = MlflowClient(mlstore.local_uri(self.home))
        self.remote: MlflowClient = MlflowClient(self.uri)
        self.experiment = mlstore.experiment_id(self.remote, mlstore.EXPERIMENT, None)

    def pending(self) -> list[Run]:
        """Recipes' runs that are meant for the server, and that it may not have all of."""
        found = []
        experiments = [e.experiment_id for e in self.local.search_experiments()]
        where = f"tags.`{WANTED}` = '{self.shown}'"
        token: str | None = None
        while True:
            page = self.local.search_runs(experiments, where, max_results=1000, page_token=token)
            found += [run for run in page if run.data.tags.get(COPIED) != self.shown]
            token = page.token
            if not token:
                return found

    def copy(self, parent: Run) -> bool:
        """Bring the server up to date on a recipe's run; whether it then has all of an ended one.

        Raises what mlflow raises; what was copied until then is remembered.
        """
        folder = self.home / "runs" / parent.data.tags.get("ptl.run", parent.info.run_id)
        with private.files():
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / "mirror.lock").open("w")
        with file as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Another process is at it.
                return False
            return self._copy_family(parent, folder)

    def _copy_family(self, parent: Run, folder: Path) -> bool:
        memory = Memory.read(folder / "mirror.json", self.shown)
        experiment = parent.info.experiment_id
        where = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        stages = list(self.local.search_runs([experiment], where, max_results=1000))
        # What was measured before and after stages has runs of its own, below one over them all.
        tags = [parent.data.tags, *(stage.data.tags for stage in stages)]
        named = [own[tag] for own in tags for tag in (GROUP, *EVALUATED.values()) if tag in own]
        others = [*stages, *map(self.local.get_run, named)]
        family = [parent, *sorted(others, key=lambda run: run.info.start_time)]
        try:
            for run in family:
                self._begin(run, memory)
            for run in family:
                self._models(run, memory)
            ties = dict(self._ties(family, memory))
            for run in family:
                self._copy_one(run, memory, ties)
            # Last, since they are the most and the least.
            for run in family:
                self._traces(run, memory)
        finally:
            memory.save()
        done = all(run.info.status in ENDED for run in family)
        if done:
            self.local.set_tag(parent.info.run_id, COPIED, self.shown)
        return done

    # --- one run ---------------------------------------------------------------------------------

    def _begin(self, run: Run, memory: Memory) -> None:
        local = run.info.run_id
        if local in memory.runs:
            return
        known = self.remote.search_runs([self.experiment], f"tags.`{ORIGIN}` = '{local}'")
        if known:
            memory.runs[local] = Copied(known[0].info.run_id)
        else:
            tags = {ORIGIN: local}
            for name in ("mlflow.parentRunId", "mlflow.user", "mlflow.source.name"):
                if name in run.data.tags:
                    tags[name] = self._translated(run.data.tags[name], memory)
            name = run.info.run_name
            made = self.remote.create_run(self.experiment, run.info.start_time, tags, name)
            memory.runs[local] = Copied(made.info.run_id)
        memory.save()

    def _translated(self, text: str, memory: Memory) -> str:
        """With the server's ids in place of the local ones."""
        for local, copied in memory.runs.items():
            text = text.replace(local, copied.remote)
        return text

    def _copy_one(self, run: Run, memory: Memory, ties: dict[tuple[str, str, int], Any]) -> None:
        from mlflow.entities import LoggedModelInput, Metric, Param, RunTag

        copied = memory.runs[run.info.run_id]
        there = copied.remote
        params = sorted(run.data.params.items())
        if len(params) != copied.params:
            for start in range(0, len(params), 100):
                part = [Param(key, value) for key, value in params[start : start + 100]]
                self.remote.log_batch(there, params=part)
            copied.params = len(params)
        tags = {
            key: self._translated(value, memory).replace(
                f"/experiments/{run.info.experiment_id}/", f"/experiments/{self.experiment}/"
            )
            for key, value in run.data.tags.items()
            if key not in (WANTED, COPIED, "mlflow.runName")
        }
        digest = hashlib.sha256(json.dumps(tags, sort_keys=True).encode()).hexdigest()[:16]
        if digest != copied.tags:
            self.remote.log_batch(there, tags=[RunTag(k, v) for k, v in tags.items()])
            copied.tags = digest
        points: list[Metric] = []
        sent: dict[str, int] = {}
        for key in run.data.metrics:
            history = sorted(
                self.local.get_metric_history(run.info.run_id, key),
                key=lambda m: (m.timestamp, m.step),
            )
            for m in history[copied.metrics.get(key, 0) :]:
                tie = ties.get((run.info.run_id, key, m.step), {})
                points.append(Metric(key, m.value, m.timestamp, m.step, **tie))
            sent[key] = len(history)
        for start in range(0, len(points), 1000):
            self.remote.log_batch(there, metrics=points[start : start + 1000])
        copied.metrics = sent
        inputs = run.inputs.dataset_inputs if run.inputs else []
        if len(inputs) > copied.inputs:
            self.remote.log_inputs(there, inputs[copied.inputs :])
            copied.inputs = len(inputs)
        for one in (run.inputs.model_inputs or ()) if run.inputs else ():
            if one.model_id in memory.models and one.model_id not in copied.models:
                evaluated = LoggedModelInput(memory.models[one.model_id])
                self.remote.log_inputs(there, models=[evaluated])
                copied.models.append(one.model_id)
        self._files(run, copied)
        if run.info.status != copied.status:
            if run.info.status in ENDED:
                self.remote.set_terminated(there, run.info.status, run.info.end_time)
            elif copied.status:
                self.remote.update_run(there, status=run.info.status)
            copied.status = run.info.status

    def _files(self, run: Run, copied: Copied) -> None:
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            state = [path.stat().st_size, path.stat().st_mtime_ns]
            name = path.relative_to(folder)
            if copied.files.get(str(name)) != state:
                inside = str(name.parent) if name.parent != Path() else None
                self.remote.log_artifact(copied.remote, str(path), inside)
                copied.files[str(name)] = state

    def _models(self, run: Run, memory: Memory) -> None:
        """Checkpoints, which MLflow shows as models that a run put out."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

        copied = memory.runs[run.info.run_id]
        for output in (run.outputs.model_outputs or ()) if run.outputs else ():
            if output.model_id in copied.models:
                continue
            if output.model_id not in memory.models:
                model = self.local.get_logged_model(output.model_id)
                # Of the stage that made it, also where the recipe's run, which names it, is first.
                maker = memory.runs.get(model.source_run_id or "", copied)
                made = self.remote.create_logged_model(
                    self.experiment,
                    model.name,
                    maker.remote,
                    {**(model.tags or {}), MLFLOW_MODEL_IS_EXTERNAL: "true"},
                    model.params,
                )
                self.remote.finalize_logged_model(made.model_id, "READY")
                memory.models[output.model_id] = made.model_id
            there = LoggedModelOutput(memory.models[output.model_id], output.step)
            self.remote.log_outputs(copied.remote, [there])
            copied.models.append(output.model_id)

    def _ties(
        self, family: list[Run], memory: Memory
    ) -> Iterator[tuple[tuple[str, str, int], dict[str, Any]]]:
        """By run, metric and step: the model and the dataset that a value is of."""
        for local, remote in memory.models.items():
            model: LoggedModel = self.local.get_logged_model(local)
            for m in model.metrics or ():
                tie: dict[str, Any] = {"model_id": remote}
                if m.dataset_name and m.dataset_digest:
                    tie |= {"dataset_name": m.dataset_name, "dataset_digest": m.dataset_digest}
                yield (str(m.run_id), m.key, m.step), tie

    def _traces(self, run: Run, memory: Memory) -> None:
        from mlflow.entities.trace_location import TraceLocation
        from mlflow.tracing.client import TracingClient

        copied = memory.runs[run.info.run_id]
        found = self.local.search_traces(
            locations=[run.info.experiment_id], run_id=run.info.run_id, max_results=500
        )
        new = [trace for trace in found if trace.info.trace_id not in copied.traces]
        writer = TracingClient(self.uri) if new else None
        for trace in reversed(new):
            assert writer is not None
            info = copy.deepcopy(trace.info)
            info.trace_location = TraceLocation.from_experiment_id(self.experiment)
            info.trace_metadata = {
                key: self._translated(memory.models.get(value, value), memory)
                for key, value in info.trace_metadata.items()
            }
            # Where the local store keeps the spans means nothing to the server.
            local = ("mlflow.artifactLocation", "mlflow.trace.spansLocation")
            info.tags = {key: value for key, value in info.tags.items() if key not in local}
            self._write_trace(writer, info, trace)
            copied.traces.append(trace.info.trace_id)

    def _write_trace(self, writer: Any, info: Any, trace: Any) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.tracing.utils.artifact_utils import get_artifact_uri_for_trace

        # An older server has spans as artifacts; one that is down fails below.
        with contextlib.suppress(MlflowException, NotImplementedError):
            writer.log_spans(self.experiment, trace.data.spans)
        made = writer.start_trace(info)
        if made.tags.get("mlflow.trace.spansLocation") != "TRACKING_STORE":
            place = get_artifact_uri_for_trace(made)
            spans = json.dumps(trace.data.to_dict(), default=str, ensure_ascii=False)
            get_artifact_repository(place, tracking_uri=self.uri).upload_trace_data(spans)


def remote_id(run_folder: Path) -> tuple[str, str] | None:
    """A run's id on the server that it was copied to, and the server; None where it was not."""
    try:
        data = json.loads((run_folder / "mirror.json").read_text(encoding="utf-8"))
        # The recipe's run was begun first.
        return next(iter(data["runs"].values()))["remote"], data["uri"]
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


class Copying(threading.Thread):
    """Copies to a server in the background for as long as a run lasts."""

    def __init__(self, mirror: Mirror, warn: Callable[[str], None]) -> None:
        # A daemon: a server that never answers must not keep the process alive.
        super().__init__(name="mirror", daemon=True)
        self._mirror = mirror
        self._warn = warn
        self._ending = threading.Event()
        self._opened = False
        self._lost: str | None = None

    def run(self) -> None:
        """Pass after pass, until `finish`, and then once more."""
        pause = 0.0
        while not self._ending.wait(pause):
            began = time.monotonic()
            self._pass()
            pause = max(EVERY_SECONDS, SHARE * (time.monotonic() - began))
        self._pass()

    def _pass(self) -> None:
        try:
            if not self._opened:
                self._mirror.open()
                self._opened = True
            for run in self._mirror.pending():
                self._mirror.copy(run)
            self._lost = None
        except Exception as error:
            reason = redact(str(error).split("\n")[0])[:200]
            if self._lost is None:
                self._warn(
                    f"MLflow at {self._mirror.shown} cannot be written to ({reason}); "
                    "training goes on, and what it lacks is kept here and copied later"
                )
            self._lost = reason

    def finish(self) -> None:
        """Copy what is left, if the server answers; say how to bring it there if not."""
        self._ending.set()
        self.join(LAST_SECONDS)
        if self.is_alive() or self._lost is not None:
            why = self._lost or "it is slow"
            what = f"MLflow at {self._mirror.shown} lacks some of this run ({why})"
            self._warn(f"{what}: run 'ptl sync'")
