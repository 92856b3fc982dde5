"""Generation in batches that requests join and leave as they come and end.

A prompt is prefilled once and expanded to its samples. Sample i of a request with seed s draws from
a generator seeded with (s, i), one uniform number a token, so what it draws does not depend on what
else is in the batch. Between two tokens, requests that have arrived meanwhile are prefilled and
join; a request whose sequences have all ended is answered at once and leaves.

A model that `decoder` knows generates in `lanes`. Any other runs by transformers, prompts padded
on the left: one whose state cannot be rearranged (linear attention) runs
batches of prompts of one length from start to end; one without keys and values reads its whole text
again for every token, which is slow and right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain_recipes.engine.generate.rows import Job, Row, choose
from posttrain_recipes.engine.generate.sampler import ready, score, wants_scores
from posttrain_recipes.engine.generate.slots import STRIDE, Lanes
from posttrain_recipes.engine.model import kv_cache
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.model.lora import Snapshot
from posttrain_recipes.engine.wire import (
    RequestError,
    Sample,
    SampleResult,
)

MAX_ROWS = 256  # sequences generated together
CACHE_BUDGET = {"cpu": 1 << 31, "cuda": 1 << 34}  # bytes of keys and values, padding included
APART_S = 0.005  # between requests that are sent together, at most
JOIN_EVERY = 8  # tokens between two times that a few requests may join; many join at once


class Feed(Protocol):
    """Where requests come from and where their results go. Tickets are the feed's business."""

    def take(self) -> Sequence[tuple[Any, Sample]]:
        """Requests for the same weights that have arrived since, with their tickets."""
        ...

    def wait(self, seconds: float) -> bool:
        """Whether something arrives within so many seconds. False where all is there."""
        return False

    def answer(self, ticket: Any, result: SampleResult | RequestError) -> None:
        """Answer the request with this ticket."""
        ...

    def dropped(self) -> Sequence[Any]:
        """Tickets of requests that have been cancelled since, and need no answer."""
        return ()


class _List(Feed):
    """A feed of requests that are all there from the start."""

    def __init__(self, requests: Sequence[Sample]) -> None:
        self.left = list(enumerate(requests))
        self.results: dict[int, SampleResult | RequestError] = {}

    def take(self) -> Sequence[tuple[int, Sample]]:
        taken, self.left = self.left, []
        return taken

    def answer(self, ticket: int, result: SampleResult | RequestError) -> None:
        self.results[ticket] = result


def sample(
    base: BaseModel, snapshot: Snapshot | None, requests: Sequence[Sample]
) -> list[SampleResult | RequestError]:
    """Answer requests for samples from one set of weights, each with a result or its own error."""
    feed = _List(requests)
    serve(base, snapshot, feed)
    return [feed.results[index] for index in range(len(requests))]


@torch.no_grad()
def serve(base: BaseModel, snapshot: Snapshot | None, feed: Feed) -> None:
    """Answer what `feed` gives, sampling from one set of weights, until it has no more."""
    with base.using(None if base.decoder is not None else base.sampling_view(snapshot)):
        _Loop(base, snapshot, feed).run()


class _Loop:
    def __init__(self, base: BaseModel, snapshot: Snapshot | None, feed: Feed) -> None:
        self.base, self.feed = base, feed
        self.waiting: list[Row] = []
        self.batch: Lanes | _Running | _Rereading | None = None
        self.weights = None if base.decoder is None else base.sampling_weights(snapshot)

    def run(self) -> None:
        since_join = 0
        self._receive(self._together())
        while self.waiting or self.batch is not None:
            many = self.batch is None or 4 * len(self.waiting) >= len(self.batch.rows)
            if self.waiting and (many or since_join >= JOIN_EVERY):
                self._admit()
                since_join = 0
            if self.batch is not None:
                self._answer(self.batch.step())
                if not self.batch.rows:
                    self.batch = None
            since_join += 1 if self.weights is None else STRIDE
            for ticket in self.feed.dropped():
                self._drop(ticket)
            self._receive(self.feed.take())

    def _together(self) -> list[tuple[Any, Sample]]:
        """The first requests. Those that a client sends together come one by one, and are worth a
        few milliseconds' wait: one pass reads their prompts."""
        taken = list(self.feed.take())
        while len(taken) < MAX_ROWS and self.feed.wait(APART_S):
            more = self.feed.take()
            if not more:
                break
            taken += more
        return taken

    def _receive(self, taken: Sequence[tuple[Any, Sample]]) -> None:
        """Make requests ready; answer those at fault, and those that one pass serves."""
        jobs = []
        for ticket, request in taken:
            try:
                jobs.append(Job(ready(self.base, request, ticket)))
            except RequestError as error:
                self.feed.answer(ticket, error)
        scored = [job for job in jobs if wants_scores(job.ask.request)]
        if scored:
            score(self.base, [job.ask for job in scored], self.weights)
        for job in jobs:
            if job.ask.last_logits is None:
                self.waiting += job.rows
                continue
            for start in range(0, len(job.rows), MAX_ROWS):
                rows = job.rows[start : start + MAX_ROWS]
                choose(self.base, rows, job.ask.last_logits.expand(len(rows), -1))
            self._finish(job)
        # Like lengths together, those that may run long last: the short are done with sooner.
        self.waiting.sort(key=lambda row: (row.ask.prompt.size, row.ask.max_new))

    def _drop(self, ticket: Any) -> None:
        self.waiting = [row for row in self.waiting if row.ask.ticket is not ticket]
        if self.batch is not None:
            for row in self.batch.rows:
                row.stopped = row.stopped or row.ask.ticket is ticket
            if all(row.over for row in self.batch.rows):
                self.batch = None

    def _admit(self) -> None:
        """Have as many waiting rows join as the cache's budget allows."""
        if self.batch is not None and not self.batch.open:
            return
        running = [] if self.batch is None else self.batch.rows
        longest = max((row.length for row in running), default=0)
        per_token = kv_cache.bytes_per_token(self.base.model)
        budget = CACHE_BUDGET["cuda" if self.base.device.type == "cuda" else "cpu"]
        count = 0
        for row in self.waiting[: max(0, MAX_ROWS - len(running))]:
            longest = max(longest, row.length)
            rows = len(running) + count + 1
            if rows > 1 and rows * longest * per_token > budget:
                break
            if not self.base.rearranges and row.ask.prompt.size != self.waiting[0].ask.prompt.size:
                break
            count += 1
        if not count:
            return
        joining, self.waiting = self.waiting[:count], self.waiting[count:]
        if self.batch is not None:
            self.batch.join(joining)
        elif self.weights is not None:
            self.batch = Lanes(self.base, self.weights)
            self.batch.join(joining)
        elif self.base.caches:
            self.batch = _Running(self.base, joining)
        else:
            self.batch = _Rereading(self.base, joining)

    def _answer(self, ended: Sequence[Row]) -> None:
        """Answer the requests of which the last sequence has just ended."""
        for job in {id(row.job): row.job for row in ended}.values():
            if all(row.over for row in job.rows):
                self._finish(job)

    def _finish(self, job: Job) -> None:
        sequences = [row.result() for row in job.rows]
        ask = job.ask
        result = SampleResult(
            sequences, ask.prompt_logprobs, ask.prompt_topk, ask.target_logprobs, ask.alt_tokens
        )
        self.feed.answer(ask.ticket, result)


class _Running:
    """Rows that are generated together, with their keys and values."""

    def __init__(self, base: BaseModel, rows: Sequence[Row]) -> None:
        """Prefill the rows: each prompt once, expanded to its samples."""
        self.base, self.rows = base, list(rows)
        prompts = list({id(row.ask): row.ask for row in rows}.values())
        if not base.rearranges:
            prompts = [row.ask for row in rows]
        width = max(ask.prompt.size for ask in prompts)
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros((len(prompts), width), dtype=np.int64)
        for index, ask in enumerate(prompts):
            ids[index, width - ask.prompt.size :] = ask.prompt
            mask[index, width - ask.prompt.size :] = 1
        self.attention = torch.from_numpy(mask).to(base.device)  # (rows, tokens so far)
        self.cache = kv_cache.new_cache(base.model.config)
        self.open = kv_cache.joinable(self.cache)  # whether rows may join
        self.logits: Tensor  # (rows, V): what may follow each row
        self._forward(torch.from_numpy(ids).to(base.device))
        if len(prompts) < len(rows):
            place = {id(ask): index for index, ask in enumerate(prompts)}
            self._select([place[id(row.ask)] for row in rows])

    def step(self) -> list[Row]:
        """Give every row its next token. Returns the rows that end with it."""
        ended = choose(self.base, self.rows, self.logits)
        alive = [index for index, row in enumerate(self.rows) if not row.over]
        if not alive:
            self.rows = []
            return ended
        if len(alive) <= 0.8 * len(self.rows):  # shedding finished rows costs a copy of the cache
            self._shed(alive)
        self.attention = torch.cat(
            [self.attention, self.attention.new_ones(len(self.rows), 1)], dim=1
        )
        last = [[row.tokens[-1]] for row in self.rows]
        self._forward(torch.tensor(last, device=self.base.device))
        return ended

    def join(self, rows: Sequence[Row]) -> None:
        """Have more rows join, when `open`."""
        self._shed([index for index, row in enumerate(self.rows) if not row.over])
        other = _Running(self.base, rows)
        kv_cache.join(self.cache, other.cache)
        width = max(self.attention.shape[1], other.attention.shape[1])
        self.attention = torch.cat(
            [F.pad(x.attention, (width - x.attention.shape[1], 0)) for x in (self, other)]
        )
        self.logits = torch.cat([self.logits, other.logits])
        self.rows += other.rows

    def _shed(self, alive: list[int]) -> None:
        if len(alive) == len(self.rows) or not self.base.rearranges:
            return
        self.rows = [self.rows[index] for index in alive]
        self._select(alive)
        if self.open:  # columns that were padding for all who are left
            blank = int((~self.attention.any(dim=0)).int().cumprod(dim=0).sum())
            kv_cache.drop_first(self.cache, blank)
            self.attention = self.attention[:, blank:]

    def _select(self, indices: list[int]) -> None:
        chosen = torch.tensor(indices, device=self.base.device)
        self.cache.batch_select_indices(chosen)
        self.attention, self.logits = self.attention[chosen], self.logits[chosen]

    def _forward(self, ids: Tensor) -> None:
        """Read tokens (rows, n): what may follow the last of each is then in `logits`."""
        inputs: dict[str, Any] = {"input_ids": ids}
        if not bool(self.attention.all()):  # without padding no mask is needed, which is faster
            positions = self.attention.cumsum(-1).sub_(1).clamp_min_(0)
            inputs["position_ids"] = positions[:, -ids.shape[1] :]
            inputs["attention_mask"] = self.attention
        if self.base.keeps_logits:
            inputs["logits_to_keep"] = 1
        out = self.base.model(**inputs, past_key_values=self.cache, use_cache=True)
        self.logits = out.logits[:, -1].float()


class _Rereading:
    """Rows of a model that keeps no keys and values."""

    open = True

    def __init__(self, base: BaseModel, rows: Sequence[Row]) -> None:
        self.base, self.rows = base, list(rows)

    def step(self) -> list[Row]:
        """As `_Running.step`."""
        texts = [np.concatenate([row.ask.prompt, row.tokens]).astype(np.int64) for row in self.rows]
        for chosen in self.base.batches([text.size for text in texts]):
            logits = self.base.logits([texts[index] for index in chosen])
            ends = torch.tensor([texts[index].size - 1 for index in chosen])
            last = logits[torch.arange(len(chosen)), ends]
            choose(self.base, [self.rows[index] for index in chosen], last)
        ended = [row for row in self.rows if row.over]
        self.rows = [row for row in self.rows if not row.over]
        return ended

    def join(self, rows: Sequence[Row]) -> None:
        """As `_Running.join`."""
        self.rows += rows
