"""Handlers of training requests: create_model, forward_backward, optim_step, save and load.

A method checks what it can on the event loop's thread and queues the rest, as a closure, for the
worker, where torch is.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.core.futures import Pending
from posttrain_recipes.engine.core.provenance import STABLE_REINFORCE, of_sampled
from posttrain_recipes.engine.core.registry import Model, Sampler, SamplerWeights, State
from posttrain_recipes.engine.storage import checkpoints
from posttrain_recipes.engine.storage.checkpoints import CheckpointRecord, TrainingRun
from posttrain_recipes.engine.wire import AdapterConfig, RequestError

if TYPE_CHECKING:
    from posttrain_recipes.engine.model.lora import Adapter
    from posttrain_recipes.engine.train.custom_loss import LossGraph

log = logging.getLogger(__name__)

OPTIMIZER = {"type": "adamw"}
MAX_CUSTOM_LOSSES = 256  # of a session


class Training:
    """Models in training and their checkpoints."""

    def __init__(self, state: State) -> None:
        self.state = state

    # Models ----------------------------------------------------------------------------------

    def create_model(self, request: wire.CreateModel) -> Pending:
        """Queue the creation of a model: a new LoRA adapter on a base model."""
        _check_optimizer(request.optimizer_config)
        lora = _seeded(request.lora_config or AdapterConfig())
        model = self._new_model(
            request.session_id,
            request.model_seq_id,
            request.base_model,
            lora,
            request.user_metadata,
        )
        return self.state.scheduler.submit(
            ("create", model.id), lambda: self._make(model), model.id
        )

    def _new_model(
        self,
        session_id: str,
        seq: int,
        base_model: str,
        lora: AdapterConfig,
        user_metadata: dict[str, Any] | None,
    ) -> Model:
        session = self.state.session(session_id)
        model_id = checkpoints.check_run(f"{session_id}:train:{seq}")
        if (model := self.state.models.get(model_id)) is not None:
            if (model.base_model, _shape(model.lora)) != (base_model, _shape(lora)):
                raise RequestError(
                    409,
                    f"{model_id} is a model of {model.base_model} with a LoRA of "
                    f"{_shape(model.lora)}: another one takes the next model_seq_id",
                )
            return model
        self.state.check_base(base_model)
        if self.state.double is not None:
            folder = self.state.names.get(base_model, base_model)
            self.state.double.check_model(base_model, folder, lora.rank)
        created = checkpoints.now()
        run = TrainingRun(model_id, session_id, base_model, lora, created, user_metadata)
        model = Model(model_id, base_model, lora, run, created)
        self.state.models[model_id] = model
        session.models.append(model_id)
        return model

    def _make(self, model: Model) -> dict[str, Any]:
        from posttrain_recipes.engine.model.base import new_adapter

        # Asked again once the answer was forgotten: what has been trained since is kept.
        if model.adapter is None:
            base = self.state.base_models.get(model.base_model)
            adapter = new_adapter(base, model.lora)
            model.arch, model.adapter = base.arch, adapter
            self.state.store.add_run(model.run)
        return {"model_id": model.id, "type": "create_model"}

    def get_info(self, request: wire.TrainingModelRef) -> dict[str, Any]:
        """The metadata of a model in training, for the SDK's TrainingClient."""
        model = self.state.model(request.model_id)
        return {
            "type": "get_info",
            "model_id": model.id,
            "model_name": model.base_model,
            "model_data": {
                "arch": model.arch,
                "model_name": model.base_model,
                "tokenizer_id": self.state.names.get(model.base_model, model.base_model),
            },
            "is_lora": True,
            "lora_rank": model.lora.rank,
            "optimizer_config": OPTIMIZER,
        }

    def unload_model(self, request: wire.TrainingModelRef) -> Pending:
        """Drop a model in training. Its checkpoints stay."""
        key, scheduler = ("unload", request.model_id), self.state.scheduler
        if (known := scheduler.futures.same(key)) is not None:  # its answer was lost on the way
            return known
        self.state.model(request.model_id)
        del self.state.models[request.model_id]
        scheduler.forget_model(request.model_id)
        answer = {"model_id": request.model_id, "type": "unload_model"}
        return scheduler.submit(key, lambda: answer)

    def forward_backward(self, request: wire.ForwardBackward) -> Pending:
        """Queue a forward and backward pass; gradients accumulate until `optim_step`. Where it
        fails they are dropped, and no step is taken that was asked for before it failed."""
        model = self.state.model(request.model_id)
        loss_fn = self.state.substitutes.get(request.loss_fn, request.loss_fn)
        if loss_fn != request.loss_fn and request.loss_fn not in model.replaced:
            model.replaced.add(request.loss_fn)
            log.warning("%s: %s is asked for, %s is computed", model.id, request.loss_fn, loss_fn)

        def work() -> wire.ForwardBackwardResult:
            from posttrain_recipes.engine.train.forward_backward import forward_backward

            data = request.data
            try:
                if request.loss_fn == STABLE_REINFORCE and loss_fn != request.loss_fn:
                    self.state.records.check(model.id.split(":")[0], data)
                    data = [of_sampled(datum) for datum in data]
                result = forward_backward(
                    self.state.base_models.get(model.base_model),
                    _adapter(model),
                    data,
                    loss_fn,
                    request.config,
                    request.forward_only,
                    self.state.custom_losses(model.id),
                )
                if loss_fn == request.loss_fn:
                    return result
                told = {f"{request.loss_fn}_replaced_by_{loss_fn}:max": 1.0}
                if not request.forward_only:
                    model.told |= told
                return dataclasses.replace(result, metrics={**result.metrics, **told})
            except Exception:
                if not request.forward_only:
                    model.failed = self.state.scheduler.accepted(model.id)
                raise

        return self.state.scheduler.submit_ordered(model.id, request.seq_id, work)

    def add_custom_loss(self, request: wire.CreateCustomLoss, graph: LossGraph) -> Pending:
        """Store a custom loss for its session. Raises RequestError 422 for more than
        `MAX_CUSTOM_LOSSES`."""
        session = self.state.session(request.session_id)
        loss_id = f"{session.id}:loss:{request.custom_loss_seq_id}"
        if loss_id not in session.losses and len(session.losses) >= MAX_CUSTOM_LOSSES:
            raise RequestError(
                422, f"a session may have {MAX_CUSTOM_LOSSES} custom losses: use one again"
            )
        session.losses.setdefault(loss_id, graph)
        answer = {"loss_id": loss_id, "type": "create_custom_loss"}
        return self.state.scheduler.submit(("loss", loss_id), lambda: answer)

    def optim_step(self, request: wire.OptimStep) -> Pending:
        """Queue an AdamW step on the accumulated gradients. Refused with 422 where a pass before it
        failed and the client had not heard of that yet: the weights stay as they were."""
        model = self.state.model(request.model_id)
        _check_optimizer(request.optimizer_params)
        params = request.adam_params or wire.AdamParams()
        _check_adam(params)

        def work() -> dict[str, Any]:
            adapter = _adapter(model)
            # Programs that log the metrics of a step need not log those of the passes before it.
            told, model.told = model.told, {}
            if request.seq_id <= model.failed:
                adapter.grad.zero_()
                raise RequestError(
                    422,
                    "the step was not taken: a forward_backward before it failed, so its gradient "
                    "is not whole; the weights are as they were",
                )
            norm = adapter.adam_step(params)
            return {"metrics": {"grad_norm:mean": norm, **told}, "type": "optim_step"}

        return self.state.scheduler.submit_ordered(model.id, request.seq_id, work)

    # Checkpoints -----------------------------------------------------------------------------

    def save_weights(self, request: wire.SaveWeights) -> Pending:
        """Queue the saving of a training checkpoint: adapter weights, optimizer state and step."""
        model = self.state.model(request.model_id)
        path = self._new_path(model, "weights", request)
        expires = checkpoints.expiry(request.ttl_seconds)
        return self.state.scheduler.submit_ordered(
            model.id,
            request.seq_id,
            lambda: self._save(model, path, request, expires, {"type": "save_weights"}),
        )

    def save_weights_for_sampler(self, request: wire.SaveWeights) -> Pending:
        """Queue the saving of weights to sample from: with a path, on disk; without, as a new
        sampler in memory."""
        model = self.state.model(request.model_id)
        answer = {"type": "save_weights_for_sampler"}
        if request.path is not None or request.sampling_session_seq_id is None:
            path = self._new_path(model, "sampler_weights", request)
            expires = checkpoints.expiry(request.ttl_seconds)
            return self.state.scheduler.submit_ordered(
                model.id,
                request.seq_id,
                lambda: self._save(model, path, request, expires, answer),
            )
        session = self.state.session(model.id.split(":")[0])
        sampler_id = f"{session.id}:sample:{request.sampling_session_seq_id}"
        weights = SamplerWeights(model.base_model, model.lora)

        def work() -> dict[str, Any]:
            weights.snapshot = _adapter(model).snapshot()
            self.state.offloading.use(weights)
            return {**answer, "sampling_session_id": sampler_id}

        pending = self.state.scheduler.submit_ordered(model.id, request.seq_id, work)
        weights.saved = weights.saved or pending
        # Not before it was accepted: a refused request is sent again, with weights of its own.
        if sampler_id not in self.state.samplers:
            self.state.add_sampler(session, Sampler(sampler_id, weights))
        return pending

    def _new_path(
        self, model: Model, kind: str, request: wire.SaveWeights
    ) -> checkpoints.CheckpointPath:
        name = request.path if request.path is not None else f"step-{request.seq_id}"
        return checkpoints.CheckpointPath(model.id, kind, checkpoints.check_name(name))

    def _save(
        self,
        model: Model,
        path: checkpoints.CheckpointPath,
        request: wire.SaveWeights,
        expires: str | None,
        answer: dict[str, Any],
    ) -> dict[str, Any]:
        adapter, base = _adapter(model), self.state.base_models.get(model.base_model)
        record = CheckpointRecord(
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
        self.state.store.save(path, record, write, overwrite)
        return {**answer, "path": str(path)}

    def load_weights(self, request: wire.LoadWeights) -> Pending:
        """Load a checkpoint into a model, or make a model from it (create-via-load)."""
        _check_optimizer(request.optimizer_config)
        path = checkpoints.parse_path(request.path, request.model_id or "RUN")
        record = self.state.store.record(path)
        if request.model_id is not None:
            model = self.state.model(request.model_id)
            return self.state.scheduler.submit_ordered(
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
            if model.adapter is not None:  # asked again, as in `_make`
                return {"path": str(path), "model_id": model.id, "type": "load_weights"}
            self._make(model)
            try:
                return self._load(model, path, request)
            except Exception:
                model.adapter = None
                raise

        return self.state.scheduler.submit(("create", model.id), work, model.id)

    def _load(
        self, model: Model, path: checkpoints.CheckpointPath, request: wire.LoadWeights
    ) -> dict[str, Any]:
        from posttrain_recipes.engine.model import lora

        kept = self.state.store.find(path)
        record = kept.record
        if _shape(record.lora) != _shape(model.lora):
            raise RequestError(
                422,
                f"{path} holds a LoRA of {_shape(record.lora)}, this model is one of "
                f"{_shape(model.lora)}: create the model from the checkpoint instead",
            )
        base = self.state.base_models.get(model.base_model)
        tensors, optimizer = self.state.store.load(kept, request.optimizer)
        snapshot = lora.make_snapshot(tensors, model.lora, base.targets)
        if request.optimizer and optimizer is None:
            raise RequestError(422, f"{path} has no optimizer state: load the weights alone")
        _adapter(model).load(snapshot, optimizer)
        return {"path": str(path), "model_id": model.id, "type": "load_weights"}


def _adapter(model: Model) -> Adapter:
    if model.adapter is None:
        raise RequestError(422, f"model {model.id} could not be created; see that error")
    return model.adapter


def _seeded(lora: AdapterConfig) -> AdapterConfig:
    """The configuration with a seed: one drawn at random is kept, so that it can be looked up."""
    if lora.seed is not None:
        return lora
    return AdapterConfig(
        lora.rank,
        random.SystemRandom().getrandbits(31),
        lora.train_unembed,
        lora.train_mlp,
        lora.train_attn,
    )


def _shape(lora: AdapterConfig) -> str:
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
