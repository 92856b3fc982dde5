"""KV cache for generation by transformers, and attention for one new token at a time.

transformers' DynamicCache copies everything it holds at every token, and repeats keys and values
for every query head. Here a layer writes into a buffer with room to grow, and the query heads that
share a key head are multiplied with it together. Layers of other kinds (sliding window, linear
attention) stay as transformers makes them.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "ptl_sdpa"
GROWTH = 64  # tokens of room added when a buffer is full, or half of what it holds


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (rows, heads, tokens, width) views of larger buffers."""

    keys: Tensor
    values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, called by transformers with the first tokens."""
        super().lazy_initialization(key_states, value_states)
        self._room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append tokens. Returns all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < new:
            self._room = (self._grown(key_states, new), self._grown(value_states, new))
            if old:
                self._room[0][:, :, :old] = self.keys
                self._room[1][:, :, :old] = self.values
        self._room[0][:, :, old:new] = key_states
        self._room[1][:, :, old:new] = value_states
        self.keys, self.values = (room[:, :, :new] for room in self._room)
        return self.keys, self.values

    def _grown(self, like: Tensor, tokens: int) -> Tensor:
        rows, heads, _, width = like.shape
        return like.new_empty(rows, heads, tokens + max(GROWTH, tokens // 2), width)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may be taken many times."""
        super().batch_select_indices(indices)
        self._room = None


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this configuration."""
    cache = DynamicCache(config=config)
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = GrowingLayer
    return cache


def argument(model: Any) -> str | None:
    """What a model's `forward` calls the cache; None where it takes none. transformers 5.24 gave
    it another name."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in taken), None)


def rearranges(config: Any) -> bool:
    """Whether rows of a cache for this configuration can be selected, reordered and repeated."""
    return all(hasattr(layer, "batch_select_indices") for layer in new_cache(config).layers)


def joinable(cache: DynamicCache) -> bool:
    """Whether `join` can append the rows of another such cache."""
    return bool(cache.layers) and all(type(layer) is GrowingLayer for layer in cache.layers)


def join(cache: DynamicCache, other: DynamicCache) -> None:
    """Append the rows of `other` to `cache`; the shorter of the two is padded on the left."""
    for layer, added in zip(cache.layers, other.layers, strict=True):
        width = max(layer.keys.shape[-2], added.keys.shape[-2])
        pairs = ((layer.keys, added.keys), (layer.values, added.values))
        layer.keys, layer.values = (
            torch.cat([F.pad(x, (0, 0, width - x.shape[-2], 0)) for x in pair]) for pair in pairs
        )
        layer._room = None


def drop_first(cache: DynamicCache, tokens: int) -> None:
    """Drop the first tokens of every row."""
    if tokens:
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, tokens:], layer.values[:, :, tokens:]
            layer._room = None


def bytes_per_token(model: Any) -> int:
    """The bytes that one token of one row takes in the cache, approximately."""
    config = model.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", 1)
    heads = getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 1) // heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * layers * heads * width * model.dtype.itemsize)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention, registered with transformers: its SDPA, except for one query a row with grouped
    heads (GQA) on a CPU, which is computed here without repeating keys and values.

    query (B, H, L, D), key and value (B, G, T, D), mask bool (B, 1, L, T); returns (B, L, H, D).
    """
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    plain = length == 1 and groups < heads and key.device.type == "cpu" and not dropout
    if attention_mask is not None:
        plain = plain and attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1
    if not plain or kwargs.keys() & {"s_aux", "softcap"}:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    scale = width**-0.5 if scaling is None else scaling
    grouped = (query * scale).view(rows, groups, heads // groups, width)
    scores = grouped @ key.transpose(-1, -2)  # (B, G, H / G, T)
    if attention_mask is not None:
        scores.masked_fill_(~attention_mask, float("-inf"))
    out = torch.softmax(scores, dim=-1) @ value
    return out.view(rows, 1, heads, width), None


def install(model: Any) -> None:
    """Have a model whose attention is SDPA use `attention` instead."""
    config = model.config
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    config._attn_implementation = ATTENTION
