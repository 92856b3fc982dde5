"""Advantages and penalties against formulas written another way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from posttrain_recipes.errors import PtlError
from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.records import Sample
from posttrain_recipes.training.rl import advantages
from posttrain_recipes.training.rl.policy_loss import PolicyConfig
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment
from posttrain_recipes.training.rl.sources import CompletionConfig

RNG = np.random.default_rng(3)
BATCH = [RNG.normal(size=size).tolist() for size in (4, 7, 2)]
BINARY = [[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0]]


def group_of(rewards: Sequence[float], greedy: float | None = None) -> Group:
    """Replies of 1, 2, 3, ... tokens with these rewards."""

    def one(length: int, reward: float) -> Rollout:
        segment = Segment.reply([9], [1] * length, [-1.0] * length)
        return Rollout([segment], Sample((), "", None), [], reward=reward)

    replies = [one(place + 1, reward) for place, reward in enumerate(rewards)]
    return Group(replies, greedy=None if greedy is None else one(1, greedy))


def estimates(name: str, rewards: Sequence[float], batch: Sequence[Sequence[float]]) -> list[float]:
    config = PolicyConfig(advantage=name, **({"pass_k": 3} if name == "pass_at_k" else {}))
    return config.estimate(group_of(rewards, 0.25), [group_of(one) for one in batch])


def best_of_sets(r: np.ndarray, k: int) -> np.ndarray:
    """By going through every set of k that holds i: its best less the best of the others."""
    found = []
    for i in range(len(r)):
        sets = list(itertools.combinations(np.delete(r, i), min(k, len(r)) - 1))
        found.append(np.mean([max(r[i], *s) - max(s) for s in sets]) if len(r) > 1 else 0.0)
    return np.array(found)


@pytest.mark.parametrize("batch", [BATCH, BINARY])
def test_advantages_are_those_of_the_papers(batch: list[list[float]]) -> None:
    flat = np.concatenate([np.array(group) for group in batch])
    apart = np.concatenate([np.array(group) - np.mean(group) for group in batch])
    varying = sum(np.ptp(group) > 0 for group in batch)
    each = [(np.array(g) - np.mean(g)) / (np.std(g, ddof=1) + 1e-6) for g in batch]
    normalized = np.concatenate(each)
    for group in batch:
        r = np.array(group)
        size = len(r)
        expected = {
            "group_mean": r - r.mean(),
            "dr_grpo": r - r.mean(),
            "group_norm": (r - r.mean()) / (r.std(ddof=1) + 1e-6),
            # Ahmadian et al.: the baseline of i is the mean of the k - 1 others.
            "rloo": np.array([r[i] - np.delete(r, i).mean() for i in range(size)]),
            "reinforce_pp": (r - flat.mean()) / (flat.std(ddof=1) + 1e-6),
            "reinforce_pp_baseline": (r - r.mean()) / (apart.std(ddof=1) + 1e-6),
            "maxrl": (r - r.mean()) / (r.mean() + 1e-6),
            "gpg": (r - r.mean()) * len(batch) / varying,
            "opo": r - np.average(r, weights=np.arange(size) + 1),
            "remax": r - 0.25,
            "pass_at_k": best_of_sets(r, 3),
            "gdpo": ((r - r.mean()) / (r.std(ddof=1) + 1e-6) - normalized.mean())
            / (normalized.std(ddof=1) + 1e-6),
        }
        assert expected.keys() == advantages.ESTIMATORS.keys()
        for name, values in expected.items():
            if name == "maxrl" and min(group) < 0:
                continue
            found = estimates(name, group, batch)
            assert found == pytest.approx(values.tolist(), abs=1e-12), name


def test_maxrl_climbs_a_truncated_log_of_the_pass_rate() -> None:
    """Its mean over groups of G is the gradient of sum_k (1 - (1 - p)^k) / k up to k = G - 1 or G:
    log p in the limit. Here p is of a policy with one parameter, a coin."""
    for p, size in ((0.1, 4), (0.5, 8), (0.9, 4)):
        slope = p * (1 - p)  # dp/dtheta of a logit, and d log p(y)/dtheta = y - p
        expected = 0.0
        for outcome in range(2**size):
            y = np.array([outcome >> i & 1 for i in range(size)], dtype=float)
            A = np.array(advantages.maxrl(y.tolist()))
            expected += np.prod(np.where(y > 0, p, 1 - p)) * (A * (y - p)).mean()
        order = [slope * sum((1 - p) ** (k - 1) for k in range(1, n + 1)) for n in (size - 1, size)]
        assert min(order) - 1e-5 <= expected <= max(order) + 1e-5


@pytest.mark.parametrize("rewards", [[-1.0, 0.0], [-1.0, 1.0], [-1e-6], [3.0, -0.5]])
def test_maxrl_learns_from_no_reward_below_0(rewards: list[float]) -> None:
    with pytest.raises(PtlError, match="'maxrl' divides by a group's mean reward"):
        advantages.maxrl(rewards)
    assert advantages.maxrl([]) == []
    with pytest.raises(ValueError, match="overlong: penalize makes rewards below 0"):
        GRPO.Config(advantage="maxrl", overlong="penalize")


def test_pass_at_k_climbs_the_best_of_k() -> None:
    """Its mean over groups is the gradient of E[max of k replies], pass@k of rewards 0 and 1. Here
    the policy has one parameter, a coin: d(1 - (1 - p)^k)/dtheta = k (1 - p)^(k - 1) p (1 - p)."""
    for p, size, k in ((0.1, 4, 2), (0.5, 6, 3), (0.8, 4, 4)):
        expected = 0.0
        for outcome in range(2**size):
            y = np.array([outcome >> i & 1 for i in range(size)], dtype=float)
            config = PolicyConfig(advantage="pass_at_k", **({} if k == 4 else {"pass_k": k}))
            A = np.array(config.estimate(group_of(y.tolist()), []))
            expected += np.prod(np.where(y > 0, p, 1 - p)) * (A * (y - p)).mean()
        assert k * expected == pytest.approx(k * (1 - p) ** (k - 1) * p * (1 - p), rel=1e-9)


def test_opo_has_the_baseline_of_least_variance() -> None:
    """Where a reply's gradient is a sum of independent noise of each token, no other baseline has
    less: a scan over baselines of sum_i l_i (r_i - b)^2 ends at it."""
    r = np.array(BATCH[1])
    lengths = np.arange(len(r)) + 1
    baseline = r[0] - estimates("opo", r.tolist(), [])[0]
    scan = np.linspace(r.min(), r.max(), 20001)
    noise = (lengths * (r - scan[:, None]) ** 2).sum(1)
    assert baseline == pytest.approx(scan[noise.argmin()], abs=1e-3)


def test_remax_without_a_greedy_reward_learns_nothing() -> None:
    assert PolicyConfig(advantage="remax").estimate(group_of([1.0, 0.0]), []) == [0.0, 0.0]


def test_gdpo_keeps_apart_what_a_sum_makes_equal() -> None:
    """Liu et al., section 3: of two rewards 0 or 1 a group with sums 0, 1 and one with 0, 2 get the
    same from GRPO; and a reward in the thousands drowns none."""
    group, other = group_of([0.0] * 4), group_of([0.0] * 4)
    for one, right, form in (
        (group, (1, 0, 0, 0), (0, 3000, 3000, 0)),
        (other, (1, 1, 0, 0), (0, 3000, 0, 3000)),
    ):
        one.reward_weights = {"right": 2.0, "form": 1.0}
        for rollout, r, f in zip(one.rollouts, right, form, strict=True):
            rollout.parts, rollout.reward = {"right": float(r), "form": float(f)}, 2.0 * r + f

    def z(values: Sequence[float]) -> np.ndarray:
        v = np.array(values, dtype=float)
        return (v - v.mean()) / (v.std(ddof=1) + 1e-6)

    sums = np.concatenate(
        [2 * z((1, 0, 0, 0)) + z((0, 3000, 3000, 0)), 2 * z((1, 1, 0, 0)) + z((0, 3000, 0, 3000))]
    )
    config = PolicyConfig(advantage="gdpo")
    found = [A for one in (group, other) for A in config.estimate(one, [group, other])]
    assert found == pytest.approx(((sums - sums.mean()) / (sums.std(ddof=1) + 1e-6)).tolist())


def test_rloo_is_the_mean_baseline_scaled() -> None:
    for r in BATCH:
        scale = len(r) / (len(r) - 1)
        assert advantages.rloo(r) == pytest.approx([scale * a for a in advantages.group_mean(r)])


@pytest.mark.parametrize("name", advantages.ESTIMATORS)
def test_edges(name: str) -> None:
    assert estimates(name, [], []) == []
    assert estimates(name, [], [[], []]) == []
    if name == "remax":  # it compares with a reply beside the group
        return
    assert estimates(name, [2.0], [[2.0]]) == [0.0]
    same = [0.3, 0.3, 0.3]
    assert estimates(name, same, [same]) == pytest.approx([0.0] * 3, abs=1e-9)


def test_what_a_token_weighs() -> None:
    lengths = [2, 3, 5]
    loss = [1.0, 10.0, 100.0]  # of every token of each reply

    def total(how: advantages.LengthNorm) -> float:
        weights = advantages.token_weights(lengths, how, 8)
        return sum(w * n * v for w, n, v in zip(weights, lengths, loss, strict=True))

    assert total("sequence") == pytest.approx((1 + 10 + 100) / 3)
    assert total("token") == pytest.approx((2 * 1 + 3 * 10 + 5 * 100) / 10)
    assert total("constant") == pytest.approx((2 * 1 + 3 * 10 + 5 * 100) / 3 / 8)
    assert advantages.LENGTH_NORMS.keys() == advantages.ESTIMATORS.keys()


def test_a_group_varies_or_not() -> None:
    assert advantages.varies([0.0, 1.0])
    assert not advantages.varies([0.1 + 0.2, 0.3])
    assert not advantages.varies([1.0])
    assert not advantages.varies([])


def test_the_penalty_of_an_overlong_reply_rises_over_the_buffer() -> None:
    """DAPO, equation 13, with L_max = 10 and L_cache = 4."""
    config = CompletionConfig(
        max_tokens=10, overlong="penalize", overlong_buffer=4, overlong_penalty=2.0
    )
    costs = [config.overlong_cost(length, False) for length in (1, 6, 7, 8, 9, 10)]
    assert costs == [0, 0, 0.5, 1.0, 1.5, 2.0]
    assert config.overlong_cost(10, True) == 2.0
    plain = CompletionConfig(max_tokens=10, overlong="penalize")
    assert (plain.overlong_cost(10, False), plain.overlong_cost(10, True)) == (0.0, 1.0)
    assert CompletionConfig(max_tokens=10).overlong_cost(10, True) == 0.0


@pytest.mark.parametrize("name", advantages.ESTIMATORS)
def test_a_group_of_one_needs_an_estimator_that_tells_something_of_it(name: str) -> None:
    told = any(estimates(name, [r], [[0.0], [1.0]])[0] for r in (0.0, 1.0))
    assert told == (name in advantages.ALONE)
