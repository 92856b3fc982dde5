"""Advantages and penalties against formulas written another way."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain_recipes.training.rl import advantages
from posttrain_recipes.training.rl.sources import CompletionConfig

RNG = np.random.default_rng(3)
BATCH = [RNG.normal(size=size).tolist() for size in (4, 7, 2)]
BINARY = [[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("batch", [BATCH, BINARY])
def test_advantages_are_those_of_the_papers(batch: list[list[float]]) -> None:
    flat = np.concatenate([np.array(group) for group in batch])
    apart = np.concatenate([np.array(group) - np.mean(group) for group in batch])
    varying = sum(np.ptp(group) > 0 for group in batch)
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
        }
        assert expected.keys() == advantages.ESTIMATORS.keys()
        for name, values in expected.items():
            found = advantages.ESTIMATORS[name](group, batch)
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


def test_rloo_is_the_mean_baseline_scaled() -> None:
    for r in BATCH:
        scale = len(r) / (len(r) - 1)
        assert advantages.rloo(r) == pytest.approx([scale * a for a in advantages.group_mean(r)])


@pytest.mark.parametrize("name", advantages.ESTIMATORS)
def test_edges(name: str) -> None:
    estimate = advantages.ESTIMATORS[name]
    assert estimate([], []) == []
    assert estimate([], [[], []]) == []
    assert estimate([2.0], [[2.0]]) == [0.0]
    assert estimate([0.3, 0.3, 0.3], [[0.3, 0.3, 0.3]]) == pytest.approx([0.0] * 3, abs=1e-9)


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
    told = any(advantages.ESTIMATORS[name]([r], [[0.0], [1.0]])[0] for r in (0.0, 1.0))
    assert told == (name in advantages.ALONE)
