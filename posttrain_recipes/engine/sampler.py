"""Generation in batches with a KV cache, and log-probabilities of prompts.

Log-probabilities are the model's own, log-softmax of its logits, whatever the temperature, top-k
and top-p that chose the token: they are what a loss compares the trained model's with, and they
agree with the training forward pass. The SDK documents no other meaning.

A prompt is prefilled once and expanded to its samples. Sample i of a request with seed s draws from
a generator seeded with (s, i), one uniform number a token, so what it draws does not depend on what
else is in the batch. A sequence keeps the token that ended it, as renderers expect; `stop` None
means the model's end-of-sequence tokens, a list replaces them, `[]` disables them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain_recipes.engine.backend import BaseModel
from posttrain_recipes.engine.cache import new_cache
from posttrain_recipes.engine.lora import Snapshot
from posttrain_recipes.engine.losses import token_logprobs
from posttrain_recipes.engine.wire import (
    MASK_LOGPROB,
    RequestError,
    Sample,
    SampledTokens,
    SampleResult,
    TopK,
)

MAX_ROWS = 256  # sequences generated together
MAX_TOPK = 100
CACHE_BUDGET = {"cpu": 1 << 31, "cuda": 1 << 34}  # bytes of keys and values, padding included
STOP_SLACK = 16  # tokens decoded beyond a stop string's length: some decode to nothing
DRAW_BLOCK = 128  # uniform numbers drawn at a time for each sequence


@dataclass
class _Ask:
    """A request made ready: checked, its stops and length resolved."""

    request: Sample
    prompt: NDArray[np.int64]
    max_new: int
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    seed: int | None
    prompt_logprobs: NDArray[np.float32] | None = None
    prompt_topk: TopK | None = None
    last_logits: Tensor | None = None  # (V,), where the scoring pass can serve a single token
    sequences: list[SampledTokens] = field(default_factory=list)


@torch.no_grad()
def sample(
    base: BaseModel, snapshot: Snapshot | None, requests: Sequence[Sample]
) -> list[SampleResult | RequestError]:
    """Answer requests for samples from one set of weights. A request at fault gets its own error;
    the others are served."""
    answers: list[SampleResult | RequestError | None] = [None] * len(requests)
    asks: dict[int, _Ask] = {}
    for index, request in enumerate(requests):
        try:
            asks[index] = _ready(base, request)
        except RequestError as error:
            answers[index] = error
    with base.using(base.sampling_view(snapshot)):
        scored = [a for a in asks.values() if _wants_scores(a)]
        if scored:
            _score(base, scored)
        _generate(base, list(asks.values()))
    for index, ask in asks.items():
        answers[index] = SampleResult(ask.sequences, ask.prompt_logprobs, ask.prompt_topk)
    return [answer for answer in answers if answer is not None]


def _ready(base: BaseModel, request: Sample) -> _Ask:
    """Check a request and resolve its defaults. Raises RequestError 422."""
    params, prompt = request.sampling_params, request.prompt.tokens()
    base.check_length(prompt.size, "prompt")
    base.check_ids(prompt, "prompt")
    room = None if base.context is None else base.context - prompt.size
    max_new = params.max_tokens if params.max_tokens is not None else room or 1024
    if room is not None and max_new > room:
        raise RequestError(
            422,
            f"prompt length plus max_tokens exceeds the model's context window: "
            f"{prompt.size} + {max_new} > {base.context}",
        )
    last_n = request.prompt_logprobs_last_n
    checks = {
        "max_tokens must be at least 1": max_new >= 1,
        "num_samples must be between 1 and 4096": 1 <= request.num_samples <= 4096,
        "temperature must be a finite number from 0": 0 <= params.temperature < float("inf"),
        "top_p must be in (0, 1]": 0 < params.top_p <= 1,
        "top_k must be -1 (no limit) or at least 1": params.top_k >= -1,
        f"topk_prompt_logprobs and topk_sample_logprobs must be between 0 and {MAX_TOPK}": (
            0 <= request.topk_prompt_logprobs <= MAX_TOPK
            and 0 <= request.topk_sample_logprobs <= MAX_TOPK
        ),
        "prompt_logprobs_last_n must be between 1 and len(prompt) - 1": (
            last_n is None or 1 <= last_n < prompt.size
        ),
        "this engine does not serve target_prompt_logprobs: ask for prompt_logprobs or "
        "topk_prompt_logprobs": request.target_prompt_logprobs is None,
        "this engine does not serve prompt_alt_tokens_k: ask for topk_prompt_logprobs": (
            not request.prompt_alt_tokens_k
        ),
        "this engine records no stability information (stable_reinforce): train with `ppo`": (
            not request.record_stability_info
        ),
    }
    for message, satisfied in checks.items():
        if not satisfied:
            raise RequestError(422, message)
    stop_ids, stop_strings = _stops(base, params.stop)
    seed = None if params.seed is None else params.seed & (2**64 - 1)
    return _Ask(request, prompt, max_new, stop_ids, stop_strings, seed)


def _stops(
    base: BaseModel, stop: str | Sequence[int] | Sequence[str] | None
) -> tuple[frozenset[int], tuple[str, ...]]:
    if stop is None:
        return frozenset(base.eos_ids()), ()
    items = [stop] if isinstance(stop, str) else list(stop)
    ids = frozenset(item for item in items if isinstance(item, int))
    strings = tuple(item for item in items if isinstance(item, str))
    if "" in strings:
        raise RequestError(422, "stop: an empty string would stop everything")
    return ids, strings


def _wants_scores(ask: _Ask) -> bool:
    return bool(ask.request.prompt_logprobs) or ask.request.topk_prompt_logprobs > 0


def _score(base: BaseModel, asks: Sequence[_Ask]) -> None:
    """Fill in prompt log-probabilities, one pass over each prompt; it also serves the only token
    of a request with max_tokens=1, which is how `compute_logprobs` asks."""
    for chosen in base.batches([ask.prompt.size for ask in asks]):
        batch = [asks[i] for i in chosen]
        logits = base.logits([ask.prompt for ask in batch])
        for row, ask in enumerate(batch):
            size = ask.prompt.size
            if ask.max_new == 1:
                ask.last_logits = logits[row, size - 1].clone()
            first = size - (ask.request.prompt_logprobs_last_n or size - 1)  # nothing precedes 0
            before = logits[row, first - 1 : size - 1]
            if ask.request.prompt_logprobs:
                targets = torch.from_numpy(ask.prompt[first:, None]).to(base.device)
                ask.prompt_logprobs = np.full(size, np.nan, np.float32)
                ask.prompt_logprobs[first:] = token_logprobs(before, targets)[:, 0].cpu().numpy()
            if k := min(ask.request.topk_prompt_logprobs, base.vocab):
                ids = np.zeros((size, k), np.int32)
                values = np.full((size, k), MASK_LOGPROB, np.float32)
                top = torch.log_softmax(before, dim=-1).topk(k, dim=-1)
                ids[first:], values[first:] = top.indices.cpu().numpy(), top.values.cpu().numpy()
                ask.prompt_topk = TopK(ids, values)


# Generation ----------------------------------------------------------------------------------


class _Row:
    """One sequence being generated."""

    def __init__(self, ask: _Ask, sample: int) -> None:
        self.ask = ask
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.topk: list[tuple[list[int], list[float]]] = []
        self.stopped = False
        entropy = None if ask.seed is None else [ask.seed, sample]
        self._rng = np.random.default_rng(entropy)
        self._draws: NDArray[np.float64] = np.zeros(0)

    def draw(self) -> float:
        """The uniform number in [0, 1) that chooses the next token."""
        at = len(self.tokens) % DRAW_BLOCK
        if at == 0:
            self._draws = self._rng.random(DRAW_BLOCK)
        return float(self._draws[at])

    def take(self, base: BaseModel, token: int, logprob: float) -> bool:
        """Append a token; whether the sequence ends with it."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        ask = self.ask
        self.stopped = token in ask.stop_ids or (bool(ask.stop_strings) and self._matched(base))
        return self.stopped or len(self.tokens) >= ask.max_new

    def _matched(self, base: BaseModel) -> bool:
        reach = max(map(len, self.ask.stop_strings)) + STOP_SLACK
        text = base.tokenizer.decode(self.tokens[-reach:], skip_special_tokens=False)
        return any(stop in text for stop in self.ask.stop_strings)

    def sequence(self) -> SampledTokens:
        topk = None
        if self.topk:
            ids, values = zip(*self.topk, strict=True)
            topk = TopK(np.array(ids, np.int32), np.array(values, np.float32))
        return SampledTokens(
            np.array(self.tokens, np.int32), np.array(self.logprobs, np.float32), self.stopped, topk
        )


def _generate(base: BaseModel, asks: Sequence[_Ask]) -> None:
    """Fill in every request's sequences, in its own order."""
    rows = {id(ask): [_Row(ask, i) for i in range(ask.request.num_samples)] for ask in asks}
    single = [row for ask in asks if ask.last_logits is not None for row in rows[id(ask)]]
    for start in range(0, len(single), MAX_ROWS):
        part = single[start : start + MAX_ROWS]
        logits = torch.stack(
            [row.ask.last_logits for row in part if row.ask.last_logits is not None]
        )
        _choose(base, part, logits)
    # Prompts of like length go together; those that may run long last, so that the short finish.
    rest = [row for ask in asks if ask.last_logits is None for row in rows[id(ask)]]
    rest.sort(key=lambda row: (row.ask.prompt.size, row.ask.max_new))
    while rest:
        count = _fitting(base, rest)
        _generate_rows(base, rest[:count])
        rest = rest[count:]
    for ask in asks:
        ask.sequences = [row.sequence() for row in rows[id(ask)]]


def _fitting(base: BaseModel, rows: Sequence[_Row]) -> int:
    """How many of the rows, sorted by length, may run together within the cache's budget."""
    config = base.model.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", 1)
    heads = getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 1) // heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    per_token = 2 * layers * heads * width * base.model.dtype.itemsize
    budget = CACHE_BUDGET["cuda" if base.device.type == "cuda" else "cpu"]
    longest = 0
    for count, row in enumerate(rows[:MAX_ROWS], start=1):
        longest = max(longest, row.ask.prompt.size + row.ask.max_new)
        if count > 1 and count * longest * per_token > budget:
            return count - 1
    return min(len(rows), MAX_ROWS)


def _generate_rows(base: BaseModel, rows: list[_Row]) -> None:
    """Generate the rows together: prefill each prompt once, expand, then a token at a time."""
    device = base.device
    prompts = list({id(row.ask): row.ask for row in rows}.values())
    width = max(ask.prompt.size for ask in prompts)
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    mask = np.zeros((len(prompts), width), dtype=np.int64)
    for index, ask in enumerate(prompts):
        ids[index, width - ask.prompt.size :] = ask.prompt
        mask[index, width - ask.prompt.size :] = 1
    position = {id(ask): index for index, ask in enumerate(prompts)}
    expand = torch.tensor([position[id(row.ask)] for row in rows], device=device)
    attention = torch.from_numpy(mask).to(device)
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(device)}
    padded = not mask.all()
    out = _forward(base, inputs, attention, padded, new_cache(base.model.config))
    cache, logits = out.past_key_values, out.logits[:, -1].float()[expand]
    if len(rows) != len(prompts):
        cache.batch_select_indices(expand)
    attention = attention[expand]
    while True:
        alive = _choose(base, rows, logits)
        if not any(alive):
            return
        if sum(alive) <= 0.8 * len(rows):  # shedding finished rows costs a copy of the cache
            keep = torch.tensor([i for i, on in enumerate(alive) if on], device=device)
            rows = [row for row, on in zip(rows, alive, strict=True) if on]
            cache.batch_select_indices(keep)
            attention = attention[keep]
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
        last = torch.tensor([[row.tokens[-1]] for row in rows], device=device)
        out = _forward(base, {"input_ids": last}, attention, padded, cache)
        logits = out.logits[:, -1].float()


def _forward(
    base: BaseModel, inputs: dict[str, Any], attention: Tensor, padded: bool, cache: Any
) -> Any:
    """One pass with the cache. Without padding the mask is left out, which is faster."""
    if padded:
        positions = attention.cumsum(-1).sub_(1).clamp_min_(0)
        inputs["position_ids"] = positions[:, -inputs["input_ids"].shape[1] :]
        inputs["attention_mask"] = attention
    if base.keeps_logits:
        inputs["logits_to_keep"] = 1
    return base.model(**inputs, past_key_values=cache, use_cache=True)


def _choose(base: BaseModel, rows: Sequence[_Row], logits: Tensor) -> list[bool]:
    """Give every unfinished row its next token from logits (rows, V). Which rows go on."""
    tokens, logprobs = pick(
        logits,
        [row.ask.request.sampling_params.temperature for row in rows],
        [row.ask.request.sampling_params.top_k for row in rows],
        [row.ask.request.sampling_params.top_p for row in rows],
        [0.0 if _over(row) else row.draw() for row in rows],
    )
    k = max(row.ask.request.topk_sample_logprobs for row in rows)
    if k:
        top = torch.log_softmax(logits, dim=-1).topk(min(k, base.vocab), dim=-1)
        ids, values = top.indices.tolist(), top.values.tolist()
    alive = []
    for index, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True)):
        if _over(row):
            alive.append(False)
            continue
        if wanted := row.ask.request.topk_sample_logprobs:
            row.topk.append((ids[index][:wanted], values[index][:wanted]))
        alive.append(not row.take(base, token, logprob))
    return alive


def _over(row: _Row) -> bool:
    return row.stopped or len(row.tokens) >= row.ask.max_new


def pick(
    logits: Tensor,
    temperatures: Sequence[float],
    top_ks: Sequence[int],
    top_ps: Sequence[float],
    draws: Sequence[float],
) -> tuple[list[int], list[float]]:
    """Choose one token a row from logits (R, V) float32 by inverting the distribution's CDF at
    `draws` in [0, 1). Temperature first, then top-k, then top-p; temperature 0 takes the likeliest.

    Returns tokens and their log-probabilities under the unmodified distribution.
    """
    device, vocab = logits.device, logits.shape[-1]
    normalizer = torch.logsumexp(logits, dim=-1)
    if not any(temperatures):
        chosen = logits.argmax(dim=-1, keepdim=True)
    else:
        heat = torch.tensor(temperatures, device=device, dtype=logits.dtype)[:, None]
        scaled = logits if set(temperatures) == {1.0} else logits / heat.clamp_min(1e-6)
        probs = torch.softmax(scaled, dim=-1, dtype=torch.float64)
        if any(0 < k < vocab for k in top_ks) or any(p < 1 for p in top_ps):
            probs = probs * _allowed(probs, top_ks, top_ps)
        mass = probs.cumsum(dim=-1)
        at = torch.tensor(draws, device=device, dtype=torch.float64)[:, None] * mass[:, -1:]
        chosen = torch.searchsorted(mass, at, right=True).clamp_max_(vocab - 1)
        if 0.0 in temperatures:
            chosen = torch.where(heat == 0, logits.argmax(dim=-1, keepdim=True), chosen)
    logprobs = logits.gather(-1, chosen)[:, 0] - normalizer
    return chosen[:, 0].tolist(), logprobs.tolist()


def _allowed(probs: Tensor, top_ks: Sequence[int], top_ps: Sequence[float]) -> Tensor:
    """Which tokens top-k and then top-p leave, (R, V) bool, in vocabulary order: a row without
    limits must draw the same token whether or not its neighbours have some."""
    device, vocab = probs.device, probs.shape[-1]
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    limit = torch.tensor([k if k > 0 else vocab for k in top_ks], device=device)[:, None]
    kept = torch.arange(vocab, device=device) < limit
    ranked = ranked * kept
    ranked = ranked / ranked.sum(dim=-1, keepdim=True)
    nucleus = torch.tensor(top_ps, device=device, dtype=probs.dtype)[:, None]
    ahead = ranked.cumsum(dim=-1) - ranked  # the mass before a token: the first always stays
    kept = kept & ((ahead < nucleus) | (nucleus >= 1))
    return torch.zeros_like(kept).scatter_(-1, order, kept)
