"""The divergence of the policy from a fixed reference: what it costs, token by token.

Of a token that q sampled and p_ref is asked about, in nats:

    k1 = log q/p_ref                          unbiased; may be negative
    k3 = p_ref/q - 1 - log p_ref/q            never negative, of low variance

Schulman 2020, joschu.net/blog/kl-approx.html. The cost never touches a group's rewards: what is
normalized by their spread there would cost more the less they differ, and a group whose rewards are
all the same would learn of nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from posttrain_recipes.options import PluginConfig

if TYPE_CHECKING:
    from torch import Tensor

MOST = 30.0
"""Largest log-ratio that is raised to a power of e."""


class DivergenceConfig(PluginConfig):
    """Options of what divergence costs."""

    kl_beta: float = Field(default=0.0, ge=0)
    """What a nat of divergence from the reference costs, in units of the advantage."""
    kl_in: Literal["advantage", "loss"] = "advantage"
    """Where the cost enters. advantage: kl_beta log q/p_ref is taken off the advantage of each
    token, after rewards were compared; every engine can do that. loss: kl_beta k3 is added to each
    token's loss, as TRL and DeepSeek do, which takes a second pass of the engine."""
    kl_estimator: Literal["k1", "k3"] | None = None
    """Of a token's divergence: k1, log q/p_ref, the default in the advantage; k3,
    p_ref/q - 1 - log p_ref/q, never negative and the only one in the loss."""

    @model_validator(mode="after")
    def _k3_in_the_loss(self) -> DivergenceConfig:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_in: loss has the estimator k3; the gradient of k1 there is 0 in the mean"
            )
        return self

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a term of its own for it."""
        return self.kl_beta > 0 and self.kl_in == "loss"

    def kl_costs(self, ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
        """What each token (T,) costs its advantage; zeros where nothing does.

        Args:
            ours: log q of the tokens that were sampled (T,).
            theirs: log p_ref of them (T,); empty where no reference was asked.
        """
        if not self.kl_beta or self.kl_in_loss or not theirs:
            return [0.0] * len(ours)
        estimate = k3 if self.kl_estimator == "k3" else k1
        return [self.kl_beta * value for value in estimate(ours, theirs)]

    def kl_loss(self, logp: Tensor, theirs: Tensor) -> Tensor:
        """kl_beta k3 of each token (T,), from log p of the policy that is trained, with gradient.

        Shao et al. 2024, arXiv 2402.03300, equation 4.
        """
        gap = (theirs - logp).clamp(max=MOST)
        return self.kl_beta * (gap.exp() - 1 - gap)


def k1(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """log q/p_ref of each token (T,), in nats."""
    return [q - p for q, p in zip(ours, theirs, strict=True)]


def k3(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """p_ref/q - 1 - log p_ref/q of each token (T,), in nats."""
    gaps = [min(p - q, MOST) for q, p in zip(ours, theirs, strict=True)]
    return [math.exp(gap) - 1 - gap for gap in gaps]
