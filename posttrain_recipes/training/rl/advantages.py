"""Advantage estimators: from the rewards of a batch of rollouts to what each of them is worth.

Pure functions. `rewards` is a batch of groups, B lists of G_b rewards (replies to one prompt each);
what comes back has the same shape. Units are those of the reward, except where an estimator
divides by a standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

Rewards = Sequence[Sequence[float]]
Advantages = list[list[float]]
Estimator = Literal["group_mean", "group_norm", "rloo", "dr_grpo", "reinforce_pp"]
EPSILON = 1e-6
"""Added to a standard deviation that is divided by."""


def group_mean(rewards: Rewards) -> Advantages:
    """A_i = r_i - mean(r): the group's mean as the baseline of REINFORCE."""
    return [[r - _mean(group) for r in group] for group in rewards]


def group_norm(rewards: Rewards) -> Advantages:
    """A_i = (r_i - mean(r)) / (std(r) + 1e-6), std with G - 1: GRPO.

    Shao et al. 2024, arXiv 2402.03300, section 4.1.2.
    """
    return [
        [(r - _mean(group)) / (_std(group, _mean(group)) + EPSILON) for r in group]
        for group in rewards
    ]


def rloo(rewards: Rewards) -> Advantages:
    """A_i = r_i - mean of the other G - 1 rewards: REINFORCE leave-one-out.

    Ahmadian et al. 2024, arXiv 2402.14740, equation 8. A group of one has no others: 0.
    """
    return [
        [r - (sum(group) - r) / (len(group) - 1) if len(group) > 1 else 0.0 for r in group]
        for group in rewards
    ]


def dr_grpo(rewards: Rewards) -> Advantages:
    """A_i = r_i - mean(r), no division by the spread, which favours easy and hard prompts.

    Liu et al. 2025, arXiv 2503.20783, section 3.2; its other half is a constant length
    normalization instead of 1/|o_i|.
    """
    return group_mean(rewards)


def reinforce_pp(rewards: Rewards) -> Advantages:
    """A_i = (r_i - mean) / (std + 1e-6) over the whole batch: REINFORCE++.

    Hu et al. 2025, arXiv 2501.03262, equation 9 (its batch normalization of advantages).
    """
    flat = [r for group in rewards for r in group]
    if not flat:
        return [[] for _ in rewards]
    mean = _mean(flat)
    scale = _std(flat, mean) + EPSILON
    return [[(r - mean) / scale for r in group] for group in rewards]


ESTIMATORS: dict[str, Callable[[Rewards], Advantages]] = {
    "group_mean": group_mean,
    "group_norm": group_norm,
    "rloo": rloo,
    "dr_grpo": dr_grpo,
    "reinforce_pp": reinforce_pp,
}
BATCH_WIDE = frozenset({"reinforce_pp"})
"""Estimators that need the rewards of the whole batch before they can tell anything."""


LengthNorm = Literal["sequence", "token", "constant"]
LENGTH_NORMS: dict[str, LengthNorm] = {
    "group_mean": "token",
    "group_norm": "sequence",
    "rloo": "constant",
    "dr_grpo": "constant",
    "reinforce_pp": "token",
}
"""How each estimator's source weighs the tokens of long and short replies."""


def token_weights(lengths: Sequence[int], how: LengthNorm, max_tokens: int) -> list[float]:
    """What one token of each reply (G,) of a group weighs in the loss.

    sequence: 1 / (G |o_i|), each reply counts the same (GRPO, arXiv 2402.03300 eq. 3);
    token: 1 / sum_j |o_j|, each token counts the same (DAPO, arXiv 2503.14476 eq. 8);
    constant: 1 / (G max_tokens), no reply's length matters (Dr. GRPO, arXiv 2503.20783).
    """
    count, total = len(lengths), sum(lengths)
    if how == "sequence":
        return [1 / (count * length) if length else 0.0 for length in lengths]
    if how == "token":
        return [1 / total if total else 0.0] * count
    return [1 / (count * max_tokens)] * count


def k1(policy: Sequence[float], reference: Sequence[float]) -> float:
    """sum_t log p/p_ref: unbiased for the KL divergence of a reply; may be negative."""
    return sum(p - r for p, r in zip(policy, reference, strict=True))


def k3(policy: Sequence[float], reference: Sequence[float]) -> float:
    """sum_t p_ref/p - 1 - log(p_ref/p): never negative and of low variance.

    Schulman 2020, joschu.net/blog/kl-approx.html; GRPO's estimator (arXiv 2402.03300 eq. 4).
    """
    drift = (r - p for p, r in zip(policy, reference, strict=True))
    return sum(math.exp(min(d, 30.0)) - 1 - d for d in drift)


KL_ESTIMATORS: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {"k1": k1, "k3": k3}


def varies(rewards: Sequence[float]) -> bool:
    """Whether a group has anything to learn from: not all of its rewards are the same."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > 1e-9


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _std(values: Sequence[float], mean: float) -> float:
    if len(values) < 2:
        return 0.0
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
