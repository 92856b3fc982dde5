"""Generation with the engine's own decoder: rows in lanes, one lane a core.

A lane keeps the keys and values of its rows in buffers that are as long as their rows may become:
nothing is copied when a token comes. Rows that continue one prompt share its keys and values, and
read them together, as one product; a prompt is prefilled once however many rows and requests
continue it. Lanes run a few tokens without looking at one another.

Shapes: R rows, G key heads, h query heads a key head, D head width, P prompt, L own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from posttrain_recipes.engine import decoding, kernels
from posttrain_recipes.engine.backend import BaseModel
from posttrain_recipes.engine.decoder import Decoder, Weights
from posttrain_recipes.engine.kernels import product
from posttrain_recipes.engine.packing import Packing
from posttrain_recipes.engine.rows import Row, choose

_step = kernels.compiled(decoding.step)
STRIDE = 8  # tokens that lanes run before anybody may join or leave
SMALL = 1 << 24  # parameters: fewer are read from a core's cache, so that each may have its lane
LANE_ROWS = 4  # rows that make a lane worth having
SHARED_ROWS = 4  # rows of one prompt that read its keys and values together


@dataclass(frozen=True)
class Prompt:
    """A prompt that has been read: each layer's keys and values (G, P, D), and the logits (V,) of
    what follows it."""

    size: int
    keys: list[Tensor]
    values: list[Tensor]
    logits: Tensor


@dataclass
class Group:
    """Neighbouring rows of a lane; `prompt` is None where they hold their own."""

    prompt: Prompt | None
    rows: int


class Lanes:
    """All the rows that are generated together."""

    open = True

    def __init__(self, base: BaseModel, weights: Weights) -> None:
        self.base, self.weights = base, weights
        self.lanes: list[Lane] = []
        self._prompts: dict[bytes, Prompt] = {}
        self._small = base.parameters <= SMALL and base.kind == "cpu"

    @property
    def rows(self) -> list[Row]:
        """Those that go on, and some that have just ended."""
        return [row for lane in self.lanes for row in lane.rows]

    def join(self, rows: Sequence[Row]) -> None:
        """Have more rows join."""
        self._read(rows)
        wanted = len(rows) + len(self.rows)
        most = self.base.threads if self._small else 1
        while len(self.lanes) < max(1, min(most, wanted // LANE_ROWS)):
            self.lanes.append(Lane(self.base, self.weights))
        share = -(-wanted // len(self.lanes))
        start = 0
        for lane in sorted(self.lanes, key=lambda lane: len(lane.rows)):
            stop = min(len(rows), start + max(0, share - len(lane.rows)))
            if stop > start:
                part = rows[start:stop]
                lane.join(part, [self._prompts[row.ask.prompt.tobytes()] for row in part])
            start = stop

    def _read(self, rows: Sequence[Row]) -> None:
        """Prefill the prompts that are not known yet, and forget those nobody continues."""
        decoder = self.base.decoder
        assert decoder is not None
        used = {row.ask.prompt.tobytes() for row in [*rows, *self.rows]}
        self._prompts = {key: prompt for key, prompt in self._prompts.items() if key in used}
        new = {row.ask.prompt.tobytes(): row.ask.prompt for row in rows}
        todo = [(key, ids) for key, ids in new.items() if key not in self._prompts]
        if not todo:
            return
        shares = self.base.shares([ids.size for _, ids in todo])

        def read(which: int) -> list[tuple[int, Prompt]]:
            found: list[tuple[int, Prompt]] = []
            for chosen in shares[which]:
                prompts = _prefill(self.base, decoder, self.weights, [todo[i][1] for i in chosen])
                found += zip(chosen, prompts, strict=True)
            return found

        for found in self.base.each(read, len(shares)):
            for index, prompt in found:
                self._prompts[todo[index][0]] = prompt

    def step(self) -> list[Row]:
        """Give every row its next few tokens. Returns the rows that ended."""
        lanes = self.lanes

        def run(which: int) -> list[Row]:
            return lanes[which].run(STRIDE)

        if self._small and len(lanes) == 1:  # too little work to share
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            ended = run(0)
            torch.set_num_threads(before)
        else:
            ended = [row for rows in self.base.each(run, len(lanes)) for row in rows]
        self.lanes = [lane for lane in lanes if lane.rows]
        return ended


@torch.no_grad()
def _prefill(
    base: BaseModel, decoder: Decoder, weights: Weights, prompts: Sequence[NDArray[np.int64]]
) -> list[Prompt]:
    packing = Packing([ids.size for ids in prompts], base.device)
    ids = torch.from_numpy(np.concatenate(prompts)).to(base.device)
    hidden, cache = decoder.prefill(weights, ids, packing)
    logits = product(hidden, weights.head).float()
    out = []
    for index, prompt in enumerate(prompts):
        mine = slice(int(packing.starts[index]), int(packing.starts[index + 1]))
        keys, values = (
            [pair[side][mine].transpose(0, 1).contiguous() for pair in cache] for side in (0, 1)
        )
        out.append(Prompt(prompt.size, keys, values, logits[index]))
    return out


class Lane:
    """Rows that are generated by one core."""

    def __init__(self, base: BaseModel, weights: Weights) -> None:
        decoder = base.decoder
        assert decoder is not None
        self.base, self.decoder, self.weights = base, decoder, weights
        self.rows: list[Row] = []
        self.groups: list[Group] = []
        self.own = np.zeros(0, np.int64)  # (R,) tokens in the row's own buffers
        self.before = np.zeros(0, np.int64)  # (R,) tokens of its shared prompt
        self.logits: Tensor  # (R, V): what may follow each row
        self.keys: list[Tensor] = []  # of each layer, (R, G, room, D)
        self.values: list[Tensor] = []

    def join(self, rows: Sequence[Row], prompts: Sequence[Prompt]) -> None:
        """Add rows, each with its prompt."""
        self._shed(0.0)
        groups: list[Group] = []
        own, before = [], []
        start = 0
        while start < len(rows):
            stop = start + 1
            while stop < len(rows) and prompts[stop] is prompts[start]:
                stop += 1
            count, prompt = stop - start, prompts[start]
            shared = count >= SHARED_ROWS
            groups.append(Group(prompt if shared else None, count))
            own += [0 if shared else prompt.size] * count
            before += [prompt.size if shared else 0] * count
            start = stop
        room = max(size + row.ask.max_new for size, row in zip(own, rows, strict=True))
        held = len(self.rows)
        self._make_room(held + len(rows), room)
        for index, (size, prompt) in enumerate(zip(own, prompts, strict=True), held):
            if size:
                for layer in range(len(self.keys)):
                    self.keys[layer][index, :, :size] = prompt.keys[layer]
                    self.values[layer][index, :, :size] = prompt.values[layer]
        logits = torch.stack([prompt.logits for prompt in prompts])
        self.logits = torch.cat([self.logits, logits]) if held else logits
        self.own = np.concatenate([self.own, own]).astype(np.int64)
        self.before = np.concatenate([self.before, before]).astype(np.int64)
        self.rows += rows
        self.groups += groups

    def _make_room(self, rows: int, room: int) -> None:
        held, longest = len(self.rows), int(self.own.max(initial=0))
        room = max(room, self.keys[0].shape[2] if self.keys else 0)
        shape = (rows, self.decoder.groups, room, self.decoder.width)
        layers = range(len(self.decoder.layers))
        for buffers in (self.keys, self.values):
            # Zeros, because what a row has not reached is masked, and must not be NaN.
            new = [self.decoder.embedding.new_zeros(shape) for _ in layers]
            for layer, old in enumerate(buffers):
                new[layer][:held, :, :longest] = old[:, :, :longest]
            buffers[:] = new

    def run(self, tokens: int) -> list[Row]:
        """Up to so many tokens for every row. Returns the rows that ended."""
        ended: list[Row] = []
        self._shed(0.8)  # some may have been cancelled
        for _ in range(tokens if self.rows else 0):
            ended += choose(self.base, self.rows, self.logits)
            self._shed(0.8)
            if not self.rows:
                break
            self._step()
        return ended

    def _shed(self, share: float) -> None:
        """Let rows go that have ended, if at most this share goes on: it costs a copy of the rest.
        All of them, where the share is 0."""
        alive = [index for index, row in enumerate(self.rows) if not row.over]
        if len(alive) == len(self.rows) or (share and len(alive) > share * len(self.rows)):
            return
        chosen = torch.tensor(alive, dtype=torch.long, device=self.base.device)
        longest = int(self.own.max(initial=0))
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                new = old.new_zeros(len(alive), *old.shape[1:])
                new[:, :, :longest] = old[:, :, :longest].index_select(0, chosen)
                buffers[layer] = new
        self.own, self.before, self.logits = (
            self.own[alive],
            self.before[alive],
            self.logits[chosen],
        )
        left, start = set(alive), 0
        for group in self.groups:
            stop = start + group.rows
            group.rows = sum(index in left for index in range(start, stop))
            start = stop
        self.groups = [group for group in self.groups if group.rows]
        self.rows = [self.rows[index] for index in alive]

    def _step(self) -> None:
        """Read every row's last token: what may follow is then in `logits`."""
        decoder, device, room = self.decoder, self.base.device, self.keys[0].shape[2]
        at = np.minimum(self.own, room - 1)  # a row that has ended may write no further
        width = int(at.max()) + 1
        place = decoding.Place(
            torch.from_numpy(at).to(device),
            width,
            int(at.min()) + 1 == width,
            [group.rows for group in self.groups],
            [group.prompt.size if group.prompt else 0 for group in self.groups],
        )
        positions = at + self.before
        cos, sin = decoder.angles(int(positions.max()) + 1)
        positions = torch.from_numpy(positions).to(device)
        ids = torch.tensor([row.tokens[-1] for row in self.rows], device=device)
        shared = [
            tensor
            for layer in range(len(self.keys))
            for group in self.groups
            if group.prompt is not None
            for tensor in (group.prompt.keys[layer], group.prompt.values[layer])
        ]
        self.logits = _step(
            F.embedding(ids, decoder.embedding), cos[positions], sin[positions],
            self.weights.layers, decoder.norm, self.weights.head, decoder.scale,
            self.keys, self.values, place, shared,
        )  # fmt: skip
        self.own = self.own + 1
