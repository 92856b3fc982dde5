"""From the rewards of a group to the advantage of each completion, and of each token: estimators,
and what divergence from a reference costs.

Pure functions of the rewards r (G,) of the completions of one prompt, in the units of the reward
except where an estimator divides by a standard deviation. A few look at more: lengths, the parts of
a weighted sum, the greedy reply.

To add one: a function with `@estimator` here, and its test. It is then a value of the option
`advantage`; `ptl schema -o schemas/recipe.schema.json` and `tools/method_docs.py` write it into
schema and docs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from posttrain_recipes.errors import PtlError
from posttrain_recipes.options import PluginConfig

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain_recipes.training.rl.policy_loss import PolicyConfig
    from posttrain_recipes.training.rl.rollout import Group

    Formula = Callable[[Group, Sequence[Group], PolicyConfig], list[float]]
    """(group, all groups of the batch, options) -> the advantages (G,) of its scored rollouts."""

Rewards = Sequence[float]
LengthNorm = Literal["sequence", "token", "constant"]
EPSILON = 1e-6
"""Added to a standard deviation that is divided by."""

ESTIMATORS: dict[str, Formula] = {}
BATCH_WIDE: set[str] = set()
"""Estimators that need the rewards of the whole batch before they can tell anything."""
ALONE: set[str] = set()
"""Those of them for which a reply need not be one of a group."""
LENGTH_NORMS: dict[str, LengthNorm] = {}
"""How each estimator's source weighs the tokens of long and short completions."""


def estimator(
    length_norm: LengthNorm, batch_wide: bool = False, alone: bool = False, whole: bool = False
) -> Callable[[Any], Any]:
    """Make a function of the rewards of a group a value of the option `advantage`, by its name.

    Args:
        length_norm: how its source weighs tokens.
        batch_wide: it takes the rewards of all groups of the batch too.
        alone: it tells something of a group of one.
        whole: it is a `Formula`, of groups with all that is known of them, in place of rewards.
    """

    def register(function: Callable[..., list[float]]) -> Callable[..., list[float]]:
        def of_rewards(group: Group, batch: Sequence[Group], config: PolicyConfig) -> list[float]:
            more = ([one.outcomes for one in batch],) if batch_wide else ()
            return function(group.outcomes, *more)

        name = function.__name__
        LENGTH_NORMS[name] = length_norm
        if batch_wide:
            BATCH_WIDE.add(name)
        if alone:
            ALONE.add(name)
        ESTIMATORS[name] = function if whole else of_rewards
        ESTIMATORS[name].__doc__ = function.__doc__
        return function

    return register


@estimator(length_norm="token")
def group_mean(r: Rewards) -> list[float]:
    """r - mean(r), the group's mean as the baseline of REINFORCE."""
    return [r_i - mean(r) for r_i in r]


@estimator(length_norm="sequence")
def group_norm(r: Rewards) -> list[float]:
    """(r - mean(r)) / (std(r) + 1e-6), GRPO.

    Shao et al. 2024, arXiv 2402.03300, section 4.1.2; std with G - 1.
    """
    return [(r_i - mean(r)) / (std(r) + EPSILON) for r_i in r]


@estimator(length_norm="constant")
def rloo(r: Rewards) -> list[float]:
    """r - mean of the other G - 1 rewards, REINFORCE leave-one-out.

    Ahmadian et al. 2024, arXiv 2402.14740, equation 8. A group of one has no others: 0.
    """
    return [r_i - (sum(r) - r_i) / (len(r) - 1) if len(r) > 1 else 0.0 for r_i in r]


@estimator(length_norm="constant")
def dr_grpo(r: Rewards) -> list[float]:
    """r - mean(r) with a constant length normalization, Dr. GRPO.

    Liu et al. 2025, arXiv 2503.20783, section 3.2: no division by the spread, which favours easy
    and hard prompts, nor by |o_i|, which favours long wrong answers.
    """
    return group_mean(r)


@estimator(length_norm="token", batch_wide=True, alone=True)
def reinforce_pp(r: Rewards, batch: Sequence[Rewards]) -> list[float]:
    """(r - mean) / (std + 1e-6) over the whole batch, REINFORCE++.

    Hu et al. 2025, arXiv 2501.03262, equation 9 (its batch normalization of advantages).
    """
    rewards = [reward for group in batch for reward in group]
    if not rewards:
        return []
    centre, scale = mean(rewards), std(rewards) + EPSILON
    return [(r_i - centre) / scale for r_i in r]


@estimator(length_norm="token", batch_wide=True)
def reinforce_pp_baseline(r: Rewards, batch: Sequence[Rewards]) -> list[float]:
    """(r - mean of the group) / (std of those of the batch + 1e-6), REINFORCE++-baseline.

    Hu et al. 2025, arXiv 2501.03262: the group is the baseline, the batch the scale.
    """
    apart = [a for group in batch for a in group_mean(group)]
    scale = std(apart) + EPSILON
    return [a / scale for a in group_mean(r)]


@estimator(length_norm="token")
def maxrl(r: Rewards) -> list[float]:
    """(r - mean(r)) / (mean(r) + 1e-6), maximum likelihood RL.

    Tajwar et al. 2026, arXiv 2602.02710: of rewards 0 and 1 the gradient of
    log pass@1, cut off at order G, in which a prompt that is rarely solved counts for more.

    Raises:
        PtlError: a reward is below 0, which would turn the division's sign: bad replies were
            learned from then.
    """
    if min(r, default=0.0) < 0:
        raise PtlError(
            f"advantage 'maxrl' divides by a group's mean reward, and a reply got {min(r):g}",
            why="below 0 it would make bad replies likelier",
            hint="give rewards of 0 and more, or take advantage: group_norm",
            code="reward-failed",
        )
    return [(r_i - mean(r)) / (mean(r) + EPSILON) for r_i in r]


@estimator(length_norm="token", batch_wide=True)
def gpg(r: Rewards, batch: Sequence[Rewards]) -> list[float]:
    """(r - mean(r)) B / (B - M) for B groups of which M do not vary, GPG.

    Chu et al. 2025, arXiv 2504.02546: groups that teach nothing are made up for by the
    others, so that the size of a step does not depend on how many there are.
    """
    varying = sum(varies(group) for group in batch)
    return [a * len(batch) / max(1, varying) for a in group_mean(r)]


@estimator(length_norm="constant", whole=True)
def opo(group: Group, batch: Sequence[Group], config: PolicyConfig) -> list[float]:
    """r - sum(l r) / sum(l) with l the lengths, the baseline of least variance, OPO.

    Hao et al. 2025, arXiv 2505.23585: the squared norm of a reply's gradient grows with its
    length, so that the best baseline weighs a reward by it.
    """
    r, lengths = group.outcomes, [rollout.length for rollout in group.scored]
    if not sum(lengths):
        return [0.0 for _ in r]
    baseline = math.fsum(n * r_i for n, r_i in zip(lengths, r, strict=True)) / sum(lengths)
    return [r_i - baseline for r_i in r]


@estimator(length_norm="constant", alone=True, whole=True)
def remax(group: Group, batch: Sequence[Group], config: PolicyConfig) -> list[float]:
    """r - the reward of the greedy reply to the same prompt, which is sampled too, ReMax.

    Li et al. 2023, arXiv 2310.10505, algorithm 1. Without its reward there is no baseline: 0.
    """
    baseline = group.greedy.outcome if group.greedy else None
    return [0.0 if baseline is None else r_i - baseline for r_i in group.outcomes]


@estimator(length_norm="token", whole=True)
def pass_at_k(group: Group, batch: Sequence[Group], config: PolicyConfig) -> list[float]:
    """what r raises the best of pass_k replies by, mean over all sets of pass_k - 1 others.

    Walder and Karkhanis 2025, arXiv 2505.15201, the estimator "sloo - 1": its mean is the gradient
    of E[max of k], pass@k of rewards 0 and 1, up to a factor. In a group of which r_1 < ... < r_n
    are the others, C(j - 1, k - 2) of their sets have r_j for the best.
    """
    r, k = group.outcomes, min(config.pass_k, len(group.outcomes))
    return [_raises(r_i, sorted([*r[:i], *r[i + 1 :]]), k) for i, r_i in enumerate(r)]


def _raises(r: float, others: Sequence[float], k: int) -> float:
    if k < 2:
        return 0.0
    sets = math.comb(len(others), k - 1)
    below = ((r - other) * math.comb(j, k - 2) for j, other in enumerate(others) if other < r)
    return math.fsum(below) / sets


@estimator(length_norm="token", batch_wide=True, whole=True)
def gdpo(group: Group, batch: Sequence[Group], config: PolicyConfig) -> list[float]:
    """each reward normalized in its group, their weighted sum then over the batch, GDPO.

    Each is (r - mean(r)) / (std(r) + 1e-6), and so is the sum s of them. Liu et al. 2026, arXiv
    2601.05242: normalized before they are summed, rewards keep apart what their sum would make
    equal, and none is drowned by the spread of another.
    """
    sums = [s for one in batch for s in _normalized_sum(one)]
    if not sums:
        return []
    centre, scale = mean(sums), std(sums) + EPSILON
    return [(s - centre) / scale for s in _normalized_sum(group)]


def _normalized_sum(group: Group) -> list[float]:
    """Of each scored rollout (G,): the sum of its parts, each normalized in the group."""
    parts = group.weighted_parts() or [(1.0, group.outcomes)]
    total = [0.0] * len(group.outcomes)
    for weight, part in parts:
        for i, value in enumerate(group_norm(part)):
            total[i] += weight * value
    return total


if TYPE_CHECKING:
    Estimator = str
else:
    Estimator = Literal[tuple(ESTIMATORS)]


def token_weights(lengths: Sequence[int], how: LengthNorm, max_tokens: int) -> list[float]:
    """What one token of each completion (G,) of a group weighs in the loss.

    sequence: 1 / (G |o_i|), each completion counts the same (GRPO, arXiv 2402.03300 eq. 3);
    token: 1 / sum_j |o_j|, each token counts the same (DAPO, arXiv 2503.14476 eq. 8);
    constant: 1 / (G max_tokens), no completion's length matters (Dr. GRPO, arXiv 2503.20783).
    """
    count, total = len(lengths), sum(lengths)
    if how == "sequence":
        return [1 / (count * length) if length else 0.0 for length in lengths]
    if how == "token":
        return [1 / total if total else 0.0] * count
    return [1 / (count * max_tokens) if count else 0.0] * count


def varies(rewards: Sequence[float]) -> bool:
    """Whether a group has anything to learn from: not all of its rewards are the same."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > 1e-9


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, summed exactly."""
    return math.fsum(values) / len(values)


def std(values: Sequence[float]) -> float:
    """The sample standard deviation (n - 1); 0 of fewer than two."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


# --- what divergence costs -----------------------------------------------------------------------
#
# Of a token that q sampled and p_ref is asked about, in nats:
#
#     k1 = log q/p_ref                          unbiased; may be negative
#     k3 = p_ref/q - 1 - log p_ref/q            never negative, of low variance
#
# Schulman 2020, joschu.net/blog/kl-approx.html. The cost never touches a group's rewards: what is
# normalized by their spread there would cost more the less they differ, and a group whose rewards
# are all the same would learn of nothing else.

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
