"""The running batch of the engine's own decoder: its sequences and their KV cache, in slots.

A slot is a part of the batch that one core generates by itself; a GPU, or a large model, has a
single one. Its KV cache is allocated as long as its sequences may become, so that nothing is copied
when a token is added. Sequences that continue the same prompt, or prompts with a common prefix,
share the keys and values of it and attend to them in one product. Slots generate `STRIDE` tokens
between two times that sequences may join.

Shapes: R sequences, G key heads, D head width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain_recipes.engine.generate import decode_step
from posttrain_recipes.engine.generate.prefix_cache import (
    SHARED_SEQUENCES,
    PrefilledPrompt,
    PrefixCache,
    PrefixKV,
)
from posttrain_recipes.engine.generate.sequences import SequenceState, sample_tokens
from posttrain_recipes.engine.model import kernels
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.model.decoder import DecoderWeights
from posttrain_recipes.engine.model.packing import wide_dtype

_step = kernels.compiled(decode_step.step)
STRIDE = 8  # tokens that a slot generates before sequences may join or be answered
SMALL = 1 << 24  # parameters; a model of at most so many runs in a core's cache: a slot for each
SLOT_SEQUENCES = 12  # a slot has at least so many: 8 take hardly longer than 4


@dataclass
class PrefixGroup:
    """Adjacent sequences of a slot that attend to one shared prefix: a whole prompt, or the common
    start of theirs. `prefix` is None for sequences that share nothing."""

    prefix: PrefixKV | None
    size: int  # of sequences


class SlotBatch:
    """All the sequences that are generated now, distributed over slots."""

    open = True

    def __init__(self, base: BaseModel, weights: DecoderWeights) -> None:
        self.base, self.weights = base, weights
        self.slots: list[Slot] = []
        self._prefixes = PrefixCache(base, weights)
        self._small = base.parameters <= SMALL and base.kind == "cpu"

    @property
    def sequences(self) -> list[SequenceState]:
        """The running sequences, and some that have just finished."""
        return [seq for slot in self.slots for seq in slot.sequences]

    def prefill(self, sequences: Sequence[SequenceState]) -> None:
        """Prefill the prompts of sequences that are going to join."""
        running = [seq.request.prompt for seq in self.sequences]
        self._prefixes.prefill([seq.request.prompt for seq in sequences], running)

    def join(self, sequences: Sequence[SequenceState]) -> None:
        """Prefill more sequences and add them to the slots, the emptiest first."""
        prompts = self._prefixes
        self.prefill(sequences)
        order: dict[int, int] = {}  # sequences that share a prefix become neighbours
        for seq in sequences:
            order.setdefault(id(prompts[seq.request.prompt].prefix), len(order))
        sequences = sorted(sequences, key=lambda seq: order[id(prompts[seq.request.prompt].prefix)])
        total = len(sequences) + len(self.sequences)
        limit = self.base.threads if self._small else 1
        while len(self.slots) < max(1, min(limit, total // SLOT_SEQUENCES)):
            self.slots.append(Slot(self.base, self.weights))
        share = -(-total // len(self.slots))
        start = 0
        for slot in sorted(self.slots, key=lambda slot: len(slot.sequences)):
            stop = min(len(sequences), start + max(0, share - len(slot.sequences)))
            if stop > start:
                part = sequences[start:stop]
                slot.join(part, [prompts[seq.request.prompt] for seq in part])
            start = stop

    def step(self, pressed: Callable[[], bool]) -> list[SequenceState]:
        """Generate up to `STRIDE` tokens for every sequence, or one where other work is waiting by
        `pressed`. Returns those that finished."""
        slots = self.slots

        def run(which: int) -> list[SequenceState]:
            return slots[which].run(STRIDE, pressed)

        if self._small and len(slots) == 1:  # too little work for more than one core
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            ended = run(0)
            torch.set_num_threads(before)
        else:
            ended = [seq for sequences in self.base.each(run, len(slots)) for seq in sequences]
        self.slots = [slot for slot in slots if slot.sequences]
        return ended


def group_by_shared_prefix(prompts: Sequence[PrefilledPrompt]) -> list[PrefixGroup]:
    """Adjacent sequences, given by their prompts, grouped by what they share: the whole prompt if
    at least `SHARED_SEQUENCES` of them continue it, else the prompt's shared prefix."""
    out: list[PrefixGroup] = []
    for _, same in itertools.groupby(prompts, key=id):
        prompt, *others = same
        count = 1 + len(others)
        prefix = prompt.full if count >= SHARED_SEQUENCES else prompt.prefix
        if out and out[-1].prefix is prefix:
            out[-1].size += count
        else:
            out.append(PrefixGroup(prefix, count))
    return out


class Slot:
    """A part of the batch that one core generates: its sequences and their KV cache."""

    def __init__(self, base: BaseModel, weights: DecoderWeights) -> None:
        decoder = base.decoder
        assert decoder is not None
        self.base, self.decoder, self.weights = base, decoder, weights
        self.sequences: list[SequenceState] = []
        self.groups: list[PrefixGroup] = []
        self.own_lengths = np.zeros(0, np.int64)  # (R,) tokens in the sequence's own cache
        self.prefix_lengths = np.zeros(0, np.int64)  # (R,) tokens of its shared prefix
        self.logits: Tensor  # (R, V) of each sequence's next token
        self.keys: Tensor  # the KV cache: keys (layers, R, G, D, room)
        self.values: Tensor  # and values (layers, R, G, room, D)
        self.room = 0  # own tokens that a sequence may have

    def join(self, sequences: Sequence[SequenceState], prompts: Sequence[PrefilledPrompt]) -> None:
        """Add sequences, each with its prefilled prompt."""
        self._shed(0.0)
        groups = group_by_shared_prefix(prompts)
        before = [g.prefix.size if g.prefix else 0 for g in groups for _ in range(g.size)]
        own = [prompt.size - size for prompt, size in zip(prompts, before, strict=True)]
        room = max(size + seq.request.max_new for size, seq in zip(own, sequences, strict=True))
        held = len(self.sequences)
        self._make_room(held + len(sequences), room)
        for index, (size, prompt) in enumerate(zip(own, prompts, strict=True), held):
            if size:  # all of the prompt but the shared prefix
                self.keys[:, index, :, :, :size] = prompt.suffix.keys.mT
                self.values[:, index, :, :size] = prompt.suffix.values
        logits = torch.stack([prompt.logits for prompt in prompts])
        self.logits = torch.cat([self.logits, logits]) if held else logits
        self.own_lengths = np.concatenate([self.own_lengths, own]).astype(np.int64)
        self.prefix_lengths = np.concatenate([self.prefix_lengths, before]).astype(np.int64)
        self.sequences += sequences
        self.groups += groups

    @property
    def _written(self) -> int:
        """How many cells of the KV cache may be in use. A finished sequence that is not removed yet
        counts on, and is not written to any more."""
        return min(int(self.own_lengths.max(initial=0)), self.room)

    def _make_room(self, count: int, room: int) -> None:
        """Reallocate the KV cache for `count` sequences of up to `room` own tokens."""
        held, longest = len(self.sequences), self._written
        self.room = max(room, self.room)
        groups, width = self.decoder.groups, self.decoder.width
        layers, like = len(self.decoder.layers), self.decoder.embedding
        # Zeros: cells not yet written are masked in attention, but 0 * NaN would be NaN.
        new = like.new_zeros(layers, count, groups, width, self.room, dtype=wide_dtype(like))
        if held:
            new[:, :held, :, :, :longest] = self.keys[..., :longest]
        self.keys = new
        new = like.new_zeros(layers, count, groups, self.room, width, dtype=wide_dtype(like))
        if held:
            new[:, :held, :, :longest] = self.values[:, :, :, :longest]
        self.values = new

    def run(self, tokens: int, pressed: Callable[[], bool]) -> list[SequenceState]:
        """Generate up to `tokens` tokens for every sequence, and no more once `pressed` holds.
        Returns those that finished."""
        ended: list[SequenceState] = []
        self._shed(0.8)  # some may have been cancelled
        for _ in range(tokens if self.sequences else 0):
            ended += sample_tokens(self.base, self.sequences, self.logits)
            self._shed(0.8)
            if not self.sequences:
                break
            self._step()
            if pressed():
                break
        return ended

    def _shed(self, share: float) -> None:
        """Remove finished sequences, which copies the others' KV cache: only if at most this share
        of the sequences is still running, or, with a share of 0, in any case."""
        alive = [index for index, seq in enumerate(self.sequences) if not seq.finished]
        if len(alive) == len(self.sequences) or (
            share and len(alive) > share * len(self.sequences)
        ):
            return
        chosen = torch.tensor(alive, dtype=torch.long, device=self.base.device)
        longest = self._written
        self.keys = _rows(self.keys, chosen, 3, longest)
        self.values = _rows(self.values, chosen, 2, longest)
        self.own_lengths, self.prefix_lengths, self.logits = (
            self.own_lengths[alive],
            self.prefix_lengths[alive],
            self.logits[chosen],
        )
        left, start = set(alive), 0
        for group in self.groups:
            stop = start + group.size
            group.size = sum(index in left for index in range(start, stop))
            start = stop
        self.groups = [group for group in self.groups if group.size]
        self.sequences = [self.sequences[index] for index in alive]

    def _step(self) -> None:
        """Run the model on every sequence's last token; `logits` are then those of the next one."""
        decoder, device = self.decoder, self.base.device
        at = np.minimum(self.own_lengths, self.room - 1)  # a finished sequence has no room for more
        width = int(at.max()) + 1
        layout = decode_step.BatchLayout(
            torch.from_numpy(at).to(device),
            width,
            int(at.min()) + 1 == width,
            [group.size for group in self.groups],
            [group.prefix.size if group.prefix else 0 for group in self.groups],
        )
        positions = at + self.prefix_lengths
        cos, sin = decoder.angles(int(positions.max()) + 1)
        positions = torch.from_numpy(positions).to(device)
        ids = torch.tensor([seq.tokens[-1] for seq in self.sequences], device=device)
        shared = [
            tensor
            for layer in range(len(decoder.layers))
            for group in self.groups
            if group.prefix is not None
            for tensor in (group.prefix.keys[layer], group.prefix.values[layer])
        ]
        self.logits = _step(
            decoder.embed(ids), cos[positions], sin[positions],
            self.weights.layers, decoder.norm, self.weights.head, decoder.scale,
            list(self.keys), list(self.values), layout, shared,
        )  # fmt: skip
        self.own_lengths = self.own_lengths + 1


def _rows(cache: Tensor, chosen: Tensor, axis: int, longest: int) -> Tensor:
    """The `chosen` rows of a KV cache (layers, R, ...), of which `longest` tokens along the `axis`
    of a layer are in use. A layer at a time: the copy is the one thing that is there twice."""
    new = cache.new_zeros(cache.shape[0], chosen.numel(), *cache.shape[2:])
    for to, old in zip(new, cache, strict=True):
        to.narrow(axis, 0, longest).copy_(old.narrow(axis, 0, longest).index_select(0, chosen))
    return new
