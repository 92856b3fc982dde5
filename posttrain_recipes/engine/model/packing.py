"""Packed batches: sequences of different lengths end to end, with causal attention in each.

Attention alone needs a (batch, length) layout. For it, sequences of similar length are padded on
the right to the longest of their bucket: attention is causal, so padding reaches no real token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WASTE = 1.5  # a bucket's longest sequence is at most this many times its shortest


def wide_dtype(like: Tensor) -> torch.dtype:
    """What attention and the residual stream are computed in, and keys and values are kept in:
    float32 on a CPU, where that costs no more than bfloat16 and rounds less, and the tensor's own
    type elsewhere."""
    return torch.float32 if like.device.type == "cpu" else like.dtype


@dataclass(frozen=True)
class Bucket:
    """Sequences of similar length, padded to one (rows, longest) batch for attention."""

    rows: int
    longest: int
    start: int  # of its tokens in the packing, where they are contiguous and need no padding
    count: int
    gather: Tensor | None  # (rows * longest,) the packed index of each cell, 0 for padding
    real: Tensor | None  # (count,) the cell of each token of the bucket
    tokens: Tensor | None  # (count,) the packed index of each token of the bucket

    def side_by_side(self, x: Tensor, blank: bool = False) -> Tensor:
        """Packed x (T, heads, D) as (rows, heads, longest, D). Padding is zero with `blank`, else
        it holds any token's values."""
        if self.gather is None or self.real is None:
            found = x[self.start : self.start + self.count]
        elif blank:
            found = x.new_zeros(self.rows * self.longest, *x.shape[1:])
            found.index_copy_(0, self.real, x.index_select(0, self.tokens))
        else:
            found = x.index_select(0, self.gather)
        return found.view(self.rows, self.longest, *x.shape[1:]).transpose(1, 2)

    def put(self, y: Tensor, out: Tensor) -> None:
        """Write y (rows, heads, longest, D) back into the packed `out` (T, heads, D)."""
        flat = y.transpose(1, 2).reshape(-1, *out.shape[1:]).to(out.dtype)
        if self.real is None or self.tokens is None:
            out[self.start : self.start + self.count] = flat
        else:
            out.index_copy_(0, self.tokens, flat.index_select(0, self.real))


class Packing:
    """The layout of sequences of these lengths, packed end to end into T tokens."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        sizes = np.asarray(lengths, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.longest = int(sizes.max())
        self.total = int(self.starts[-1])
        inside = np.arange(self.total) - np.repeat(self.starts[:-1], sizes)
        self.positions = torch.from_numpy(inside).to(device)
        self._buckets: list[Bucket] = []
        order = np.argsort(-sizes, kind="stable")
        at = 0
        while at < len(order):
            shortest = sizes[order[at]] / WASTE
            stop = at + 1
            while stop < len(order) and sizes[order[stop]] >= shortest:
                stop += 1
            self._buckets.append(self._bucket(np.sort(order[at:stop]), sizes, device))
            at = stop

    def _bucket(self, chosen: np.ndarray, sizes: np.ndarray, device: torch.device) -> Bucket:
        longest, rows = int(sizes[chosen].max()), len(chosen)
        neighbours = bool((np.diff(chosen) == 1).all())
        if neighbours and bool((sizes[chosen] == longest).all()):
            start = int(self.starts[chosen[0]])
            return Bucket(rows, longest, start, rows * longest, None, None, None)
        inside = np.arange(longest)[None]
        is_token = inside < sizes[chosen][:, None]
        index = np.where(is_token, self.starts[chosen][:, None] + inside, 0)
        real = np.flatnonzero(is_token)
        parts = (index.reshape(-1), real, index.reshape(-1)[real])
        gather, where, tokens = (torch.from_numpy(part).to(device) for part in parts)
        return Bucket(rows, longest, 0, len(real), gather, where, tokens)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        keep: list[Any] | None = None,
        start: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Causal attention within each sequence: q (T, N, D), k and v (T, G, D); gives (T, N, D).

        `keep` is filled with what `attend_backward` needs. `start` are keys and values (G, P, D) of
        a prefix of P tokens that every sequence continues; there is no backward pass with one.
        """
        out = torch.empty_like(q, dtype=v.dtype, memory_format=torch.contiguous_format)
        for bucket in self._buckets:
            parts = [bucket.side_by_side(x).to(wide_dtype(x)) for x in (q, k, v)]
            if keep is None:
                bucket.put(_attention(parts if start is None else _after(start, parts), scale), out)
                continue
            with torch.enable_grad():
                parts = [x.detach().requires_grad_() for x in parts]
                found = _attention(parts, scale)
            keep.append((parts, found))
            bucket.put(found.detach(), out)
        return out

    def attend_backward(self, kept: list[Any], d_out: Tensor) -> tuple[Tensor, Tensor]:
        """The backward pass of `attend`: the gradients of queries and keys (T, N + G, D), and of
        values (T, G, D), given d_out (T, N, D)."""
        (first, *_), _ = kept[0]
        heads, groups = d_out.shape[1], kept[0][0][1].shape[1]
        d_qk = first.new_empty(self.total, heads + groups, d_out.shape[2])
        d_values = first.new_empty(self.total, groups, d_out.shape[2])
        for bucket, (parts, out) in zip(self._buckets, kept, strict=True):
            d_part = bucket.side_by_side(d_out, blank=True).to(out.dtype)
            found = torch.autograd.grad(out, parts, d_part)
            for grad, target in zip(
                found, (d_qk[:, :heads], d_qk[:, heads:], d_values), strict=True
            ):
                bucket.put(grad, target)
        return d_qk, d_values


def _after(start: tuple[Tensor, Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """Queries, keys and values (rows, heads, length, D), `start` put before each row's keys and
    values."""
    q, *own = parts
    pairs = zip(start, own, strict=True)
    return [q, *(torch.cat([x.expand(q.shape[0], -1, -1, -1), y], dim=2) for x, y in pairs)]


def _attention(parts: Sequence[Tensor], scale: float) -> Tensor:
    q, k, v = parts
    grouped = q.shape[1] != k.shape[1]
    queries, keys = q.shape[2], k.shape[2]
    mask = None
    if queries < keys:  # `is_causal` would align the first query with the first key
        mask = q.new_ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
