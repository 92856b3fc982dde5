"""Frozen base models in memory, in float32 on a CPU and bfloat16 on a GPU.

Each serves all the adapters trained on it. Everything runs on the scheduler's one worker thread.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain_recipes import pretrained
from posttrain_recipes.engine.model import kv_cache
from posttrain_recipes.engine.model.decoder import Decoder, DecoderWeights
from posttrain_recipes.engine.model.derived import Derived
from posttrain_recipes.engine.model.lora import (
    ActiveAdapter,
    Adapter,
    AdapterLayers,
    Snapshot,
    hook,
)
from posttrain_recipes.engine.wire import AdapterConfig, RequestError
from posttrain_recipes.errors import PtlError
from posttrain_recipes.machine import available_memory
from posttrain_recipes.machine import cores as _cores
from posttrain_recipes.shown import is_address

# A pass holds a few (tokens, vocabulary) float32 tensors: this many elements at most in each, and
# this many of what the backward pass needs of its layers.
LOGITS_BUDGET = {"cpu": 1 << 24, "cuda": 1 << 29}
ACTIVATIONS_BUDGET = {"cpu": 1 << 24, "cuda": 1 << 33}
MEMORY_SHARE = {"cpu": 1 / 8, "cuda": 0.6}  # of the free memory, for activations
FREE = 1 << 33  # bytes that are taken to be free where the system does not tell
MIN_PASS = 512  # tokens that a pass may have whatever the budget: more are no faster on a CPU
COPY_LIMIT = 1 << 29  # bytes of weights that are held twice: with an adapter added, or packed
T = TypeVar("T")
PREFILL_FLOP = {"cpu": 10**11, "cuda": 10**14}  # that are done in about half a second
MIN_SHARE = 64  # tokens that a thread gets at least
MERGED_KEPT = 2  # a run compares one model with another: the last two stay merged


def pick_device() -> torch.device:
    """A CUDA GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class BaseModel:
    """A causal language model, frozen, with hooks for adapters.

    `model` is the model itself where it is in memory already, in the dtype that it has; `path` is
    then where its tokenizer lies. It is taken over: its layers are hooked, their weights stacked.

    Raises RequestError 404 if transformers cannot load `path` (a directory or a hub id), or it is
    an address, which is not repeated.
    """

    def __init__(
        self,
        name: str,
        path: str,
        device: torch.device,
        dtype: torch.dtype | None = None,
        model: Any = None,
    ) -> None:
        if is_address(path):
            raise RequestError(404, "an address names no base model: name a directory or hub id")
        self.name, self.path, self.device = name, path, device
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = _loaded(name, path, dtype) if model is None else model
        self.model.to(device)  # type: ignore[arg-type]
        self.model.eval().requires_grad_(False)
        kv_cache.install(self.model)
        self.active_adapter = ActiveAdapter()
        self.targets = hook(self.model, self.active_adapter)
        config = self.model.config.get_text_config()
        self.vocab = int(self.model.get_input_embeddings().weight.shape[0])
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.arch = str(getattr(config, "model_type", "unknown"))
        self.parameters = sum(p.numel() for p in self.model.parameters())
        # Most models can compute the last positions' logits alone, which prefilling wants.
        self.keeps_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.cache_argument = kv_cache.argument(self.model)
        self.caches = self.cache_argument is not None
        self.rearranges = self.caches and kv_cache.rearranges(self.model.config)
        self.decoder = Decoder.of(self.model)
        self.kind = "cuda" if device.type == "cuda" else "cpu"
        self.threads = 1 if self.kind == "cuda" else _cores()
        self._pool: ThreadPoolExecutor | None = None
        self._tokenizer: Any = None
        self._merged: list[Snapshot] = []
        self._training: Derived[DecoderWeights] = Derived(1)
        self._sampling: Derived[DecoderWeights] = Derived(MERGED_KEPT)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded when first needed: only stop strings and EOS need it."""
        if self._tokenizer is None:
            local = pretrained.is_local(self.path)
            self._tokenizer = pretrained.load_tokenizer(self.path, local_files_only=local)
        return self._tokenizer

    def eos_ids(self) -> set[int]:
        """Every id that ends a sequence, by the generation config or the tokenizer."""
        found: set[int] = set()
        for source in (self.model.generation_config, self.model.config):
            found.update(pretrained.token_ids(getattr(source, "eos_token_id", None)))
        try:
            extra = self.tokenizer.eos_token_id
        except (OSError, ValueError):  # a model without a tokenizer still samples
            extra = None
        return found | ({extra} if extra is not None else set())

    @contextmanager
    def using(self, layers: AdapterLayers | None) -> Iterator[None]:
        """Have the model apply an adapter's layers within this context."""
        self.active_adapter.layers = layers
        try:
            yield
        finally:
            self.active_adapter.layers = None

    def sampling_layers(self, snapshot: Snapshot | None) -> AdapterLayers | None:
        """The adapter for sampling with transformers, merged into its layers if `_merges`."""
        if snapshot is None:
            return None
        if not self._merges:
            return snapshot.factors()
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

    def activation_budget(self, passes: int) -> int:
        """Bytes that each of so many passes at the same time may keep for its backward pass: a
        share of the memory that nobody uses now."""
        free: int | None
        if self.kind == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        else:
            free = available_memory()
        return int(MEMORY_SHARE[self.kind] * (FREE if free is None else free)) // passes

    # Work over the cores ----------------------------------------------------------------------

    @property
    def prefill_limit(self) -> int:
        """Tokens that are prefilled, or scored, before other work may have its turn: about half a
        second's, and no fewer than a pass has."""
        return max(MIN_PASS * self.threads, PREFILL_FLOP[self.kind] // (2 * self.parameters))

    @property
    def rows_of_logits(self) -> int:
        """How many rows of logits, (rows, V), one of `threads` may hold at a time."""
        return max(64, LOGITS_BUDGET[self.kind] // self.threads // self.vocab)

    def shares(self, sizes: Sequence[int]) -> list[list[list[int]]]:
        """Split sequences of these lengths over the threads, and each thread's into micro-batches.

        Returns the sequences' indices, [thread][micro-batch][sequence]. Threads get about as many
        tokens each; a micro-batch fits the memory budget unless a single sequence exceeds it.
        """
        config = self.model.config.get_text_config()
        wide = 8 * config.hidden_size + 4 * getattr(config, "intermediate_size", 0)
        budget = ACTIVATIONS_BUDGET[self.kind] // self.threads
        limit = max(MIN_PASS, budget // (wide * config.num_hidden_layers))
        threads = max(1, min(self.threads, len(sizes), sum(sizes) // MIN_SHARE))
        rounds = -(-sum(sizes) // (threads * limit))
        bins: list[list[int]] = [[] for _ in range(threads * rounds)]
        loads = [0] * len(bins)
        for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            lightest = loads.index(min(loads))
            bins[lightest].append(index)
            loads[lightest] += sizes[index]
        return [[sorted(b) for b in bins[first::threads] if b] for first in range(threads)]

    def each(self, run: Callable[[int], T], count: int) -> list[T]:
        """[run(0), run(1), ...], in parallel, each on its own cores.

        Splitting whole passes is faster than having torch split each matrix product: a product
        waits at its end for the slowest core.
        """
        if count == 1:
            return [run(0)]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, "engine-pass")
        inside = max(1, self.threads // count)

        def on_a_core(which: int) -> T:
            torch.set_num_threads(inside)  # of this thread
            return run(which)

        return list(self._pool.map(on_a_core, range(count)))

    def sampling_weights(self, snapshot: Snapshot | None) -> DecoderWeights:
        """The decoder's weights for sampling from `snapshot`; the last few are kept."""
        decoder, merge, pack = self.decoder, self._merges, self._copies
        assert decoder is not None

        def make() -> DecoderWeights:
            return decoder.weights(None if snapshot is None else snapshot.factors(), merge, pack)

        return self._sampling.of(self if snapshot is None else snapshot, (), make)

    def training_weights(self, adapter: Adapter, tokens: int) -> DecoderWeights:
        """The decoder's weights for training passes over this many tokens, kept until the adapter
        changes."""
        decoder = self.decoder
        assert decoder is not None
        merge = tokens >= decoder.hidden and self._merges
        state = (adapter.flat._version, merge)
        return self._training.of(adapter, state, lambda: decoder.weights(adapter.layers, merge))

    @property
    def _merges(self) -> bool:
        """Whether an adapter may be added into the base's weights. In bfloat16 that would round it
        away."""
        return self.model.dtype == torch.float32 and self._copies

    @property
    def _copies(self) -> bool:
        """Whether the weights are held twice, for speed. Those of a large model are not."""
        return self.parameters * self.model.dtype.itemsize <= COPY_LIMIT

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


def _loaded(name: str, path: str, dtype: torch.dtype) -> Any:
    """The model at `path`. Raises RequestError 404."""
    try:
        return pretrained.load_model(path, dtype)
    except PtlError as error:
        told = "; ".join(filter(None, (error.what, error.why, error.hint)))
        raise RequestError(404, f"cannot load base model {name!r}: {told}") from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise RequestError(
            404,
            f"cannot load base model {name!r} from {path!r}: {reason}. Name a model this "
            "engine serves, or a directory or hub id of a causal language model",
        ) from error


def new_adapter(base: BaseModel, config: AdapterConfig) -> Adapter:
    """A new adapter on `base`. Raises RequestError 422."""
    return Adapter(config, base.targets, base.device)


class ModelCache:
    """The base models, each loaded when it is first used. `models` maps the names served to
    directories or hub ids; `dtype` is that of `BaseModel`, by name."""

    def __init__(self, models: Mapping[str, str], dtype: str | None = None) -> None:
        self.models = dict(models)
        self.dtype: torch.dtype | None = getattr(torch, dtype) if dtype else None
        self.device = pick_device()
        torch.set_num_threads(_cores())
        self._loaded: dict[str, BaseModel] = {}

    def get(self, name: str) -> BaseModel:
        """The base model called `name`, loaded if it is not yet. Raises RequestError 404."""
        path = self.models.get(name, name)
        if path not in self._loaded:
            self._loaded[path] = BaseModel(name, path, self.device, self.dtype)
        return self._loaded[path]
