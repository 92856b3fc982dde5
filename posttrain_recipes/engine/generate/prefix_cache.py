"""Prefix cache: the KV cache of the prompts in the running batch, common prefixes computed once.

The prompts of one task mostly have a common prefix: instructions, a rubric, a few examples. A
prefix of at least `SHARED_TOKENS` tokens that at least `SHARED_SEQUENCES` new prompts have in
common is prefilled once; its keys and values are stored once, and the sequences that continue these
prompts attend to them together. A prompt is dropped when no running sequence continues it.

Shapes: G key heads, D head width, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.model.decoder import DecoderWeights
from posttrain_recipes.engine.model.kernels import product
from posttrain_recipes.engine.model.packing import Packing

SHARED_SEQUENCES = 4  # sequences that share a prefix's keys and values, at least
SHARED_TOKENS = 32  # of a prefix that is shared, at least

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PrefixKV:
    """The token ids (S,) of a prefix, and all layers' keys and values of them, (layers, G, S, D):
    one tensor, as it is moved whole, and to move one a layer takes a GPU longer than to read it."""

    ids: Ids
    keys: Tensor
    values: Tensor

    @property
    def size(self) -> int:
        """S, the number of tokens."""
        return self.ids.size


@dataclass(frozen=True, eq=False)
class PrefilledPrompt:
    """A prompt: the prefix that it shares with others, if any, its remaining tokens, and the logits
    (V,) of the token after it."""

    prefix: PrefixKV | None
    suffix: PrefixKV
    logits: Tensor

    @property
    def size(self) -> int:
        """The number of its tokens."""
        return self.suffix.size + (self.prefix.size if self.prefix else 0)

    @cached_property
    def full(self) -> PrefixKV:
        """The keys and values of the whole prompt, for sequences that all continue it."""
        prefix, suffix = self.prefix, self.suffix
        if prefix is None:
            return suffix
        return PrefixKV(
            np.concatenate([prefix.ids, suffix.ids]),
            torch.cat([prefix.keys, suffix.keys], dim=2),
            torch.cat([prefix.values, suffix.values], dim=2),
        )


class PrefixCache:
    """The prefilled prompts that running sequences continue, by their token ids."""

    def __init__(self, base: BaseModel, weights: DecoderWeights) -> None:
        self.base, self.weights = base, weights
        self._prefilled: dict[bytes, PrefilledPrompt] = {}

    def __getitem__(self, ids: Ids) -> PrefilledPrompt:
        """The prompt with these token ids. Raises KeyError if it has not been prefilled."""
        return self._prefilled[ids.tobytes()]

    def prefill(self, wanted: Sequence[Ids], running: Sequence[Ids]) -> None:
        """Prefill the `wanted` prompts that are not in the cache, and drop those that are neither
        wanted nor running."""
        used = {ids.tobytes() for ids in (*wanted, *running)}
        self._prefilled = {key: prompt for key, prompt in self._prefilled.items() if key in used}
        new = {ids.tobytes(): ids for ids in wanted}
        todo = [ids for key, ids in new.items() if key not in self._prefilled]
        known = {id(p.prefix): p.prefix for p in self._prefilled.values() if p.prefix is not None}
        alone = []
        for prefix in sorted(known.values(), key=lambda prefix: -prefix.size):
            matching = [ids for ids in todo if starts_with(ids, prefix.ids)]
            todo = [ids for ids in todo if not starts_with(ids, prefix.ids)]
            self._prefill_over_cores(matching, prefix)
        for shared, group in group_by_prefix(todo):
            if shared:
                self._prefill_over_cores(group, self._prefill([group[0][:shared]], None)[0].suffix)
            else:
                alone += group
        self._prefill_over_cores(alone, None)

    def _prefill_over_cores(self, todo: Sequence[Ids], prefix: PrefixKV | None) -> None:
        if not todo:
            return
        skip = prefix.size if prefix else 0
        shares = self.base.shares([ids.size - skip for ids in todo])

        def prefill(which: int) -> list[tuple[int, PrefilledPrompt]]:
            found: list[tuple[int, PrefilledPrompt]] = []
            for chosen in shares[which]:
                prompts = self._prefill([todo[i][skip:] for i in chosen], prefix)
                found += zip(chosen, prompts, strict=True)
            return found

        for found in self.base.each(prefill, len(shares)):
            for index, prompt in found:
                self._prefilled[todo[index].tobytes()] = prompt

    @torch.no_grad()
    def _prefill(self, prompts: Sequence[Ids], prefix: PrefixKV | None) -> list[PrefilledPrompt]:
        decoder = self.base.decoder
        assert decoder is not None
        before = None if prefix is None else (prefix.keys, prefix.values)
        packing = Packing([ids.size for ids in prompts], self.base.device)
        ids = torch.from_numpy(np.concatenate(prompts)).to(self.base.device)
        hidden, *cache = decoder.prefill(self.weights, ids, packing, before)
        logits = product(hidden, self.weights.head).float()
        out = []
        for index, tokens in enumerate(prompts):
            span = slice(int(packing.starts[index]), int(packing.starts[index + 1]))
            keys, values = (side[:, span].transpose(1, 2).contiguous() for side in cache)
            out.append(PrefilledPrompt(prefix, PrefixKV(tokens, keys, values), logits[index]))
        return out


def starts_with(ids: Ids, prefix: Ids) -> bool:
    """Whether `ids` begins with `prefix` and has more tokens after it."""
    return ids.size > prefix.size and np.array_equal(ids[: prefix.size], prefix)


def common_prefix_length(first: Ids, second: Ids) -> int:
    """The length of the longest common prefix of two token sequences."""
    size = min(first.size, second.size)
    differ = np.flatnonzero(first[:size] != second[:size])
    return int(differ[0]) if differ.size else size


def group_by_prefix(prompts: Sequence[Ids]) -> list[tuple[int, list[Ids]]]:
    """Group prompts that have a prefix worth sharing: [(length of the prefix, prompts), ...].

    The length is 0 for prompts that share none. The prefix never covers a whole prompt: at least
    one token must be left to compute the next token's logits from.
    """
    ordered = sorted(prompts, key=lambda ids: ids.tolist())
    groups: list[tuple[int, list[Ids]]] = []
    for ids in ordered:
        if groups:
            shared, group = groups[-1]
            found = min(common_prefix_length(group[0], ids), shared or group[0].size, ids.size - 1)
            # Only if the group saves no fewer tokens with the shorter prefix and one prompt more.
            if found >= SHARED_TOKENS and found * (len(group) + 1) >= shared * len(group):
                groups[-1] = (min(found, group[0].size - 1), [*group, ids])
                continue
        groups.append((0, [ids]))
    return [(shared if len(group) >= SHARED_SEQUENCES else 0, group) for shared, group in groups]
