"""Generalized advantage estimation (Schulman et al. 2015, arXiv 1506.02438), and what is made of
it. Pure functions of numbers of the T tokens of a reply."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptl_ppo.critic import Estimate


def gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum_l (gamma lam)^l delta_{t+l} with delta_t = r_t + gamma V_{t+1} - V_t (equation 16).

    Args:
        rewards: r_t that comes with each token (T,).
        values: V_t before each of them (T,); after the last one it is 0, as nothing is to come.
    """
    advantages = [0.0] * len(values)
    later = following = 0.0
    for t in reversed(range(len(values))):
        delta = rewards[t] + gamma * following - values[t]
        advantages[t] = later = delta + gamma * lam * later
        following = values[t]
    return advantages


def whitened(advantages: Sequence[Sequence[float]]) -> list[list[float]]:
    """(A - mean) / (std + 1e-8) over all tokens of several replies, each (T,)."""
    every = [a for reply in advantages for a in reply]
    if not every:
        return []
    centre = math.fsum(every) / len(every)
    scale = math.sqrt(_variance(every)) + 1e-8
    return [[(a - centre) / scale for a in reply] for reply in advantages]


def explained_variance(estimates: Iterable[Estimate]) -> Mapping[str, float]:
    """1 - var(R - V) / var(R) over all tokens: 1 where the critic knew every return, 0 where one
    number for all of them had been as good, below 0 where it is worse than that. Nothing where the
    returns are all the same."""
    pairs = [(r, v) for one in estimates for r, v in zip(one.R, one.V, strict=True)]
    if (spread := _variance([r for r, _ in pairs])) < 1e-12:
        return {}
    return {"critic/explained_variance": 1 - _variance([r - v for r, v in pairs]) / spread}


def _variance(values: Sequence[float]) -> float:
    centre = math.fsum(values) / max(1, len(values))
    return math.fsum((value - centre) ** 2 for value in values) / max(1, len(values))
