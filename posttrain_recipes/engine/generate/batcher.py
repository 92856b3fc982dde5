"""Continuous batching: sequences join the running batch when they arrive and leave when they end.

A prompt is prefilled once, whatever the number of its samples. Sample i of a request with seed s
draws from a generator seeded with (s, i), one uniform number a token, so that its tokens do not
depend on what else is in the batch. Between two tokens, requests that have arrived meanwhile are
prefilled and join; a request whose sequences have all finished is answered at once.

A model that `Decoder` supports generates in `slots`. Any other is run by transformers, prompts
padded on the left. If rows of its cache cannot be selected (linear attention), a batch has prompts
of one length, and nothing joins it before it has finished. A model without a KV cache recomputes
the whole sequence for every token, which is slow but correct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain_recipes.engine.generate.sampler import prepare, score, wants_scores
from posttrain_recipes.engine.generate.sequences import SequenceGroup, SequenceState, sample_tokens
from posttrain_recipes.engine.generate.slots import STRIDE, SlotBatch
from posttrain_recipes.engine.model import kv_cache
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.model.lora import Snapshot
from posttrain_recipes.engine.wire import (
    RequestError,
    SampleRequest,
    SampleResult,
)

MAX_SEQUENCES = 256  # in a batch
CACHE_BUDGET = {"cpu": 1 << 31, "cuda": 1 << 34}  # bytes of the KV cache, padding included
APART_S = 0.005  # seconds waited for the next of requests that a client sends together
JOIN_EVERY = 8  # tokens between two times that a few sequences may join; many join at once
T = TypeVar("T")


class RequestFeed(Protocol):
    """The source of requests and the receiver of their results. A ticket is what the feed tells a
    request by."""

    def take(self) -> Sequence[tuple[Any, SampleRequest]]:
        """New requests for the same weights since the last call, with their tickets."""
        ...

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for a request. Whether one has arrived; False if none will."""
        return False

    def pressed(self) -> bool:
        """Whether other work waits for its turn now."""
        return False

    def answer(self, ticket: Any, result: SampleResult | RequestError) -> None:
        """Answer the request with this ticket."""
        ...

    def dropped(self) -> Sequence[Any]:
        """The tickets of requests cancelled since the last call, which need no answer."""
        return ()


class _ListFeed(RequestFeed):
    """A feed of requests that are all known from the start."""

    def __init__(self, requests: Sequence[SampleRequest]) -> None:
        self.left = list(enumerate(requests))
        self.results: dict[int, SampleResult | RequestError] = {}

    def take(self) -> Sequence[tuple[int, SampleRequest]]:
        taken, self.left = self.left, []
        return taken

    def answer(self, ticket: int, result: SampleResult | RequestError) -> None:
        self.results[ticket] = result


def sample(
    base: BaseModel, snapshot: Snapshot | None, requests: Sequence[SampleRequest]
) -> list[SampleResult | RequestError]:
    """Sample from one set of weights, None for the base model alone.

    Returns for each request, in their order, its result or its own error.
    """
    feed = _ListFeed(requests)
    for _ in serve(base, snapshot, feed):
        pass
    return [feed.results[index] for index in range(len(requests))]


def serve(base: BaseModel, snapshot: Snapshot | None, feed: RequestFeed) -> Iterator[None]:
    """Answer the requests of `feed`, sampling from one set of weights, until it has no more.

    Yields after each step: up to `STRIDE` tokens of every sequence, or a single one where the feed
    is `pressed`, or a prefill of at most `BaseModel.prefill_limit` tokens (one prompt at least).
    Other work may use the base model in between.
    """
    layers = None if base.decoder is not None else base.sampling_layers(snapshot)
    steps = _ContinuousBatcher(base, snapshot, feed).run()
    while True:
        with torch.no_grad(), base.using(layers):
            if next(steps, steps) is steps:
                return
        yield


class _ContinuousBatcher:
    """The scheduling loop: prefill what waits, decode a token, answer what has finished."""

    _running: ClassVar[WeakSet[_ContinuousBatcher]] = WeakSet()

    def __init__(self, base: BaseModel, snapshot: Snapshot | None, feed: RequestFeed) -> None:
        self.base, self.feed = base, feed
        self.held = 0  # bytes that its KV cache takes, or will
        self.waiting: list[SequenceState] = []
        self.batch: SlotBatch | _CachedBatch | _UncachedBatch | None = None
        self.weights = None if base.decoder is None else base.sampling_weights(snapshot)

    def run(self) -> Iterator[None]:
        """Answer all; yields after each step."""
        self._running.add(self)
        since_join = 0
        yield from self._receive(self._first_requests())
        while self.waiting or self.batch is not None:
            many = self.batch is None or 4 * len(self.waiting) >= len(self.batch.sequences)
            if self.waiting and (many or since_join >= JOIN_EVERY):
                yield from self._admit()
                since_join = 0
            if self.batch is not None:
                self._answer(self.batch.step(self.feed.pressed))
                if self.batch is not None and not self.batch.sequences:
                    self.batch = None
            since_join += 1 if self.weights is None or self.feed.pressed() else STRIDE
            yield
            for ticket in self.feed.dropped():
                self._drop(ticket)
            yield from self._receive(self.feed.take())

    def _first_requests(self) -> list[tuple[Any, SampleRequest]]:
        """The first requests. A client's requests arrive one by one: waiting a few milliseconds for
        the next has their prompts prefilled in one pass."""
        taken = list(self.feed.take())
        while len(taken) < MAX_SEQUENCES and self.feed.wait(APART_S):
            more = self.feed.take()
            if not more:
                break
            taken += more
        return taken

    def _receive(self, taken: Sequence[tuple[Any, SampleRequest]]) -> Iterator[None]:
        """Check requests and queue their sequences. Invalid ones are answered with their error, and
        those that need no more than the scoring pass with their result."""
        groups = []
        for ticket, wire_request in taken:
            try:
                groups.append(SequenceGroup(prepare(self.base, wire_request, ticket)))
            except RequestError as error:
                self.feed.answer(ticket, error)
        scored = [group for group in groups if wants_scores(group.request.wire_request)]
        for part in self._parts(scored, lambda group: group.request.prompt.size):
            score(self.base, [group.request for group in part], self.weights)
            yield
        for group in groups:
            if group.request.last_logits is None:
                self.waiting += group.sequences
                continue
            for start in range(0, len(group.sequences), MAX_SEQUENCES):
                sequences = group.sequences[start : start + MAX_SEQUENCES]
                sample_tokens(
                    self.base, sequences, group.request.last_logits.expand(len(sequences), -1)
                )
            self._finish(group)
        # Prompts of similar length together, short generations first: they are answered sooner.
        self.waiting.sort(key=lambda seq: (seq.request.prompt.size, seq.request.max_new))

    def _drop(self, ticket: Any) -> None:
        self.waiting = [seq for seq in self.waiting if seq.request.ticket is not ticket]
        if self.batch is not None:
            for seq in self.batch.sequences:
                seq.stopped = seq.stopped or seq.request.ticket is ticket
            if all(seq.finished for seq in self.batch.sequences):
                self.batch = None

    def _parts(self, items: Sequence[T], size: Callable[[T], int]) -> Iterator[list[T]]:
        """Items in parts of at most `prefill_limit` tokens, or of one item."""
        part: list[T] = []
        for item in items:
            if part and sum(map(size, part)) + size(item) > self.base.prefill_limit:
                yield part
                part = []
            part.append(item)
        if part:
            yield part

    def _admit(self) -> Iterator[None]:
        """Have as many waiting sequences join as `CACHE_BUDGET` allows, less what other running
        batches hold: a quarter of it at least."""
        if self.batch is not None and not self.batch.open:
            return
        running = [] if self.batch is None else self.batch.sequences
        longest = max((seq.max_length for seq in running), default=0)
        per_token = kv_cache.bytes_per_token(self.base.model)
        whole = CACHE_BUDGET["cuda" if self.base.device.type == "cuda" else "cpu"]
        running_too = [other for other in self._running if other is not self and other.batch]
        others = sum(other.held for other in running_too)
        budget = max(whole - others, whole // 4)
        count = 0
        for seq in self.waiting[: max(0, MAX_SEQUENCES - len(running))]:
            longest = max(longest, seq.max_length)
            sequences = len(running) + count + 1
            if sequences > 1 and sequences * longest * per_token > budget:
                break
            if (
                not self.base.rearranges
                and seq.request.prompt.size != self.waiting[0].request.prompt.size
            ):
                break
            count += 1
        if not count:
            return
        joining, self.waiting = self.waiting[:count], self.waiting[count:]
        self.held = (len(running) + count) * longest * per_token
        if self.weights is not None:
            slots = self.batch
            if not isinstance(slots, SlotBatch):
                slots = self.batch = SlotBatch(self.base, self.weights)
            done = 0
            for part in self._parts(joining, lambda seq: seq.request.prompt.size):
                done += len(part)
                if done < len(joining):
                    slots.prefill(joining[:done])
                    yield
            # What was cancelled meanwhile joins as finished, and leaves with the next step.
            slots.join(joining)
        elif self.batch is not None:
            self.batch.join(joining)
        elif self.base.caches:
            self.batch = _CachedBatch(self.base, joining)
        else:
            self.batch = _UncachedBatch(self.base, joining)

    def _answer(self, ended: Sequence[SequenceState]) -> None:
        """Answer the requests whose last sequence has just finished, and those that failed."""
        for group in {id(seq.group): seq.group for seq in ended}.values():
            if group.error is not None:
                self._drop(group.request.ticket)  # its other samples
            if group.error is not None or all(seq.finished for seq in group.sequences):
                self._finish(group)

    def _finish(self, group: SequenceGroup) -> None:
        if group.error is not None:
            self.feed.answer(group.request.ticket, group.error)
            return
        sequences = [seq.result() for seq in group.sequences]
        request = group.request
        result = SampleResult(
            sequences,
            request.prompt_logprobs,
            request.prompt_topk,
            request.target_logprobs,
            request.alt_tokens,
        )
        if request.wire_request.on_result is not None:
            request.wire_request.on_result(result)
        self.feed.answer(request.ticket, result)


class _CachedBatch:
    """A batch generated by transformers with a KV cache, prompts padded on the left."""

    def __init__(self, base: BaseModel, sequences: Sequence[SequenceState]) -> None:
        """Prefill: each prompt once, its cache expanded to its samples."""
        self.base, self.sequences = base, list(sequences)
        prompts = list({id(seq.request): seq.request for seq in sequences}.values())
        if not base.rearranges:
            prompts = [seq.request for seq in sequences]
        width = max(request.prompt.size for request in prompts)
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros((len(prompts), width), dtype=np.int64)
        for index, request in enumerate(prompts):
            ids[index, width - request.prompt.size :] = request.prompt
            mask[index, width - request.prompt.size :] = 1
        self.attention = torch.from_numpy(mask).to(base.device)  # (sequences, tokens so far)
        self.cache = kv_cache.new_cache(base.model.config)
        self.open = kv_cache.joinable(self.cache)  # whether sequences may join
        self.logits: Tensor  # (sequences, V) of each one's next token
        self._forward(torch.from_numpy(ids).to(base.device))
        if len(prompts) < len(sequences):
            place = {id(request): index for index, request in enumerate(prompts)}
            self._select([place[id(seq.request)] for seq in sequences])

    def step(self, pressed: Callable[[], bool]) -> list[SequenceState]:
        """Generate one token for every sequence. Returns those that finish with it."""
        ended = sample_tokens(self.base, self.sequences, self.logits)
        alive = [index for index, seq in enumerate(self.sequences) if not seq.finished]
        if not alive:
            self.sequences = []
            return ended
        if len(alive) <= 0.8 * len(self.sequences):  # removing finished sequences copies the cache
            self._shed(alive)
        self.attention = torch.cat(
            [self.attention, self.attention.new_ones(len(self.sequences), 1)], dim=1
        )
        last = [[seq.tokens[-1]] for seq in self.sequences]
        self._forward(torch.tensor(last, device=self.base.device))
        return ended

    def join(self, sequences: Sequence[SequenceState]) -> None:
        """Prefill more sequences and add them, if `open`."""
        self._shed([index for index, seq in enumerate(self.sequences) if not seq.finished])
        other = _CachedBatch(self.base, sequences)
        kv_cache.join(self.cache, other.cache)
        width = max(self.attention.shape[1], other.attention.shape[1])
        self.attention = torch.cat(
            [F.pad(x.attention, (width - x.attention.shape[1], 0)) for x in (self, other)]
        )
        self.logits = torch.cat([self.logits, other.logits])
        self.sequences += other.sequences

    def _shed(self, alive: list[int]) -> None:
        if len(alive) == len(self.sequences) or not self.base.rearranges:
            return
        self.sequences = [self.sequences[index] for index in alive]
        self._select(alive)
        if self.open:  # columns that are padding in every remaining sequence
            blank = int((~self.attention.any(dim=0)).int().cumprod(dim=0).sum())
            kv_cache.drop_first(self.cache, blank)
            self.attention = self.attention[:, blank:]

    def _select(self, indices: list[int]) -> None:
        chosen = torch.tensor(indices, device=self.base.device)
        self.cache.batch_select_indices(chosen)
        self.attention, self.logits = self.attention[chosen], self.logits[chosen]

    def _forward(self, ids: Tensor) -> None:
        """Run the model on tokens (sequences, n); sets `logits`, those after the last of each."""
        inputs: dict[str, Any] = {"input_ids": ids}
        if not bool(self.attention.all()):  # without padding no mask is needed, which is faster
            positions = self.attention.cumsum(-1).sub_(1).clamp_min_(0)
            inputs["position_ids"] = positions[:, -ids.shape[1] :]
            inputs["attention_mask"] = self.attention
        if self.base.keeps_logits:
            inputs["logits_to_keep"] = 1
        cache = {} if (name := self.base.cache_argument) is None else {name: self.cache}
        out = self.base.model(**inputs, **cache, use_cache=True)
        self.logits = out.logits[:, -1].float()


class _UncachedBatch:
    """A batch of a model without a KV cache: every step recomputes the whole sequences."""

    open = True

    def __init__(self, base: BaseModel, sequences: Sequence[SequenceState]) -> None:
        self.base, self.sequences = base, list(sequences)

    def step(self, pressed: Callable[[], bool]) -> list[SequenceState]:
        """As `_CachedBatch.step`."""
        texts = [
            np.concatenate([seq.request.prompt, seq.tokens]).astype(np.int64)
            for seq in self.sequences
        ]
        for chosen in self.base.batches([text.size for text in texts]):
            logits = self.base.logits([texts[index] for index in chosen])
            ends = torch.tensor([texts[index].size - 1 for index in chosen])
            last = logits[torch.arange(len(chosen)), ends]
            sample_tokens(self.base, [self.sequences[index] for index in chosen], last)
        ended = [seq for seq in self.sequences if seq.finished]
        self.sequences = [seq for seq in self.sequences if not seq.finished]
        return ended

    def join(self, sequences: Sequence[SequenceState]) -> None:
        """As `_CachedBatch.join`."""
        self.sequences += sequences
