"""Sessions, models and samplers: what each request means.

Runs on the event loop's thread; whatever needs torch is handed to the scheduler's worker as a
closure. Models, samplers and sessions live in memory and end with the engine; checkpoints and the
record of each run are on disk and do not.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes.engine import checkpoints, wire
from posttrain_recipes.engine.checkpoints import Record, RunRecord, Store
from posttrain_recipes.engine.scheduler import Batch, Feed, Pending, Scheduler
from posttrain_recipes.engine.wire import LoraConfig, RequestError

if TYPE_CHECKING:
    from posttrain_recipes.engine.backend import Backend, BaseModel
    from posttrain_recipes.engine.lora import Adapter, Snapshot

log = logging.getLogger(__name__)

SESSION_LOST_S = 900.0  # no heartbeat (one every 10 s) for so long: the client is gone
SAMPLERS_IN_MEMORY = 8
OPTIMIZER = {"type": "adamw"}


@dataclass(eq=False)
class Session:
    """A client, while it is there."""

    id: str
    request: wire.CreateSession
    created: str
    last_seen: float
    models: list[str] = field(default_factory=list)
    samplers: list[str] = field(default_factory=list)


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
        from posttrain_recipes.engine.lora import make_snapshot, unpark

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
        self._recent: OrderedDict[int, weakref.ref[Weights]] = OrderedDict()

    def use(self, weights: Weights) -> None:
        """Note that a sampler of one run's is in use; park the one used longest ago."""
        self._recent[id(weights)] = weakref.ref(weights)
        self._recent.move_to_end(id(weights))
        while len(self._recent) > SAMPLERS_IN_MEMORY:
            _, oldest = self._recent.popitem(last=False)
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


class Service:
    """The engine's state. `models` maps served names to directories or hub ids."""

    def __init__(self, models: Mapping[str, str], data_dir: Path) -> None:
        self.names = dict(models)
        self.store = Store(data_dir)
        self.scheduler = Scheduler()
        self.sessions: dict[str, Session] = {}
        self.models: dict[str, Model] = {}
        self.samplers: dict[str, Sampler] = {}
        self._shared: weakref.WeakValueDictionary[str, Weights] = weakref.WeakValueDictionary()
        self._backend: Backend | None = None
        self._parking = Parking(data_dir)

    def start(self) -> None:
        """Start computing; torch is imported, and the served models loaded, on the worker."""
        self.scheduler.start(first=self._warm_up)

    async def close(self) -> None:
        """Finish what is queued and stop."""
        await self.scheduler.close()
        self._parking.clear()

    def _warm_up(self) -> None:
        start = time.monotonic()
        for name in self.names:
            try:
                self.backend.base(name)
                log.info("loaded %s after %.1f s", name, time.monotonic() - start)
            except RequestError as error:  # told to whoever asks for it
                log.error("%s", error)

    @property
    def backend(self) -> Backend:
        """On the worker only: importing torch takes seconds."""
        if self._backend is None:
            from posttrain_recipes.engine.backend import Backend

            self._backend = Backend(self.names)
        return self._backend

    # Sessions --------------------------------------------------------------------------------

    def create_session(self, request: wire.CreateSession) -> dict[str, Any]:
        """Begin a session."""
        session = Session(str(uuid.uuid4()), request, checkpoints.now(), time.monotonic())
        self.sessions[session.id] = session
        return {"session_id": session.id, "type": "create_session"}

    def session(self, session_id: str) -> Session:
        """The session, noted as alive. Raises RequestError 404."""
        session = self.sessions.get(session_id)
        if session is None:
            raise RequestError(
                404, f"there is no session {session_id}: it has ended, or the engine was restarted"
            )
        session.last_seen = time.monotonic()
        return session

    def heartbeat(self, request: wire.SessionRef) -> dict[str, Any]:
        """Note that a session is alive."""
        self.session(request.session_id)
        return {"type": "session_heartbeat"}

    def finish_session(self, session_id: str) -> dict[str, Any]:
        """Forget a session with its models and samplers. Checkpoints stay."""
        session = self.sessions.pop(session_id, None)
        if session is not None:
            for model_id in session.models:
                self.models.pop(model_id, None)
                self.scheduler.forget_model(model_id)
            for sampler_id in session.samplers:
                self.samplers.pop(sampler_id, None)
        return {}

    def reap(self) -> None:
        """End the sessions whose client is gone."""
        lost = time.monotonic() - SESSION_LOST_S
        for session in list(self.sessions.values()):
            if session.last_seen < lost and self.scheduler.idle():
                log.info("session %s has not been heard of for a while: ended", session.id)
                self.finish_session(session.id)

    def get_session(self, session_id: str) -> dict[str, Any]:
        """A session's models and samplers."""
        session = self.session(session_id)
        return {
            "training_run_ids": session.models,
            "sampler_ids": session.samplers,
            "user_metadata": session.request.user_metadata,
            "display_name": session.request.display_name,
        }

    # Models ----------------------------------------------------------------------------------

    def create_model(self, request: wire.CreateModel) -> Pending:
        """Make a new adapter."""
        _check_optimizer(request.optimizer_config)
        lora = _seeded(request.lora_config or LoraConfig())
        model = self._new_model(
            request.session_id,
            request.model_seq_id,
            request.base_model,
            lora,
            request.user_metadata,
        )
        return self.scheduler.submit(("create", model.id), lambda: self._make(model))

    def _new_model(
        self,
        session_id: str,
        seq: int,
        base_model: str,
        lora: LoraConfig,
        user_metadata: dict[str, Any] | None,
    ) -> Model:
        session = self.session(session_id)
        model_id = checkpoints.check_run(f"{session_id}:train:{seq}")
        if model_id in self.models:
            return self.models[model_id]
        created = checkpoints.now()
        run = RunRecord(model_id, session_id, base_model, lora, created, user_metadata)
        model = Model(model_id, base_model, lora, run, created)
        self.models[model_id] = model
        session.models.append(model_id)
        return model

    def _make(self, model: Model) -> dict[str, Any]:
        from posttrain_recipes.engine.backend import new_adapter

        base = self.backend.base(model.base_model)
        adapter = new_adapter(base, model.lora)
        model.arch, model.adapter = base.arch, adapter
        self.store.add_run(model.run)
        return {"model_id": model.id, "type": "create_model"}

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

    def get_info(self, request: wire.ModelRef) -> dict[str, Any]:
        """What a training client wants to know of its model."""
        model = self.model(request.model_id)
        return {
            "type": "get_info",
            "model_id": model.id,
            "model_name": model.base_model,
            "model_data": {
                "arch": model.arch,
                "model_name": model.base_model,
                "tokenizer_id": self.names.get(model.base_model, model.base_model),
            },
            "is_lora": True,
            "lora_rank": model.lora.rank,
            "optimizer_config": OPTIMIZER,
        }

    def unload_model(self, request: wire.ModelRef) -> Pending:
        """Forget a model in training. Its checkpoints stay."""
        self.model(request.model_id)
        del self.models[request.model_id]
        self.scheduler.forget_model(request.model_id)
        answer = {"model_id": request.model_id, "type": "unload_model"}
        return self.scheduler.submit(("unload", request.model_id), lambda: answer)

    def forward_backward(self, request: wire.ForwardBackward) -> Pending:
        """Queue a pass; gradients add up until `optim_step`."""
        model = self.model(request.model_id)

        def work() -> wire.ForwardBackwardResult:
            from posttrain_recipes.engine.backend import forward_backward

            return forward_backward(
                self.backend.base(model.base_model),
                _adapter(model),
                request.data,
                request.loss_fn,
                request.config,
                request.forward_only,
            )

        return self.scheduler.submit_ordered(model.id, request.seq_id, work)

    def optim_step(self, request: wire.OptimStep) -> Pending:
        """Queue a step of Adam."""
        model = self.model(request.model_id)
        _check_optimizer(request.optimizer_params)
        params = request.adam_params or wire.AdamParams()
        _check_adam(params)

        def work() -> dict[str, Any]:
            norm = _adapter(model).adam_step(params)
            return {"metrics": {"grad_norm:mean": norm}, "type": "optim_step"}

        return self.scheduler.submit_ordered(model.id, request.seq_id, work)

    # Checkpoints -----------------------------------------------------------------------------

    def save_weights(self, request: wire.SaveWeights) -> Pending:
        """A training checkpoint: adapter, optimizer, step."""
        model = self.model(request.model_id)
        path = self._new_path(model, "weights", request)
        expires = checkpoints.expiry(request.ttl_seconds)
        return self.scheduler.submit_ordered(
            model.id,
            request.seq_id,
            lambda: self._save(model, path, request, expires, {"type": "save_weights"}),
        )

    def save_weights_for_sampler(self, request: wire.SaveWeights) -> Pending:
        """A sampler's weights: with a path, on disk; without, a new sampler in memory."""
        model = self.model(request.model_id)
        answer = {"type": "save_weights_for_sampler"}
        if request.path is not None or request.sampling_session_seq_id is None:
            path = self._new_path(model, "sampler_weights", request)
            expires = checkpoints.expiry(request.ttl_seconds)
            return self.scheduler.submit_ordered(
                model.id,
                request.seq_id,
                lambda: self._save(model, path, request, expires, answer),
            )
        session = self.session(model.id.split(":")[0])
        sampler_id = f"{session.id}:sample:{request.sampling_session_seq_id}"
        weights = Weights(model.base_model, model.lora)
        if sampler_id not in self.samplers:
            self._add_sampler(session, Sampler(sampler_id, weights))

        def work() -> dict[str, Any]:
            weights.snapshot = _adapter(model).snapshot()
            self._parking.use(weights)
            return {**answer, "sampling_session_id": sampler_id}

        return self.scheduler.submit_ordered(model.id, request.seq_id, work)

    def _new_path(self, model: Model, kind: str, request: wire.SaveWeights) -> checkpoints.Path_:
        name = request.path if request.path is not None else f"step-{request.seq_id}"
        return checkpoints.Path_(model.id, kind, checkpoints.check_name(name))

    def _save(
        self,
        model: Model,
        path: checkpoints.Path_,
        request: wire.SaveWeights,
        expires: str | None,
        answer: dict[str, Any],
    ) -> dict[str, Any]:
        adapter, base = _adapter(model), self.backend.base(model.base_model)
        record = Record(
            str(path),
            model.base_model,
            model.lora,
            adapter.step,
            checkpoints.now(),
            expires,
            request.user_metadata,
        )

        def write(folder: Path) -> None:
            adapter.snapshot().save(folder, base.path, base.targets)
            if path.kind == "weights":
                adapter.save_optimizer(folder)

        # Sampler weights are saved again under the same name by loops that resume: newest wins.
        overwrite = request.overwrite or path.kind == "sampler_weights"
        self.store.save(path, record, write, overwrite)
        return {**answer, "path": str(path)}

    def load_weights(self, request: wire.LoadWeights) -> Pending:
        """Load a checkpoint into a model, or make a model from it (create-via-load)."""
        _check_optimizer(request.optimizer_config)
        path = checkpoints.parse_path(request.path)
        record = self.store.record(path)
        if request.model_id is not None:
            model = self.model(request.model_id)
            return self.scheduler.submit_ordered(
                model.id, request.seq_id or 0, lambda: self._load(model, path, request)
            )
        if request.session_id is None or request.model_seq_id is None:
            raise RequestError(
                400, "load_weights needs model_id and seq_id, or session_id and model_seq_id"
            )
        model = self._new_model(
            request.session_id,
            request.model_seq_id,
            request.base_model or record.base_model,
            record.lora,
            request.user_metadata,
        )

        def work() -> dict[str, Any]:
            self._make(model)
            return self._load(model, path, request)

        return self.scheduler.submit(("create", model.id), work)

    def _load(
        self, model: Model, path: checkpoints.Path_, request: wire.LoadWeights
    ) -> dict[str, Any]:
        from posttrain_recipes.engine import lora

        folder = self.store.folder(path)
        record = self.store.read(folder)
        if _shape(record.lora) != _shape(model.lora):
            raise RequestError(
                422,
                f"{path} holds a LoRA of {_shape(record.lora)}, this model is one of "
                f"{_shape(model.lora)}: create the model from the checkpoint instead",
            )
        base = self.backend.base(model.base_model)
        tensors = self.store.tensors(folder)
        snapshot = lora.make_snapshot(tensors, model.lora, base.targets)
        optimizer = lora.read_optimizer(folder) if request.optimizer else None
        if request.optimizer and optimizer is None:
            raise RequestError(422, f"{path} has no optimizer state: load the weights alone")
        _adapter(model).load(snapshot, optimizer)
        return {"path": str(path), "model_id": model.id, "type": "load_weights"}

    # Samplers --------------------------------------------------------------------------------

    def create_sampling_session(self, request: wire.CreateSampler) -> dict[str, Any]:
        """Make a sampler of a base model or of saved weights."""
        session = self.session(request.session_id)
        sampler_id = f"{session.id}:sample:{request.sampling_session_seq_id}"
        if sampler_id not in self.samplers:
            if request.model_path is not None:
                weights = self._from_path(request.model_path)
            elif request.base_model is not None:
                weights = self._from_base(request.base_model)
            else:
                raise RequestError(400, "a sampler needs a base_model or a model_path")
            self._add_sampler(session, Sampler(sampler_id, weights, request.model_path))
        return {"sampling_session_id": sampler_id, "type": "create_sampling_session"}

    def _from_path(self, text: str) -> Weights:
        path = checkpoints.parse_path(text)
        folder = self.store.folder(path)
        record = self.store.read(folder)
        key = f"{record.path}@{record.time}"
        weights = self._shared.get(key)
        if weights is None:
            # Read now: the sampler stays with these weights whatever becomes of the checkpoint.
            weights = Weights(record.base_model, record.lora, self.store.tensors(folder))
            self._shared[key] = weights
        return weights

    def _from_base(self, name: str) -> Weights:
        if name not in self.names and not Path(name).is_dir() and name.count("/") != 1:
            served = ", ".join(self.names) or "none"
            raise RequestError(
                404,
                f"there is no base model {name!r}: this engine serves {served}; a directory "
                "or a hub id of a causal language model works too",
            )
        key = f"base:{self.names.get(name, name)}"
        weights = self._shared.get(key) or Weights(name)
        self._shared[key] = weights
        return weights

    def _add_sampler(self, session: Session, sampler: Sampler) -> None:
        self.samplers[sampler.id] = sampler
        session.samplers.append(sampler.id)

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

    def get_sampler(self, sampler_id: str) -> dict[str, Any]:
        """What a sampler samples from."""
        sampler = self.sampler(sampler_id)
        return {
            "sampler_id": sampler.id,
            "base_model": sampler.weights.base_model,
            "model_path": sampler.model_path,
        }

    def join_sampling_session(self, sampler_id: str) -> dict[str, Any]:
        """A number for a copy of a sampling client in another process."""
        sampler = self.sampler(sampler_id)
        sampler.clones += 1
        return {"client_counter": sampler.clones, "type": "join_sampling_session"}

    def sample(self, request: wire.Sample) -> Pending:
        """Queue a request for samples, to run with others from the same weights."""
        sampler = self.sampler(request.sampling_session_id)
        weights, key = sampler.weights, (sampler.id, request.seq_id)

        def run(feed: Feed) -> None:
            from posttrain_recipes.engine import generation

            base = self.backend.base(weights.base_model)
            snapshot = weights.resolve(base)
            if weights.lora is not None:
                self._parking.use(weights)
            generation.serve(base, snapshot, feed)

        ids = [f"{sampler.id}:{request.seq_id}:{i}" for i in range(max(0, request.num_samples))]
        batch = Batch(id(weights), request, run)
        return self.scheduler.submit_batched(key, batch, {"sample_sequence_ids": ids})


def _adapter(model: Model) -> Adapter:
    if model.adapter is None:
        raise RequestError(422, f"model {model.id} could not be created; see that error")
    return model.adapter


def _seeded(lora: LoraConfig) -> LoraConfig:
    """The configuration with a seed: one drawn at random is kept, so that it can be looked up."""
    if lora.seed is not None:
        return lora
    return LoraConfig(
        lora.rank,
        random.SystemRandom().getrandbits(31),
        lora.train_unembed,
        lora.train_mlp,
        lora.train_attn,
    )


def _shape(lora: LoraConfig) -> str:
    parts = {"attn": lora.train_attn, "mlp": lora.train_mlp, "unembed": lora.train_unembed}
    return f"rank {lora.rank} on {'+'.join(name for name, on in parts.items() if on)}"


def _check_optimizer(config: Mapping[str, Any] | None) -> None:
    if config is not None and config.get("type", "adamw") != "adamw":
        raise RequestError(
            422, f"this engine has no optimizer {config['type']!r}: use AdamW, the default"
        )


def _check_adam(params: wire.AdamParams) -> None:
    sound = (
        0 <= params.learning_rate < float("inf")
        and 0 <= params.beta1 < 1
        and 0 <= params.beta2 < 1
        and 0 <= params.eps < 1
        and 0 <= params.weight_decay < float("inf")
        and 0 <= params.grad_clip_norm < float("inf")
    )
    if not sound:
        raise RequestError(
            422,
            "adam_params: betas and eps must be in [0, 1), and learning_rate, "
            "weight_decay and grad_clip_norm finite and not negative",
        )


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's
        return True
    return True
