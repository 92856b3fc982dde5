"""Prompts that have been read, and what many of them begin with.

Requests of one task mostly begin alike: instructions, a rubric, a few examples. What at least
`SHARED_ROWS` new prompts begin with is read once, kept beside them, and their rows attend to it
together.

Shapes: G key heads, D head width, S tokens.
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
from posttrain_recipes.engine.model.decoder import Weights
from posttrain_recipes.engine.model.kernels import product
from posttrain_recipes.engine.model.packing import Packing

SHARED_ROWS = 4  # rows that read one text's keys and values together, if so many do
SHARED_TOKENS = 32  # that a text must have in common with others to be read apart

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens that have been read: each layer's keys and values, (G, S, D)."""

    ids: Ids
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def size(self) -> int:
        """S."""
        return self.ids.size


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt: what it shares with others, if anything, the rest, and the logits (V,) of what
    follows."""

    start: Text | None
    rest: Text
    logits: Tensor

    @property
    def size(self) -> int:
        """Its tokens."""
        return self.rest.size + (self.start.size if self.start else 0)

    @cached_property
    def whole(self) -> Text:
        """All of it as one, for rows that continue it together."""
        start, rest = self.start, self.rest
        if start is None:
            return rest
        keys, values = (
            [torch.cat(pair, dim=1) for pair in zip(*both, strict=True)]
            for both in ((start.keys, rest.keys), (start.values, rest.values))
        )
        return Text(np.concatenate([start.ids, rest.ids]), keys, values)


class Prompts:
    """The prompts that are being continued."""

    def __init__(self, base: BaseModel, weights: Weights) -> None:
        self.base, self.weights = base, weights
        self._known: dict[bytes, Prompt] = {}

    def __getitem__(self, ids: Ids) -> Prompt:
        """One that has been read."""
        return self._known[ids.tobytes()]

    def read(self, wanted: Sequence[Ids], running: Sequence[Ids]) -> None:
        """Read the prompts that are not known yet, and forget those that are neither wanted nor
        running."""
        used = {ids.tobytes() for ids in (*wanted, *running)}
        self._known = {key: prompt for key, prompt in self._known.items() if key in used}
        new = {ids.tobytes(): ids for ids in wanted}
        todo = [ids for key, ids in new.items() if key not in self._known]
        starts = {id(p.start): p.start for p in self._known.values() if p.start is not None}
        alone = []
        for text in sorted(starts.values(), key=lambda text: -text.size):
            mine = [ids for ids in todo if begins(ids, text.ids)]
            todo = [ids for ids in todo if not begins(ids, text.ids)]
            self._read(mine, text)
        for shared, group in alike(todo):
            if shared:
                self._read(group, self._prefill([group[0][:shared]], None)[0].rest)
            else:
                alone += group
        self._read(alone, None)

    def _read(self, todo: Sequence[Ids], start: Text | None) -> None:
        if not todo:
            return
        skip = start.size if start else 0
        shares = self.base.shares([ids.size - skip for ids in todo])

        def read(which: int) -> list[tuple[int, Prompt]]:
            found: list[tuple[int, Prompt]] = []
            for chosen in shares[which]:
                prompts = self._prefill([todo[i][skip:] for i in chosen], start)
                found += zip(chosen, prompts, strict=True)
            return found

        for found in self.base.each(read, len(shares)):
            for index, prompt in found:
                self._known[todo[index].tobytes()] = prompt

    @torch.no_grad()
    def _prefill(self, texts: Sequence[Ids], start: Text | None) -> list[Prompt]:
        decoder = self.base.decoder
        assert decoder is not None
        before = None if start is None else list(zip(start.keys, start.values, strict=True))
        packing = Packing([ids.size for ids in texts], self.base.device)
        ids = torch.from_numpy(np.concatenate(texts)).to(self.base.device)
        hidden, cache = decoder.prefill(self.weights, ids, packing, before)
        logits = product(hidden, self.weights.head).float()
        out = []
        for index, text in enumerate(texts):
            mine = slice(int(packing.starts[index]), int(packing.starts[index + 1]))
            keys, values = (
                [pair[side][mine].transpose(0, 1).contiguous() for pair in cache] for side in (0, 1)
            )
            out.append(Prompt(start, Text(text, keys, values), logits[index]))
        return out


def begins(ids: Ids, start: Ids) -> bool:
    """Whether `ids` goes on where `start` ends."""
    return ids.size > start.size and np.array_equal(ids[: start.size], start)


def common(first: Ids, second: Ids) -> int:
    """How many tokens two texts begin with alike."""
    size = min(first.size, second.size)
    differ = np.flatnonzero(first[:size] != second[:size])
    return int(differ[0]) if differ.size else size


def alike(texts: Sequence[Ids]) -> list[tuple[int, list[Ids]]]:
    """Texts by what they begin with: (tokens in common, texts), 0 where sharing them is not worth
    it. At least one token of each is left out, as something must follow."""
    ordered = sorted(texts, key=lambda ids: ids.tolist())
    groups: list[tuple[int, list[Ids]]] = []
    for ids in ordered:
        if groups:
            shared, group = groups[-1]
            found = min(common(group[0], ids), shared or group[0].size, ids.size - 1)
            # Not at the cost of what those before it share.
            if found >= SHARED_TOKENS and found * (len(group) + 1) >= shared * len(group):
                groups[-1] = (min(found, group[0].size - 1), [*group, ids])
                continue
        groups.append((0, [ids]))
    return [(shared if len(group) >= SHARED_ROWS else 0, group) for shared, group in groups]
