"""Entropy of the policy: a bonus on it, and a loss of the tokens alone at which it is high.

No engine sends logits. A bonus needs none: the gradient of the entropy is that of a reward of
-log q for each token that was drawn (Williams and Peng 1991, doi 10.1080/09540099108946587). Which
tokens are uncertain is told by the likeliest 20 tokens at each place, read by the policy that
sampled, and by one for all the rest: a bound from below, and exact where those 20 are all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from posttrain_recipes.options import PluginConfig
from posttrain_recipes.training.requests import sample
from posttrain_recipes.training.rl.rollout import Group, Rollout
from posttrain_recipes.waiting import CancellableWaiter

if TYPE_CHECKING:
    import tinker

K = 20
"""Of the likeliest tokens: the most that hosted Tinker tells."""


class EntropyConfig(PluginConfig):
    """Options of what is done about the policy's entropy."""

    entropy_bonus: float = Field(default=0.0, ge=0)
    """What a nat of the policy's entropy adds, in units of the advantage: -log q of each token less
    the mean of its group, times this. A group whose rewards are all the same has none."""
    top_entropy: float | None = Field(default=None, gt=0, lt=1)
    """Learn from this share of a batch's tokens alone, those at which the policy was least certain,
    as 0.2: Wang et al. 2025, arXiv 2506.01939. Takes a prefill of each reply."""

    def bonus(self, drawn: Sequence[float], mean: float) -> list[float]:
        """What entropy adds to the advantage of each token (T,).

        Args:
            drawn: log q of the tokens that were sampled (T,), in nats.
            mean: -log q of a token of the group, in the mean.
        """
        if not self.entropy_bonus:
            return [0.0] * len(drawn)
        return [self.entropy_bonus * (-logprob - mean) for logprob in drawn]


def entropy(logprobs: Sequence[float]) -> float:
    """Of a place, in nats, from the log-probabilities of its likeliest tokens (K,)."""
    known = [p for p in logprobs if math.isfinite(p)]
    rest = 1.0 - math.fsum(math.exp(p) for p in known)
    tail = -rest * math.log(rest) if rest > 0 else 0.0
    return tail - math.fsum(p * math.exp(p) for p in known)


Asked = list[list["tinker.APIFuture[tinker.SampleResponse]"]]


def ask(rollouts: Sequence[Rollout], sampler: tinker.SamplingClient) -> Asked:
    """Have the sampler's weights tell the likeliest tokens along rollouts, without waiting."""
    return [
        [sample(sampler, one.tokens, 1, max_tokens=1, prompt_top_k=K) for one in rollout.segments]
        for rollout in rollouts
    ]  # type: ignore[misc]  # one completion is one request


def take(rollouts: Sequence[Rollout], asked: Asked, waiter: CancellableWaiter) -> None:
    """Keep the entropies that were asked for."""
    for rollout, futures in zip(rollouts, asked, strict=bool(asked)):
        for segment, future in zip(rollout.segments, futures, strict=True):
            rows = waiter(future).topk_prompt_logprobs_np
            assert rows is not None, "the likeliest were asked for"
            told = [entropy([float(value) for value in row]) for row in rows.logprobs]
            missing = len(segment.tokens) - len(told)
            rollout.entropies.append(segment.own([*[None] * missing, *told]))


def keep_uncertain(groups: Sequence[Group], share: float) -> None:
    """Multiply the loss of tokens by 0, but for the `share` of highest entropy in the batch: those
    from its quantile on, with linear interpolation. Masked replies have no place in it.
    """
    rollouts = [one for group in groups for one in group.scored if not one.masked]
    every = sorted(h for one in rollouts for own in one.entropies for h in own)
    if not every:
        return
    part, below = math.modf((1 - share) * (len(every) - 1))
    low, high = every[int(below)], every[min(int(below) + 1, len(every) - 1)]
    border = low + part * (high - low)
    for one in rollouts:
        factors = one.factors or [[1.0] * len(own) for own in one.entropies]
        one.factors = [
            [factor * (h >= border) for factor, h in zip(row, own, strict=True)]
            for row, own in zip(factors, one.entropies, strict=True)
        ]
