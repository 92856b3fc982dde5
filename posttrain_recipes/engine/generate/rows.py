"""Sequences being generated, and their next tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from posttrain_recipes.engine.generate.sampler import Ask, pick
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.wire import SampledTokens, TopK

STOP_SLACK = 16  # tokens decoded beyond a stop string's length: some decode to nothing
DRAW_BLOCK = 128  # uniform numbers drawn at a time for each sequence


class Row:
    """One sequence being generated."""

    def __init__(self, job: Job, index: int) -> None:
        self.job, self.ask, self.index = job, job.ask, index
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.topk: list[tuple[list[int], list[float]]] = []
        self.stopped = False
        entropy = None if self.ask.seed is None else [self.ask.seed, index]
        self._rng = np.random.default_rng(entropy)
        self._draws: list[float] = []

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.stopped or len(self.tokens) >= self.ask.max_new

    @property
    def length(self) -> int:
        """The tokens it may come to, prompt included."""
        return self.ask.prompt.size + self.ask.max_new

    def draw(self) -> float:
        """The uniform number in [0, 1) that chooses the next token."""
        at = len(self.tokens) % DRAW_BLOCK
        if at == 0:
            self._draws = self._rng.random(DRAW_BLOCK).tolist()
        return self._draws[at]

    def append(self, base: BaseModel, token: int, logprob: float) -> None:
        """Take the next token, and note whether it ends the sequence."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        strings = self.ask.stop_strings
        self.stopped = token in self.ask.stop_ids or (bool(strings) and self._matched(base))
        if (heard := self.ask.request.heard) is not None:
            heard(self.index, token, logprob, self.topk[-1] if self.topk else None)

    def _matched(self, base: BaseModel) -> bool:
        reach = max(map(len, self.ask.stop_strings)) + STOP_SLACK
        text = base.tokenizer.decode(self.tokens[-reach:], skip_special_tokens=False)
        return any(stop in text for stop in self.ask.stop_strings)

    def result(self) -> SampledTokens:
        """What the wire wants of it."""
        topk = None
        if self.topk:
            ids, values = zip(*self.topk, strict=True)
            topk = TopK(np.array(ids, np.int32), np.array(values, np.float32))
        return SampledTokens(
            np.array(self.tokens, np.int32), np.array(self.logprobs, np.float32), self.stopped, topk
        )


class Job:
    """A request with its sequences."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.rows = [Row(self, index) for index in range(ask.request.num_samples)]


def choose(base: BaseModel, rows: Sequence[Row], logits: Tensor) -> list[Row]:
    """Give every row that goes on its next token from logits (rows, V). Returns those it ends."""
    going = [row for row in rows if not row.over]
    if len(going) < len(rows):
        keep = [index for index, row in enumerate(rows) if not row.over]
        logits = logits[torch.tensor(keep, device=logits.device)]
    asked = [row.ask.request.sampling_params for row in going]
    tokens, logprobs = pick(
        logits,
        [params.temperature for params in asked],
        [params.top_k for params in asked],
        [params.top_p for params in asked],
        [row.draw() for row in going],
    )
    if k := min(max(row.ask.request.topk_sample_logprobs for row in going), base.vocab):
        top = torch.log_softmax(logits, dim=-1).topk(k, dim=-1)
        for row, ids, values in zip(going, top.indices.tolist(), top.values.tolist(), strict=True):
            if wanted := row.ask.request.topk_sample_logprobs:
                row.topk.append((ids[:wanted], values[:wanted]))
    for row, token, logprob in zip(going, tokens, logprobs, strict=True):
        row.append(base, token, logprob)
    return [row for row in going if row.over]
