"""What the engine knows while it runs: sessions, models in training, samplers.

All of it lives in memory and ends with the engine; checkpoints and the record of each run are on
disk, in the store, and do not. Changed on the event loop's thread, but for what the worker makes:
adapters and snapshots.
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

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.core.scheduler import Observer, Scheduler
from posttrain_recipes.engine.storage import checkpoints
from posttrain_recipes.engine.storage.checkpoints import RunRecord, Store
from posttrain_recipes.engine.wire import LoraConfig, RequestError

if TYPE_CHECKING:
    from posttrain_recipes.engine.model.base import Backend, BaseModel
    from posttrain_recipes.engine.model.lora import Adapter, Snapshot
    from posttrain_recipes.engine.train.custom_loss import LossGraph

SAMPLERS_IN_MEMORY = 8


@dataclass(eq=False)
class Session:
    """A client, while it is there."""

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
    """A model in training. `adapter` is there once the worker has made it."""

    id: str
    base_model: str
    lora: LoraConfig
    run: RunRecord
    last_request: str
    adapter: Adapter | None = None
    arch: str | None = None


@dataclass(eq=False)
class Weights:
    """What a sampler is pinned to: a base model, alone or with an adapter. Samplers of the same
    weights share one of these, and so share batches."""

    base_model: str
    lora: LoraConfig | None = None
    tensors: Mapping[str, Any] | None = None  # as read from disk, until the worker has used them
    snapshot: Snapshot | None = None
    parked: Path | None = None  # where the snapshot waits while it is not in memory

    def resolve(self, base: BaseModel) -> Snapshot | None:
        """The adapter, on the base model's device. On the worker."""
        from posttrain_recipes.engine.model.lora import make_snapshot, unpark

        if self.tensors is not None and self.lora is not None:
            self.snapshot = make_snapshot(self.tensors, self.lora, base.targets)
            self.tensors = None
        if self.snapshot is None and self.parked is not None and self.lora is not None:
            self.snapshot = unpark(self.parked, self.lora, base.targets)
        if self.lora is not None and self.snapshot is None:
            raise RequestError(422, "this sampler's weights could not be saved; see that error")
        return self.snapshot

    def park(self, folder: Path) -> None:
        """Move the snapshot to a file in `folder`, which goes when this object does. On the
        worker."""
        if self.snapshot is None:
            return
        if self.parked is None:
            folder.mkdir(parents=True, exist_ok=True)
            self.parked = folder / f"{uuid.uuid4().hex}.npy"
            weakref.finalize(self, self.parked.unlink, missing_ok=True)
            self.snapshot.park(self.parked)
        self.snapshot = None


class Parking:
    """Keeps the samplers used last in memory and the others' weights in files: a run that makes a
    sampler at every step would fill the memory, since no client says that it needs one no more."""

    def __init__(self, data_dir: Path) -> None:
        root = data_dir / "parked"
        self.folder = root / str(os.getpid())
        for left in root.glob("[0-9]*"):  # by engines that were killed
            if not _is_process(int(left.name)) or left == self.folder:
                shutil.rmtree(left, ignore_errors=True)
        self._recent: OrderedDict[weakref.ref[Weights], None] = OrderedDict()

    def use(self, weights: Weights) -> None:
        """Note that a sampler of one run's is in use; park the one used longest ago."""
        for dead in [known for known in self._recent if known() is None]:
            del self._recent[dead]
        known = weakref.ref(weights)
        self._recent[known] = None
        self._recent.move_to_end(known)
        while len(self._recent) > SAMPLERS_IN_MEMORY:
            oldest, _ = self._recent.popitem(last=False)
            if (found := oldest()) is not None:
                found.park(self.folder)

    def clear(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(eq=False)
class Sampler:
    """A name for weights to sample from; `clones` counts its copies in other processes."""

    id: str
    weights: Weights
    model_path: str | None = None
    clones: int = 0


class State:
    """Everything the engine knows. `models` maps served names to directories or hub ids."""

    def __init__(
        self, models: Mapping[str, str], data_dir: Path, observe: Observer | None = None
    ) -> None:
        self.names = dict(models)
        self.store = Store(data_dir)
        self.scheduler = Scheduler(observe)
        self.parking = Parking(data_dir)
        self.sessions: dict[str, Session] = {}
        self.finished: OrderedDict[str, Session] = OrderedDict()  # the last ones, to look up
        self.models: dict[str, Model] = {}
        self.samplers: dict[str, Sampler] = {}
        self._backend: Backend | None = None

    @property
    def backend(self) -> Backend:
        """On the worker only: importing torch takes seconds."""
        if self._backend is None:
            from posttrain_recipes.engine.model.base import Backend

            self._backend = Backend(self.names)
        return self._backend

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
        session = self.sessions.get(model_id.split(":")[0])
        if session is not None:
            session.last_seen = time.monotonic()
        return model

    def custom_losses(self, model_id: str) -> Mapping[str, LossGraph]:
        """The custom losses of a model's session, by their ids."""
        session = self.sessions.get(model_id.split(":")[0])
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
        session = self.sessions.get(sampler_id.split(":")[0])
        if session is not None:
            session.last_seen = time.monotonic()
        return sampler

    def add_sampler(self, session: Session, sampler: Sampler) -> None:
        """Note a new sampler of a session's."""
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
