"""The built-in losses, pure functions of target tokens' log-probabilities, each a SUM over tokens.

Notation: p is the policy being trained, q the one that sampled, r = p / q their ratio for each
token, A the advantage. Where datums have `weights` beside advantages, each token's term is
multiplied by its weight, so that 0 leaves a token out. Every tensor is flat over the tokens of a
micro-batch, shape (tokens, K):
K is 1 but for cross-entropy against K targets a position; units are nats.

Formulas: the Tinker documentation's table of losses; PPO is arXiv 1707.06347 eq. 7 with absolute
clip bounds on the ratio, CISPO is arXiv 2506.13585 eq. 4, DRO is arXiv 2405.19107 eq. 4 per token,
GSPO is the token-level variant of arXiv 2507.18071 eq. 13 and 14.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
Config = Mapping[str, float]


class LossError(ValueError):
    """A loss or a setting of it does not exist, or has the wrong type."""


def cross_entropy(logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-sum w log p. Weights may be negative: the SDK's `forward_backward_custom`, which computes a
    loss on the client, sends the loss's gradient as weights."""
    return -(inputs["weights"] * logp).sum()


def importance_sampling(logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-sum r A: the policy gradient with an importance ratio for each token, unclipped."""
    return -_sum(torch.exp(logp - inputs["logprobs"]) * inputs["advantages"], inputs)


def ppo(logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-sum min(r A, clip(r) A), PPO's clipped surrogate: a token that is clipped has no
    gradient."""
    ratio, advantages = torch.exp(logp - inputs["logprobs"]), inputs["advantages"]
    clipped = torch.clamp(ratio, *_bounds(inputs, config))
    return -_sum(torch.minimum(ratio * advantages, clipped * advantages), inputs)


def cispo(logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-sum stopgrad(clip(r)) A log p.

    The clipped ratio is a detached weight: it scales a token's gradient, A d(log p), and never
    zeroes it, whereas PPO's clip drops the gradient of the tokens that it clips.
    """
    ratio = torch.exp(logp.detach() - inputs["logprobs"])
    weight = torch.clamp(ratio, *_bounds(inputs, config))
    return -_sum(weight * logp * inputs["advantages"], inputs)


def dro(logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-sum (A log p - beta/2 (log p - log q)^2): policy gradient with a quadratic penalty on drift
    from the sampling policy."""
    drift = logp - inputs["logprobs"]
    return -_sum(inputs["advantages"] * logp - 0.5 * config["beta"] * drift.square(), inputs)


def gspo(logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-sum min(s_t A, clip(s_t) A), with s_t = stopgrad(s) p / stopgrad(p): the value of s_t is the
    ratio s of the token's sequence, its gradient is that of the token's own log p.

    s = exp(mean of log p - log q over the tokens whose `sequence_ratio_mask` is not 0; without one,
    over those whose advantage is not 0, which are the sampled ones wherever there is a gradient).
    `inputs["datum"]` (tokens, 1) int64 says which sequence a token belongs to.
    """
    datum, marked = inputs["datum"], inputs.get("sequence_ratio_mask", inputs["advantages"]) != 0
    drift = torch.where(marked, logp.detach() - inputs["logprobs"], 0.0)
    sums = torch.zeros((int(datum.max()) + 1, 1), dtype=logp.dtype, device=logp.device)
    counts = sums.scatter_add(0, datum, marked.to(logp.dtype))
    mean = sums.scatter_add(0, datum, drift) / counts.clamp_min(1)
    ratio, advantages = torch.exp(mean[datum[:, 0]] + logp - logp.detach()), inputs["advantages"]
    clipped = torch.clamp(ratio, *_bounds(inputs, config))
    return -_sum(torch.minimum(ratio * advantages, clipped * advantages), inputs)


def _sum(terms: Tensor, inputs: Inputs) -> Tensor:
    """The terms of all tokens, each times its weight where the datums have weights."""
    weights = inputs.get("weights")
    return (terms if weights is None else weights * terms).sum()


def _bounds(inputs: Inputs, config: Config) -> tuple[Tensor, Tensor]:
    """The clip bounds on the ratio: per token if the datum has them, else from the
    configuration."""
    low, high = (
        inputs.get(key, torch.as_tensor(config[key], dtype=inputs["logprobs"].dtype))
        for key in ("clip_low_threshold", "clip_high_threshold")
    )
    return low.to(inputs["logprobs"].device), high.to(inputs["logprobs"].device)


@dataclass(frozen=True)
class LossDefinition:
    """A built-in loss: its function, the datum inputs that it reads beside `target_tokens`, and its
    settings with their defaults."""

    fn: Callable[[Tensor, Inputs, Config], Tensor]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    config: Mapping[str, float] = field(default_factory=dict)
    many_targets: bool = False  # whether targets may be (tokens, K)
    by_sequence: bool = False  # whether it reads `datum`, the index of each token's sequence


_POLICY = ("logprobs", "advantages")
_CLIP = ("clip_low_threshold", "clip_high_threshold")
_WEIGHTS = ("weights",)

LOSSES: dict[str, LossDefinition] = {
    "cross_entropy": LossDefinition(cross_entropy, optional=("weights",), many_targets=True),
    "importance_sampling": LossDefinition(importance_sampling, _POLICY, _WEIGHTS),
    "ppo": LossDefinition(
        ppo, _POLICY, _CLIP + _WEIGHTS, dict(zip(_CLIP, (0.8, 1.2), strict=True))
    ),
    "cispo": LossDefinition(
        cispo, _POLICY, _CLIP + _WEIGHTS, dict(zip(_CLIP, (0.0, 4.0), strict=True))
    ),
    "dro": LossDefinition(dro, _POLICY, _WEIGHTS, config={"beta": 0.05}),
    # The clip range of the paper's section 5.1: a sequence's ratio moves far less than a token's.
    "gspo": LossDefinition(
        gspo,
        _POLICY,
        ("sequence_ratio_mask", *_CLIP, *_WEIGHTS),
        dict(zip(_CLIP, (1 - 3e-4, 1 + 4e-4), strict=True)),
        by_sequence=True,
    ),
}

_ELSEWHERE = {
    "stable_reinforce": "its definition is not published, so nobody can check an implementation: "
    "use `ppo`, or have it computed in its place (ptl serve --substitute stable_reinforce=ppo)",
    "custom": "give it the `loss_id` that create_custom_loss returned",
}


def find(name: str) -> LossDefinition:
    """The loss called `name`. Raises LossError, with what to use instead, if there is none."""
    if name in LOSSES:
        return LOSSES[name]
    advice = _ELSEWHERE.get(name, f"choose one of {', '.join(LOSSES)}")
    raise LossError(f"this engine has no loss {name!r}: {advice}")


def settings(name: str, given: Mapping[str, float | str]) -> dict[str, float]:
    """The loss's settings: defaults, overridden by `given`. Raises LossError for an unknown
    key or a value that is no number."""
    loss = find(name)
    for key, value in given.items():
        if key not in loss.config:
            known = ", ".join(loss.config) or "none"
            raise LossError(f"loss {name!r} has no setting {key!r} (it takes: {known})")
        if isinstance(value, str):
            raise LossError(f"loss {name!r}: setting {key!r} must be a number, not {value!r}")
    return {**loss.config, **{key: float(value) for key, value in given.items()}}


class _TokenLogprobs(torch.autograd.Function):
    """log p of the targets, without a second (tokens, V) tensor kept for the backward pass.

    d logp_k / d logits = onehot(target_k) - softmax(logits): one buffer, filled in place.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, logits: Tensor, targets: Tensor
    ) -> Tensor:
        normalizer = torch.logsumexp(logits, dim=-1, keepdim=True)
        ctx.save_for_backward(logits, targets, normalizer)
        return logits.gather(-1, targets) - normalizer

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        logits, targets, normalizer = ctx.saved_tensors  # type: ignore[attr-defined]
        (grad,) = grads
        out = torch.sub(logits, normalizer).exp_().mul_(-grad.sum(dim=-1, keepdim=True))
        return out.scatter_add_(-1, targets, grad.to(out.dtype)), None


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """log p of `targets` (..., K) int64 under `logits` (..., V): (..., K), in nats."""
    result: Tensor = _TokenLogprobs.apply(logits, targets)  # type: ignore[no-untyped-call]
    return result
