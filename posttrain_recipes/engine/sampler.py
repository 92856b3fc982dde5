"""What a request for samples asks for, log-probabilities of prompts, and the choice of a token.

Log-probabilities are the model's own, log-softmax of its logits, whatever the temperature, top-k
and top-p that chose the token: they are what a loss compares the trained model's with, and they
agree with the training forward pass. The SDK documents no other meaning.

A sequence keeps the token that ended it, as renderers expect; `stop` None means the model's
end-of-sequence tokens, a list replaces them, `[]` disables them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain_recipes.engine.backend import BaseModel
from posttrain_recipes.engine.losses import token_logprobs
from posttrain_recipes.engine.wire import (
    MASK_LOGPROB,
    RequestError,
    Sample,
    TopK,
)

MAX_TOPK = 100


@dataclass
class Ask:
    """A request made ready: checked, its stops and length resolved. `ticket` is the caller's."""

    ticket: Any
    request: Sample
    prompt: NDArray[np.int64]
    max_new: int
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    seed: int | None
    prompt_logprobs: NDArray[np.float32] | None = None
    prompt_topk: TopK | None = None
    last_logits: Tensor | None = None  # (V,), where the scoring pass can serve a single token


def ready(base: BaseModel, request: Sample, ticket: Any = None) -> Ask:
    """Check a request and resolve its defaults. Raises RequestError 422."""
    params, prompt = request.sampling_params, request.prompt.tokens()
    base.check_length(prompt.size, "prompt")
    base.check_ids(prompt, "prompt")
    room = None if base.context is None else base.context - prompt.size
    max_new = params.max_tokens if params.max_tokens is not None else room or 1024
    # The token of a request for scores comes with the scores: it needs no room.
    if room is not None and max_new > room and not (max_new == 1 and wants_scores(request)):
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
    return Ask(ticket, request, prompt, max_new, stop_ids, stop_strings, seed)


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
    if strings:
        try:
            base.tokenizer  # noqa: B018
        except (OSError, ValueError) as error:
            raise RequestError(
                422, f"stop: strings need the model's tokenizer, which does not load: {error}"
            ) from error
    return ids, strings


def wants_scores(request: Sample) -> bool:
    """Whether log-probabilities of the prompt are asked for."""
    return bool(request.prompt_logprobs) or request.topk_prompt_logprobs > 0


@torch.no_grad()
def score(base: BaseModel, asks: Sequence[Ask]) -> None:
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
