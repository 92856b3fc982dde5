"""The state of the sequences being generated, and the sampling of their next tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from posttrain_recipes.engine.generate.sampler import GenerationRequest, pick
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.wire import SampledTokens, TopK

STOP_SLACK = 16  # tokens decoded beyond a stop string's characters: some decode to no text
DRAW_BLOCK = 128  # uniform numbers drawn at a time for each sequence


class SequenceState:
    """One sequence being generated."""

    def __init__(self, group: SequenceGroup, index: int) -> None:
        self.group, self.request, self.index = group, group.request, index
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.topk: list[tuple[list[int], list[float]]] = []
        self.stopped = False
        entropy = None if self.request.seed is None else [self.request.seed, index]
        self._rng = np.random.default_rng(entropy)
        self._draws: list[float] = []
        self.grammar = self.request.grammar and self.request.grammar.copy()

    @property
    def finished(self) -> bool:
        """Whether it has stopped, been cancelled or reached its maximum length."""
        return self.stopped or len(self.tokens) >= self.request.max_new

    @property
    def max_length(self) -> int:
        """The most tokens that it may have, prompt included."""
        return self.request.prompt.size + self.request.max_new

    def draw(self) -> float:
        """The uniform random number in [0, 1) that the next token is sampled with."""
        at = len(self.tokens) % DRAW_BLOCK
        if at == 0:
            self._draws = self._rng.random(DRAW_BLOCK).tolist()
        return self._draws[at]

    def append(self, base: BaseModel, token: int, logprob: float) -> None:
        """Append a token and its log-probability (nats). Sets `stopped` if it ends the sequence."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.grammar is not None:
            self.grammar.take(token)
        strings, rules = self.request.stop_strings, self.request.wire_request.rules
        early = rules is not None and len(self.tokens) < rules.min_tokens
        self.stopped = not early and (
            token in self.request.stop_ids or (bool(strings) and self._matched(base))
        )
        if (on_token := self.request.wire_request.on_token) is not None:
            on_token(self.index, token, logprob, self.topk[-1] if self.topk else None)

    def _matched(self, base: BaseModel) -> bool:
        reach = max(map(len, self.request.stop_strings)) + STOP_SLACK
        text = base.tokenizer.decode(self.tokens[-reach:], skip_special_tokens=False)
        return any(stop in text for stop in self.request.stop_strings)

    def result(self) -> SampledTokens:
        """The sequence as the wire protocol's result."""
        topk = None
        if self.topk:
            ids, values = zip(*self.topk, strict=True)
            topk = TopK(np.array(ids, np.int32), np.array(values, np.float32))
        return SampledTokens(
            np.array(self.tokens, np.int32), np.array(self.logprobs, np.float32), self.stopped, topk
        )


class SequenceGroup:
    """The sequences of one request: its `num_samples` samples."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.sequences = [
            SequenceState(self, index) for index in range(request.wire_request.num_samples)
        ]


def sample_tokens(
    base: BaseModel, sequences: Sequence[SequenceState], logits: Tensor
) -> list[SequenceState]:
    """Sample the next token of every unfinished sequence from logits (sequences, V), appending it.

    Returns the sequences that finish with it.
    """
    going = [seq for seq in sequences if not seq.finished]
    if len(going) < len(sequences):
        keep = [index for index, seq in enumerate(sequences) if not seq.finished]
        logits = logits[torch.tensor(keep, device=logits.device)]
    asked = [seq.request.wire_request.sampling_params for seq in going]
    ruled = any(seq.request.wire_request.rules is not None for seq in going)
    tokens, logprobs = pick(
        _by_rules(logits, going) if ruled else logits,
        [params.temperature for params in asked],
        [params.top_k for params in asked],
        [params.top_p for params in asked],
        [seq.draw() for seq in going],
    )
    if ruled:  # the model's own
        chosen = torch.tensor(tokens, device=logits.device)[:, None]
        logprobs = torch.log_softmax(logits, dim=-1).gather(-1, chosen)[:, 0].tolist()
    if k := min(max(seq.request.wire_request.topk_sample_logprobs for seq in going), base.vocab):
        top = torch.log_softmax(logits, dim=-1).topk(k, dim=-1)
        for seq, ids, values in zip(going, top.indices.tolist(), top.values.tolist(), strict=True):
            if wanted := seq.request.wire_request.topk_sample_logprobs:
                seq.topk.append((ids[:wanted], values[:wanted]))
    for seq, token, logprob in zip(going, tokens, logprobs, strict=True):
        seq.append(base, token, logprob)
    return [seq for seq in going if seq.finished]


def _by_rules(logits: Tensor, sequences: Sequence[SequenceState]) -> Tensor:
    """The logits (sequences, V) that the sequences' `LogitRules` make of the model's."""
    changed = logits.clone()
    for row, seq in zip(changed, sequences, strict=True):
        rules = seq.request.wire_request.rules
        if rules is None:
            continue
        if seq.grammar is not None:
            seq.grammar.only(row)
        said = torch.tensor(seq.tokens, dtype=torch.long, device=row.device)
        if rules.repetition_penalty != 1.0:
            prompt = torch.from_numpy(seq.request.prompt).to(row.device)
            seen = torch.cat([prompt, said]).unique()
            own = row[seen]
            by = rules.repetition_penalty
            row[seen] = torch.where(own > 0, own / by, own * by)
        if rules.frequency_penalty or rules.presence_penalty:
            which, times = said.unique(return_counts=True)
            row[which] -= rules.frequency_penalty * times + rules.presence_penalty
        if rules.logit_bias:
            ids, bias = (torch.tensor(list(x), device=row.device)
                         for x in (rules.logit_bias.keys(), rules.logit_bias.values()))  # fmt: skip
            row[ids] += bias.to(row.dtype)
        if len(seq.tokens) < rules.min_tokens and seq.request.stop_ids:
            row[torch.tensor(sorted(seq.request.stop_ids), device=row.device)] = -torch.inf
        temperature = seq.request.wire_request.sampling_params.temperature
        if rules.min_p and temperature:
            scaled = row / temperature
            row[scaled < scaled.max() + math.log(rules.min_p)] = -torch.inf
    return changed
