"""One decoding step: the next-token logits of a batch of sequences, over their KV caches.

The keys and values of a prefix that several sequences share are kept once. Attention to them is one
product for all of these sequences, and its scores join those of the sequence's own keys in one
softmax (cf. Hydragen, arXiv 2402.05099). Compiled by TorchScript, as `kernels`.

Shapes: R rows (sequences), H hidden, N query heads, G key heads, D head width, L a row's own
tokens, P a shared prefix's tokens.
"""

# ruff: noqa: UP006, UP035, UP045, see kernels

from typing import List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain_recipes.engine.model.kernels import (
    Layer,
    Product,
    after_attention,
    before_attention,
    norm,
    product,
    values,
)


class BatchLayout(NamedTuple):
    """How far the rows of a batch have come, and which of them share a prefix."""

    write_at: Tensor  # (R,) the index of the new token in the row's own cache
    width: int  # L, the longest row's own tokens, the new one included
    uniform: bool  # whether all rows have the same number of own tokens
    group_sizes: List[int]  # rows in each group of adjacent rows that share a prefix
    prefix_sizes: List[int]  # P of each group; 0: its rows share no prefix


def step(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    layers: List[Layer],
    last: Tensor,
    head: Product,
    scale: float,
    key_cache: List[Tensor],
    value_cache: List[Tensor],
    layout: BatchLayout,
    shared: List[Tensor],
) -> Tensor:
    """The logits (R, V) float32 of the token after the one embedded as x.

    Args:
        x: embedded tokens, (R, H).
        cos: of the token's rotary angles, (R, 1, D).
        sin: likewise, its first half negated.
        layers: the layers' weights.
        last: the final norm's weight (H,).
        head: the LM head.
        scale: of the attention scores, 1 / sqrt(D) in most models.
        key_cache: of each layer, the rows' own keys (R, G, D, room), the columns of the product
            that gives the scores; the new token's are added.
        value_cache: likewise, values (R, G, room, D).
        layout: how far the rows have come, and which of them share a prefix.
        shared: keys and values (G, P, D) of the shared prefixes: layer by layer, for each group
            that has one, its keys, then its values.
    """
    kv_heads, width = key_cache[0].shape[1], cos.shape[-1]
    longest = max(layout.prefix_sizes)
    per_layer = len(shared) // len(layers)
    unwritten: Optional[Tensor] = None
    if not layout.uniform:
        columns = torch.arange(layout.width, device=x.device)
        unwritten = (columns > layout.write_at[:, None])[:, None, None]
    rows = torch.arange(x.shape[0], device=x.device)
    for index, layer in enumerate(layers):
        _, _, qkv, _, qk = before_attention(x, layer, cos, sin, kv_heads)
        heads = qk.shape[1] - kv_heads
        k, v = key_cache[index], value_cache[index]
        if layout.uniform:
            k[:, :, :, layout.width - 1] = qk[:, heads:]
            v[:, :, layout.width - 1] = values(qkv, width, kv_heads)
        else:
            # An indexed write converts nothing: on a CPU bfloat16's cache is float32.
            k[rows, :, :, layout.write_at] = qk[:, heads:].to(k.dtype)
            v[rows, :, layout.write_at] = values(qkv, width, kv_heads).to(v.dtype)
        k, v = k[:, :, :, : layout.width], v[:, :, : layout.width]
        query = (qk[:, :heads].to(k.dtype) * scale).view(x.shape[0], kv_heads, -1, width)
        scores = query @ k  # (R, G, N / G, L)
        if unwritten is not None:
            scores.masked_fill_(unwritten, float("-inf"))
        if longest == 0:
            attn_out = torch.softmax(scores, dim=-1) @ v
        else:
            layer_shared = shared[index * per_layer : (index + 1) * per_layer]
            scores = torch.cat(
                [prefix_scores(query, layout, layer_shared, longest), scores], dim=-1
            )
            probs = torch.softmax(scores, dim=-1)  # within, in float32
            attn_out = probs[..., longest:] @ v
            add_prefix_values(probs, layout, layer_shared, attn_out)
        x = after_attention(x, attn_out.view(x.shape[0], -1).to(qkv.dtype), layer)
    return product(norm(x, last, layers[0].eps)[0], head).float()


def prefix_scores(query: Tensor, layout: BatchLayout, shared: List[Tensor], longest: int) -> Tensor:
    """Attention scores with the shared prefixes (R, G, N / G, longest), -inf past their ends."""
    parts: List[Tensor] = []
    start, at = 0, 0
    for count, size in zip(layout.group_sizes, layout.prefix_sizes):  # noqa: B905, TorchScript has no strict
        group = query[start : start + count]
        start += count
        if size == 0:
            parts.append(
                torch.full(
                    [count, group.shape[1], group.shape[2], longest], float("-inf"),
                    dtype=query.dtype, device=query.device,
                )
            )  # fmt: skip
            continue
        # (G, rows * N / G, P): all the group's queries with one key head, in one product
        queries = group.transpose(0, 1).flatten(1, 2)
        scores = queries @ shared[at].transpose(-1, -2)
        at += 2
        scores = scores.unflatten(1, [count, group.shape[2]]).transpose(0, 1)
        parts.append(F.pad(scores, [0, longest - size], value=float("-inf")))
    return torch.cat(parts)


def add_prefix_values(
    probs: Tensor, layout: BatchLayout, shared: List[Tensor], out: Tensor
) -> None:
    """Add the shared prefixes' part of attention's output to `out` (R, G, N / G, D), in place."""
    start, at = 0, 1
    for count, size in zip(layout.group_sizes, layout.prefix_sizes):  # noqa: B905
        if size > 0:
            weights = probs[start : start + count, :, :, :size].transpose(0, 1).flatten(1, 2)
            added = (weights @ shared[at]).unflatten(1, [count, out.shape[2]]).transpose(0, 1)
            out[start : start + count] += added
            at += 2
        start += count
