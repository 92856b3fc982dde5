"""Checking of generation requests, log-probabilities of prompts, and sampling from logits.

All log-probabilities are log-softmax of the model's logits, in nats, whatever the temperature,
top-k and top-p that a token was sampled with. So they agree with those of the training forward
pass, which is what the importance ratios of RL losses need.

A sequence keeps the token that ended it, as renderers expect; `stop` None means the model's
end-of-sequence tokens, a list replaces them, `[]` disables them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain_recipes.engine.generate.grammar import Grammar
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.model.decoder import DecoderWeights
from posttrain_recipes.engine.model.kernels import product
from posttrain_recipes.engine.model.packing import Packing
from posttrain_recipes.engine.train.losses import token_logprobs
from posttrain_recipes.engine.wire import (
    MASK_LOGPROB,
    MAX_SAMPLES,
    AltTokens,
    Cells,
    LogitRules,
    RequestError,
    SampleRequest,
    TensorData,
    TopK,
    cells,
)

MAX_TOPK = 100
BLOCK = 128  # tokens of the vocabulary whose probabilities are summed first
MAX_TARGETS = 4096  # ids scored at a position
_ALTERNATIVES = 1 << 32  # takes the place of a sample's index in the random generator's seed


@dataclass
class GenerationRequest:
    """A checked request, its stop conditions and length resolved, and its prompt's scores.

    `ticket` is what the caller tells it by. The fields from `prompt_logprobs` on are filled in by
    `score` as far as the request asks for them.
    """

    ticket: Any
    wire_request: SampleRequest
    prompt: NDArray[np.int64]
    max_new: int
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    seed: int | None
    prompt_logprobs: NDArray[np.float32] | None = None
    prompt_topk: TopK | None = None
    targets: Cells | None = None
    target_logprobs: Cells | None = None
    alt_tokens: AltTokens | None = None
    last_logits: Tensor | None = None  # (V,), after the prompt, kept where max_new is 1
    grammar: Grammar | None = None  # at the beginning of each of its replies


def prepare(base: BaseModel, wire_request: SampleRequest, ticket: Any = None) -> GenerationRequest:
    """Check a request and resolve its defaults. Raises RequestError 422, naming what is wrong."""
    params, prompt = wire_request.sampling_params, wire_request.prompt.tokens()
    base.check_length(prompt.size, "prompt")
    base.check_ids(prompt, "prompt")
    room = None if base.context is None else base.context - prompt.size
    max_new = params.max_tokens if params.max_tokens is not None else room or 1024
    # A request for scores samples its one token from the scoring pass: it needs no room.
    if room is not None and max_new > room and not (max_new == 1 and wants_scores(wire_request)):
        raise RequestError(
            422,
            f"prompt length plus max_tokens exceeds the model's context window: "
            f"{prompt.size} + {max_new} > {base.context}",
        )
    last_n = wire_request.prompt_logprobs_last_n
    checks = {
        "max_tokens must be at least 1": max_new >= 1,
        f"num_samples must be between 1 and {MAX_SAMPLES}": 1
        <= wire_request.num_samples
        <= MAX_SAMPLES,
        "temperature must be a finite number from 0": 0 <= params.temperature < float("inf"),
        "top_p must be in (0, 1]": 0 < params.top_p <= 1,
        "top_k must be -1 (no limit) or at least 1": params.top_k >= -1,
        f"topk_prompt_logprobs and topk_sample_logprobs must be between 0 and {MAX_TOPK}": (
            0 <= wire_request.topk_prompt_logprobs <= MAX_TOPK
            and 0 <= wire_request.topk_sample_logprobs <= MAX_TOPK
        ),
        "prompt_logprobs_last_n must be between 1 and len(prompt) - 1": (
            last_n is None or 1 <= last_n < prompt.size
        ),
        f"prompt_alt_tokens_k must be between 0 and {MAX_TOPK}": (
            0 <= wire_request.prompt_alt_tokens_k <= MAX_TOPK
        ),
    }
    for message, satisfied in checks.items():
        if not satisfied:
            raise RequestError(422, message)
    if wire_request.rules is not None:
        _check_rules(base, wire_request.rules)
    stop_ids, stop_strings = _stops(base, params.stop)
    seed = None if params.seed is None else params.seed & (2**64 - 1)
    request = GenerationRequest(ticket, wire_request, prompt, max_new, stop_ids, stop_strings, seed)
    if wire_request.rules is not None and wire_request.rules.grammar:
        request.grammar = Grammar.of(base, wire_request.rules.grammar)
    if wire_request.target_prompt_logprobs is not None:
        request.targets = _targets(base, prompt.size, wire_request.target_prompt_logprobs)
    return request


def _check_rules(base: BaseModel, rules: LogitRules) -> None:
    if rules.grammar and rules.min_tokens:
        raise RequestError(400, "min_tokens: a reply in a form ends where the form does")
    if rules.logit_bias:
        base.check_ids(np.array(list(rules.logit_bias), dtype=np.int64), "logit_bias")
        if not all(-100 <= bias <= 100 for bias in rules.logit_bias.values()):
            raise RequestError(422, "logit_bias: each must be between -100 and 100")


def _targets(base: BaseModel, size: int, tensor: TensorData) -> Cells:
    """The ids to score at each position of a prompt of `size` tokens; -1 means none."""
    what = "target_prompt_logprobs"
    wanted = cells(tensor, what)
    if wanted.shape[0] != size - 1 or wanted.shape[1] > MAX_TARGETS:
        raise RequestError(
            422, f"{what} must have len(prompt) - 1 = {size - 1} rows and at most {MAX_TARGETS} "
            f"columns, not {list(wanted.shape)}",
        )  # fmt: skip
    ids = wanted.values[wanted.values != -1]
    if not ids.size:
        raise RequestError(422, f"{what} names no token id: all its cells are -1")
    base.check_ids(ids, what)
    return wanted


def _stops(
    base: BaseModel, stop: str | Sequence[int | str] | None
) -> tuple[frozenset[int], tuple[str, ...]]:
    if stop is None:
        return frozenset(base.eos_ids()), ()
    items = [stop] if isinstance(stop, str) else list(stop)
    ids = frozenset(item for item in items if isinstance(item, int))
    strings = tuple(item for item in items if isinstance(item, str))
    if "" in strings:
        raise RequestError(422, "stop: an empty string would stop everything")
    if strings:
        try:
            base.tokenizer  # noqa: B018
        except (OSError, ValueError) as error:
            raise RequestError(
                422, f"stop: strings need the model's tokenizer, which does not load: {error}"
            ) from error
    return ids, strings


def wants_scores(wire_request: SampleRequest) -> bool:
    """Whether a request asks for any log-probabilities of its prompt."""
    return (
        bool(wire_request.prompt_logprobs)
        or wire_request.topk_prompt_logprobs > 0
        or wire_request.target_prompt_logprobs is not None
        or wire_request.prompt_alt_tokens_k > 0
    )


def score(
    base: BaseModel, requests: Sequence[GenerationRequest], weights: DecoderWeights | None
) -> None:
    """Fill in the prompt log-probabilities of `requests`, with one forward pass over each prompt.

    The pass also gives the logits of the only token of a request with max_tokens=1, which is what
    the SDK's `compute_logprobs` sends. `weights` are those of the engine's own decoder, None for a
    model run by transformers.
    """
    sizes = [request.prompt.size for request in requests]
    if weights is None:
        for chosen in base.batches(sizes):
            _score(base, [requests[i] for i in chosen], None)
        return
    shares = base.shares(sizes)

    def run(which: int) -> None:
        for chosen in shares[which]:
            _score(base, [requests[i] for i in chosen], weights)

    base.each(run, len(shares))


@torch.no_grad()
def _score(
    base: BaseModel, batch: Sequence[GenerationRequest], weights: DecoderWeights | None
) -> None:
    if weights is None or base.decoder is None:
        logits = base.logits([request.prompt for request in batch])
        for row, request in enumerate(batch):
            _fill(base, request, logits[row, : request.prompt.size])
        return
    packing = Packing([request.prompt.size for request in batch], base.device)
    ids = torch.from_numpy(np.concatenate([request.prompt for request in batch])).to(base.device)
    hidden = base.decoder.forward(weights, ids, packing)
    parts = hidden.split([request.prompt.size for request in batch])
    for request, part in zip(batch, parts, strict=True):
        _fill(base, request, product(part, weights.head).float())


def _fill(base: BaseModel, request: GenerationRequest, logits: Tensor) -> None:
    """What a request asks for of its prompt's logits, (prompt, V)."""
    size = request.prompt.size
    if request.max_new == 1:
        request.last_logits = logits[size - 1].clone()
    first = size - (request.wire_request.prompt_logprobs_last_n or size - 1)  # nothing precedes 0
    before = logits[first - 1 : size - 1]
    if request.wire_request.prompt_logprobs:
        targets = torch.from_numpy(request.prompt[first:, None]).to(base.device)
        request.prompt_logprobs = np.full(size, np.nan, np.float32)
        request.prompt_logprobs[first:] = token_logprobs(before, targets)[:, 0].cpu().numpy()
    if k := min(request.wire_request.topk_prompt_logprobs, base.vocab):
        ids = np.zeros((size, k), np.int32)
        values = np.full((size, k), MASK_LOGPROB, np.float32)
        top = torch.log_softmax(before, dim=-1).topk(k, dim=-1)
        ids[first:], values[first:] = top.indices.cpu().numpy(), top.values.cpu().numpy()
        request.prompt_topk = TopK(ids, values)
    if request.targets is not None:
        request.target_logprobs = _score_targets(logits[: size - 1], request.targets)
    if request.wire_request.prompt_alt_tokens_k:
        request.alt_tokens = _draw_alternatives(logits[: size - 1], request)


def _score_targets(before: Tensor, wanted: Cells) -> Cells:
    """The log-probabilities of the cells' ids; before (n - 1, V) are the logits of each row."""
    named = wanted.values != -1
    rows = torch.from_numpy(wanted.row[named]).to(before.device)
    ids = torch.from_numpy(wanted.values[named]).to(before.device)
    found = before[rows, ids] - torch.logsumexp(before, dim=-1)[rows]
    values = np.zeros(wanted.values.shape, np.float32)
    values[named] = found.cpu().numpy()
    return replace(wanted, values=values)


def _draw_alternatives(before: Tensor, request: GenerationRequest) -> AltTokens:
    """k tokens drawn at each position, at the request's temperature, with replacement."""
    count, k = before.shape[0], request.wire_request.prompt_alt_tokens_k
    entropy = None if request.seed is None else [request.seed, _ALTERNATIVES]
    draws = np.random.default_rng(entropy).random((count, k))
    tokens, logprobs = np.zeros((count, k), np.int64), np.zeros((count, k), np.float32)
    temperature = [request.wire_request.sampling_params.temperature] * count
    for j in range(k):
        chosen = pick(before, temperature, [-1] * count, [1.0] * count, draws[:, j].tolist())
        tokens[:, j], logprobs[:, j] = chosen
    return AltTokens(tokens, logprobs)


def pick(
    logits: Tensor,
    temperatures: Sequence[float],
    top_ks: Sequence[int],
    top_ps: Sequence[float],
    draws: Sequence[float],
) -> tuple[list[int], list[float]]:
    """Sample one token a row from logits (R, V) float32, by inverting the CDF at `draws` in [0, 1).

    Temperature is applied first, then top-k, then top-p; temperature 0 is greedy. Returns the
    tokens and their log-probabilities, in nats, under the unmodified distribution.
    """
    device, vocab = logits.device, logits.shape[-1]
    limited = any(0 < k < vocab for k in top_ks) or any(p < 1 for p in top_ps)
    if set(temperatures) == {1.0} and not limited:
        return _pick_plain(logits, draws)
    logprobs_all = torch.log_softmax(logits, dim=-1)
    if not any(temperatures):
        chosen = logprobs_all.argmax(dim=-1, keepdim=True)
    else:
        temperature = torch.tensor(temperatures, device=device, dtype=logits.dtype)[:, None]
        probs = torch.softmax(logprobs_all / temperature.clamp_min(1e-6), dim=-1)
        if limited:
            probs = probs * _allowed(probs, top_ks, top_ps)
        chosen = _invert(probs, torch.tensor(draws, device=device, dtype=logits.dtype)[:, None])
        if 0.0 in temperatures:
            chosen = torch.where(
                temperature == 0, logprobs_all.argmax(dim=-1, keepdim=True), chosen
            )
    logprobs = logprobs_all.gather(-1, chosen)[:, 0]
    return chosen[:, 0].tolist(), logprobs.tolist()


def _pick_plain(logits: Tensor, draws: Sequence[float]) -> tuple[list[int], list[float]]:
    """`pick` at temperature 1 without limits. It passes over the vocabulary twice, where
    log-softmax, exp and cumsum do seven times, and makes one tensor of that size instead of three:
    in small models that is a fifth of a token's time."""
    mass = torch.softmax(logits, dim=-1)
    at = torch.tensor(draws, device=logits.device, dtype=logits.dtype)[:, None]
    blocks = _block_masses(mass)
    chosen = _invert(mass, at, blocks)
    logprobs = (mass.gather(-1, chosen) / blocks.sum(dim=-1, keepdim=True)).log()
    return chosen[:, 0].tolist(), logprobs[:, 0].tolist()


def _block_masses(mass: Tensor) -> Tensor:
    """The sums (R, blocks) of `mass` (R, V) over `BLOCK` tokens each, the last over what is
    left."""
    vocab = mass.shape[-1]
    whole = vocab - vocab % BLOCK
    sums = mass[:, :whole].view(mass.shape[0], whole // BLOCK, BLOCK).sum(dim=-1)
    return torch.cat([sums, mass[:, whole:].sum(dim=-1, keepdim=True)], dim=-1)


def _invert(mass: Tensor, draws: Tensor, blocks: Tensor | None = None) -> Tensor:
    """The token (R, 1) at which the cumulated `mass` (R, V) passes the share `draws` (R, 1) of all.

    It is looked for in the blocks first, and then in one of them. A token without mass is never
    found.
    """
    vocab = mass.shape[-1]
    sums = _block_masses(mass) if blocks is None else blocks
    upto = sums.cumsum(dim=-1)
    at = _below(draws * upto[:, -1:], upto[:, -1:])
    block = torch.searchsorted(upto, at, right=True).clamp_max_(sums.shape[-1] - 1)
    columns = block * BLOCK + torch.arange(BLOCK, device=mass.device)
    inside = mass.gather(-1, columns.clamp_max(vocab - 1)).masked_fill_(columns >= vocab, 0.0)
    passed = inside.cumsum(dim=-1)
    before = upto.gather(-1, block) - sums.gather(-1, block)
    rest = _below((at - before).clamp_min_(0.0), passed[:, -1:])
    return block * BLOCK + torch.searchsorted(passed, rest, right=True).clamp_max_(BLOCK - 1)


def _below(at: Tensor, total: Tensor) -> Tensor:
    """`at`, but less than the total: rounding up to it would select a token after the last one that
    has any mass."""
    return torch.minimum(at, torch.nextafter(total, torch.zeros_like(total)))


def _allowed(probs: Tensor, top_ks: Sequence[int], top_ps: Sequence[float]) -> Tensor:
    """The tokens that top-k and then top-p allow, (R, V) bool, in vocabulary order.

    The order matters: a row without limits must sample the same token whether or not other rows of
    the batch have limits.
    """
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
