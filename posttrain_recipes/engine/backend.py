"""Base models and the passes over them: forward, backward, log-probabilities. Torch lives here.

A base model is loaded once, frozen, in float32 on a CPU and bfloat16 on a GPU, and serves every
adapter. Sequences are padded on the right: attention is causal, so padding cannot reach a token
before it and no mask is needed. Everything runs on the scheduler's one worker thread.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain_recipes.engine import cache, losses
from posttrain_recipes.engine.lora import Adapter, Slot, Snapshot, View, hook
from posttrain_recipes.engine.wire import (
    Datum,
    ForwardBackwardResult,
    LoraConfig,
    RequestError,
)

# A pass holds a few (tokens, vocabulary) float32 tensors: this many elements at most in each.
LOGITS_BUDGET = {"cpu": 1 << 25, "cuda": 1 << 29}
MERGE_LIMIT = 1 << 28  # adapters are merged for sampling up to this many base parameters
MERGED_KEPT = 2  # a run compares one model with another: the last two stay merged


def pick_device() -> torch.device:
    """A CUDA GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class BaseModel:
    """A causal language model, frozen, with hooks for adapters.

    Raises RequestError 404 if transformers cannot load `path` (a directory or a hub id).
    """

    def __init__(self, name: str, path: str, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM

        self.name, self.path, self.device = name, path, device
        self.local = Path(path).is_dir()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        try:
            self.model = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, local_files_only=self.local
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise RequestError(
                404,
                f"cannot load base model {name!r} from {path!r}: {reason}. Name a model this "
                "engine serves, or a directory or hub id of a causal language model",
            ) from error
        self.model.to(device)  # type: ignore[arg-type]
        self.model.eval().requires_grad_(False)
        cache.install(self.model)
        self.slot = Slot()
        self.targets = hook(self.model, self.slot)
        config = self.model.config.get_text_config()
        self.vocab = int(self.model.get_input_embeddings().weight.shape[0])
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.arch = str(getattr(config, "model_type", "unknown"))
        self.parameters = sum(p.numel() for p in self.model.parameters())
        # Most models can compute the last positions' logits alone, which prefilling wants.
        self.keeps_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.caches = "past_key_values" in inspect.signature(self.model.forward).parameters
        self.rearranges = self.caches and cache.rearranges(self.model.config)
        self._tokenizer: Any = None
        self._merged: list[Snapshot] = []

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded when first needed: only stop strings and EOS need it."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=self.local)
        return self._tokenizer

    def eos_ids(self) -> set[int]:
        """Every id that ends a sequence, by the generation config or the tokenizer."""
        found: set[int] = set()
        for source in (self.model.generation_config, self.model.config):
            value = getattr(source, "eos_token_id", None)
            found.update(value if isinstance(value, list) else [] if value is None else [value])
        try:
            extra = self.tokenizer.eos_token_id
        except (OSError, ValueError):  # a model without a tokenizer still samples
            extra = None
        return found | ({extra} if extra is not None else set())

    @contextmanager
    def using(self, view: View | None) -> Iterator[None]:
        """Run the model with an adapter's layers in place."""
        self.slot.active = view
        try:
            yield
        finally:
            self.slot.active = None

    def sampling_view(self, snapshot: Snapshot | None) -> View | None:
        """The adapter as the sampler wants it. Merging in bfloat16 would round the adapter away,
        and merging a large model would hold it twice, so those keep the low-rank form."""
        if snapshot is None:
            return None
        if self.model.dtype != torch.float32 or self.parameters > MERGE_LIMIT:
            return snapshot.low()
        if snapshot.merged is None:
            for old in self._merged[: 1 - MERGED_KEPT]:
                old.merged = None
            self._merged = [*self._merged[1 - MERGED_KEPT :], snapshot]
        return snapshot.merge(self.targets)

    def check_ids(self, ids: NDArray[np.int64], what: str) -> None:
        """Raise RequestError 422 unless every token id is in the vocabulary."""
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab):
            worst = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise RequestError(
                422, f"{what}: token id {worst} is outside the vocabulary (0 to {self.vocab - 1})"
            )

    def check_length(self, length: int, what: str) -> None:
        """Raise RequestError 422 unless a sequence fits the context window."""
        if length < 1:
            raise RequestError(422, f"{what} is empty: give at least one token")
        if self.context is not None and length > self.context:
            raise RequestError(
                422, f"{what}: {length} tokens exceed the model's context window: {self.context}"
            )

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of sequences in micro-batches of like length that fit the memory budget."""
        budget = LOGITS_BUDGET["cuda" if self.device.type == "cuda" else "cpu"] // self.vocab
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        start = 0
        while start < len(order):
            longest = lengths[order[start]]
            stop, end = start + 1, start + max(1, budget // max(1, longest))
            # Less than half the longest is more padding than text: leave it to the next batch.
            while stop < min(end, len(order)) and 2 * lengths[order[stop]] >= longest:
                stop += 1
            yield order[start:stop]
            start = stop

    def logits(self, sequences: Sequence[NDArray[np.int64]]) -> Tensor:
        """Next-token logits (B, T, V) float32 of sequences padded on the right to T tokens."""
        width = max(s.size for s in sequences)
        ids = np.zeros((len(sequences), width), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            ids[row, : sequence.size] = sequence
        out = self.model(input_ids=torch.from_numpy(ids).to(self.device), use_cache=False)
        return out.logits.float()  # type: ignore[no-any-return]


def new_adapter(base: BaseModel, config: LoraConfig) -> Adapter:
    """A new adapter on `base`. Raises RequestError 422."""
    return Adapter(config, base.targets, base.device)


def forward_backward(
    base: BaseModel,
    adapter: Adapter,
    data: Sequence[Datum],
    loss_fn: str,
    config: Mapping[str, float | str],
    forward_only: bool,
) -> ForwardBackwardResult:
    """Log-probabilities of every datum's targets and the summed loss; gradients are added to the
    adapter's unless `forward_only`.

    Everything is checked before anything is computed, so that a request either counts in full or
    not at all. Raises RequestError 422.
    """
    try:
        loss = losses.find(loss_fn)
        values = losses.settings(loss_fn, config)
    except losses.LossError as error:
        raise RequestError(422, str(error)) from None
    items = [_checked(base, loss_fn, loss, datum, i) for i, datum in enumerate(data)]
    if len({frozenset(item.inputs) for item in items}) > 1:
        raise RequestError(422, "every datum of a request must have the same loss_fn_inputs")
    logprobs: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(items)
    total = 0.0
    with base.using(adapter.view), torch.set_grad_enabled(not forward_only):
        for chosen in base.batches([item.tokens.size for item in items]):
            batch = [items[i] for i in chosen]
            flat = _target_logprobs(base, batch)
            loss_sum = loss.fn(flat, _stack(batch, flat), values)
            if not forward_only:
                loss_sum.backward()  # type: ignore[no-untyped-call]
            total += float(loss_sum.detach())
            found = flat.detach().cpu().numpy()
            start = 0
            for index, item in zip(chosen, batch, strict=True):
                targets = item.inputs["target_tokens"]
                block = found[start : start + targets.shape[0]]
                logprobs[index] = block[:, 0] if targets.ndim == 1 else block[:, : targets.shape[1]]
                start += targets.shape[0]
    return ForwardBackwardResult(logprobs, {"loss:sum": total})


def _checked(base: BaseModel, name: str, loss: losses.Loss, datum: Datum, index: int) -> Datum:
    """The datum with float32 inputs and default weights. Raises RequestError 422."""
    what = f"datum {index}"
    base.check_length(datum.tokens.size, what)
    base.check_ids(datum.tokens, what)
    targets = datum.inputs.get("target_tokens")
    if targets is None:
        raise RequestError(422, f"{what}: loss_fn_inputs lacks `target_tokens`")
    if targets.dtype != np.int64 or targets.ndim not in (1, 2):
        raise RequestError(422, f"{what}: target_tokens must be int64, (N,) or (N, K)")
    if targets.ndim == 2 and not (loss.many_targets and targets.shape[1]):
        raise RequestError(422, f"{what}: loss {name!r} takes one target a position, shape (N,)")
    if targets.shape[0] != datum.tokens.size:
        raise RequestError(
            422,
            f"{what}: {datum.tokens.size} input tokens but {targets.shape[0]} targets; "
            "target i is the token that follows input i, so both have one length",
        )
    base.check_ids(targets, f"{what}, target_tokens")
    known = {"target_tokens", *loss.required, *loss.optional}
    inputs: dict[str, NDArray[Any]] = {"target_tokens": targets}
    for key, value in datum.inputs.items():
        if key not in known:
            raise RequestError(
                422, f"{what}: loss {name!r} does not read {key!r} (it reads {sorted(known)})"
            )
        if key != "target_tokens":
            if value.shape != targets.shape:
                raise RequestError(
                    422,
                    f"{what}: {key} has shape {list(value.shape)}, target_tokens "
                    f"{list(targets.shape)}; they must be equal",
                )
            inputs[key] = value.astype(np.float32, copy=False)
    for key in loss.required:
        if key not in inputs:
            raise RequestError(422, f"{what}: loss {name!r} needs {key!r} in loss_fn_inputs")
    if name == "cross_entropy" and "weights" not in inputs:
        inputs["weights"] = np.ones(targets.shape, np.float32)
    return Datum(datum.tokens, inputs)


def _target_logprobs(base: BaseModel, batch: Sequence[Datum]) -> Tensor:
    """log p of every target of the batch, (tokens, K) with K the widest datum's; rows in datum
    order, without padding tokens. A narrower datum's spare columns repeat token 0."""
    logits = base.logits([datum.tokens for datum in batch])
    columns = max(_columns(datum.inputs["target_tokens"]) for datum in batch)
    targets = np.zeros((*logits.shape[:2], columns), dtype=np.int64)
    real = np.zeros(logits.shape[:2], dtype=bool)
    for row, datum in enumerate(batch):
        values = datum.inputs["target_tokens"]
        targets[row, : values.shape[0], : _columns(values)] = values.reshape(values.shape[0], -1)
        real[row, : values.shape[0]] = True
    found = losses.token_logprobs(logits, torch.from_numpy(targets).to(base.device))
    if real.all():
        return found.flatten(0, 1)
    return found[torch.from_numpy(real).to(base.device)]


def _columns(targets: NDArray[np.int64]) -> int:
    return 1 if targets.ndim == 1 else targets.shape[1]


def _stack(batch: Sequence[Datum], like: Tensor) -> dict[str, Tensor]:
    """The datums' loss inputs as tensors shaped like `like`, (tokens, K); spare columns are 0,
    which is what makes them count for nothing."""
    out = {}
    for name in batch[0].inputs.keys() - {"target_tokens"}:
        table = np.zeros(tuple(like.shape), dtype=np.float32)
        start = 0
        for datum in batch:
            value = datum.inputs[name]
            stop = start + value.shape[0]
            table[start:stop, : _columns(value)] = value.reshape(value.shape[0], -1)
            start = stop
        out[name] = torch.from_numpy(table).to(like.device)
    return out


class Backend:
    """The base models in memory. `models` maps the names served to directories or hub ids."""

    def __init__(self, models: Mapping[str, str]) -> None:
        self.models = dict(models)
        self.device = pick_device()
        torch.set_num_threads(_cores())
        self._loaded: dict[str, BaseModel] = {}

    def base(self, name: str) -> BaseModel:
        """The base model called `name`, loaded if it is not yet. Raises RequestError 404."""
        path = self.models.get(name, name)
        if path not in self._loaded:
            self._loaded[path] = BaseModel(name, path, self.device)
        return self._loaded[path]


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
