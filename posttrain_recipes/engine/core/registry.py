"""The engine's state in memory: sessions, models in training, samplers and their weights.

It ends with the process; checkpoints and the record of each training run are on disk, in the
store, and outlive it. It is changed on the event loop's thread, except for the tensors, adapters
and snapshots, which the worker thread makes.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes import pretrained
from posttrain_recipes.engine import wire
from posttrain_recipes.engine.core.futures import Pending
from posttrain_recipes.engine.core.hosted import HostedDouble
from posttrain_recipes.engine.core.provenance import SampleRecords
from posttrain_recipes.engine.core.scheduler import Observer, Scheduler
from posttrain_recipes.engine.storage import checkpoints
from posttrain_recipes.engine.storage.checkpoints import CheckpointStore, TrainingRun
from posttrain_recipes.engine.wire import AdapterConfig, RequestError

if TYPE_CHECKING:
    from posttrain_recipes.engine.model.base import BaseModel, ModelCache
    from posttrain_recipes.engine.model.lora import Adapter, Snapshot
    from posttrain_recipes.engine.train.custom_loss import LossGraph

SAMPLERS_IN_MEMORY = 8


@dataclass(eq=False)
class Session:
    """A client's session: the models and samplers that it created, which end with it."""

    id: str
    request: wire.CreateSession
    created: str
    last_seen: float
    models: list[str] = field(default_factory=list)
    samplers: list[str] = field(default_factory=list)
    losses: dict[str, LossGraph] = field(default_factory=dict)
    status: dict[str, Any] | None = field(default_factory=lambda: {"type": "active"})


@dataclass(eq=False)
class Model:
    """A model in training. `adapter` is None until the worker has made it."""

    id: str
    base_model: str
    lora: AdapterConfig
    run: TrainingRun
    last_request: str
    adapter: Adapter | None = None
    arch: str | None = None
    replaced: set[str] = field(default_factory=set)
    """Losses that were asked for and substituted, of which the log has told."""
    told: dict[str, float] = field(default_factory=dict)
    """Metrics of passes since the last step that are of substituted losses: the step says so."""
    failed: int = 0
    """The last operation that was accepted when a forward and backward pass failed: of a step that
    was to follow it, no gradient is whole."""


@dataclass(eq=False)
class SamplerWeights:
    """The fixed weights of a sampler: a base model, alone or with a LoRA adapter. Samplers of the
    same weights share one object, and so their requests share batches."""

    base_model: str
    lora: AdapterConfig | None = None
    tensors: Mapping[str, Any] | None = None  # as read from disk, until the worker has used them
    snapshot: Snapshot | None = None
    saved: Pending | None = None  # the request that makes the snapshot: no sample before it
    offloaded: Path | None = None  # the file that holds the snapshot while memory does not

    def resolve(self, base: BaseModel) -> Snapshot | None:
        """The adapter on the base model's device, None for the base model alone. Called on the
        worker thread. Raises RequestError 422 if the weights could not be saved."""
        from posttrain_recipes.engine.model.lora import make_snapshot, reload_snapshot

        if self.tensors is not None and self.lora is not None:
            self.snapshot = make_snapshot(self.tensors, self.lora, base.targets)
            self.tensors = None
        if self.snapshot is None and self.offloaded is not None and self.lora is not None:
            self.snapshot = reload_snapshot(self.offloaded, self.lora, base.targets)
        if self.lora is not None and self.snapshot is None:
            raise RequestError(422, "this sampler's weights could not be saved; see that error")
        return self.snapshot

    def offload(self, folder: Path) -> None:
        """Move the snapshot from memory to a file in `folder`, deleted with this object. Called on
        the worker thread."""
        if self.snapshot is None:
            return
        if self.offloaded is None:
            folder.mkdir(parents=True, exist_ok=True)
            self.offloaded = folder / f"{uuid.uuid4().hex}.npy"
            weakref.finalize(self, self.offloaded.unlink, missing_ok=True)
            self.snapshot.offload(self.offloaded)
        self.snapshot = None


class Offloading:
    """Keeps the snapshots of the most recently used samplers in memory and offloads the others to
    disk. Without it a run that makes a sampler at every step would fill the memory: clients do not
    tell when they need a sampler no longer."""

    def __init__(self, data_dir: Path) -> None:
        root = data_dir / "parked"  # as earlier versions called it on disk
        self.folder = root / str(os.getpid())
        for left in root.glob("[0-9]*"):  # by engines that were killed
            if not _is_process(int(left.name)) or left == self.folder:
                shutil.rmtree(left, ignore_errors=True)
        self._recent: OrderedDict[weakref.ref[SamplerWeights], None] = OrderedDict()

    def use(self, weights: SamplerWeights) -> None:
        """Mark a sampler's weights as just used; offload the least recently used ones."""
        for dead in [known for known in self._recent if known() is None]:
            del self._recent[dead]
        known = weakref.ref(weights)
        self._recent[known] = None
        self._recent.move_to_end(known)
        while len(self._recent) > SAMPLERS_IN_MEMORY:
            oldest, _ = self._recent.popitem(last=False)
            if (found := oldest()) is not None:
                found.offload(self.folder)

    def clear(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(eq=False)
class Sampler:
    """A sampler that a client named. `clones` counts the client's copies in other processes."""

    id: str
    weights: SamplerWeights
    model_path: str | None = None
    clones: int = 0


class State:
    """All that the engine holds in memory. `models` maps served names to directories or hub ids.

    With `only_served` clients may name no other base model; without, any directory of this machine
    and any hub id. `substitutes` maps losses that this engine does not have to those that are
    computed in their place; `double` says in what this is like hosted Tinker, for tests.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        data_dir: Path,
        observe: Observer | None = None,
        only_served: bool = False,
        dtype: str | None = None,
        substitutes: Mapping[str, str] | None = None,
        double: HostedDouble | None = None,
    ) -> None:
        self.dtype = dtype
        self.names = dict(models)
        self.only_served = only_served
        self.store = CheckpointStore(data_dir)
        self.scheduler = Scheduler(observe)
        self.offloading = Offloading(data_dir)
        self.records = SampleRecords()
        self.substitutes = dict(substitutes or {})
        self.double = double
        self.sessions: dict[str, Session] = {}
        self.finished: OrderedDict[str, Session] = OrderedDict()  # the last ones, to look up
        self.models: dict[str, Model] = {}
        self.samplers: dict[str, Sampler] = {}
        self._base_models: ModelCache | None = None

    @property
    def base_models(self) -> ModelCache:
        """The loaded base models. For the worker thread only: importing torch takes seconds."""
        if self._base_models is None:
            from posttrain_recipes.importing import import_models

            import_models()
            from posttrain_recipes.engine.model.base import ModelCache

            self._base_models = ModelCache(self.names, self.dtype)
        return self._base_models

    def check_base(self, name: str) -> None:
        """Raise RequestError 404 for a base model that clients may not name, or that is none."""
        if name in self.names:
            return
        served = ", ".join(self.names) or "none"
        if self.only_served:
            raise RequestError(
                404,
                f"this engine serves {served}, and no other base model: {name!r} has to be named "
                "where it is started (ptl serve --model)",
            )
        if not pretrained.is_local(name) and name.count("/") != 1:
            raise RequestError(
                404,
                f"there is no base model {name!r}: this engine serves {served}; a directory "
                "or a hub id of a causal language model works too",
            )

    def session(self, session_id: str) -> Session:
        """The session, noted as alive. Raises RequestError 404."""
        session = self.sessions.get(session_id)
        if session is None:
            raise RequestError(
                404, f"there is no session {session_id}: it has ended, or the engine was restarted"
            )
        session.last_seen = time.monotonic()
        return session

    def model(self, model_id: str) -> Model:
        """The model in training, noted as in use. Raises RequestError 404."""
        model = self.models.get(model_id)
        if model is None:
            raise RequestError(
                404,
                f"there is no model {model_id} in training: its session has ended, or the "
                "engine was restarted; create one from a saved checkpoint",
            )
        model.last_request = checkpoints.now()
        self._note_alive(model_id)
        return model

    def custom_losses(self, model_id: str) -> Mapping[str, LossGraph]:
        """The custom losses of a model's session, by their ids."""
        session = self._session_of(model_id)
        return {} if session is None else session.losses

    def sampler(self, sampler_id: str) -> Sampler:
        """The sampler, its session noted as alive. Raises RequestError 404."""
        sampler = self.samplers.get(sampler_id)
        if sampler is None:
            raise RequestError(
                404,
                f"there is no sampler {sampler_id}: its session has ended, or the engine was "
                "restarted",
            )
        self._note_alive(sampler_id)
        return sampler

    def _session_of(self, name: str) -> Session | None:
        """The session that a model or a sampler of this id belongs to, while it is there."""
        return self.sessions.get(name.split(":")[0])

    def _note_alive(self, name: str) -> None:
        session = self._session_of(name)
        if session is not None:
            session.last_seen = time.monotonic()

    def add_sampler(self, session: Session, sampler: Sampler) -> None:
        """Add a sampler to a session."""
        self.samplers[sampler.id] = sampler
        session.samplers.append(sampler.id)


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's
        return True
    return True
