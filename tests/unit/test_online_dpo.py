"""Online DPO: which pairs a group makes, and the loss of them by an independent formula."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.methods.online_dpo import (
    OnlineDPO,
    OnlinePairs,
    forward_backward,
    judged,
)
from posttrain_recipes.records import Sample
from posttrain_recipes.training.rl.metrics import batch_metrics, shown
from posttrain_recipes.training.rl.rollout import Group, Rollout, RolloutSegment, Segment

RNG = np.random.default_rng(4)
POLICY = [-RNG.random(n) for n in (3, 5, 2, 4)]
REFERENCE = [p + 0.5 * RNG.normal(size=len(p)) for p in POLICY]


def group(rewards: Sequence[float | None], masked: Sequence[int] = ()) -> Group:
    made = []
    for row, reward in enumerate(rewards):
        segment = Segment.reply([90 + row, 8], [7] * len(POLICY[row]), [-1.0] * len(POLICY[row]))
        one = Rollout([segment], Sample((), "", None), [], reward=reward, masked=row in masked)
        one.reference = [REFERENCE[row].tolist()]
        made.append(one)
    return Group(made)


def rows(found: Any, made: Group) -> list[tuple[int, ...]]:
    places = {id(one): row for row, one in enumerate(made.rollouts)}
    return [tuple(places[id(reply)] for reply in pair.replies) for pair in found]


@pytest.mark.parametrize(
    ("rewards", "masked", "expected"),
    [
        ((0.1, 0.9, None, 0.0), (), [(1, 3)]),
        ((0.1, 0.9, 0.5, 0.0), (1, 3), [(2, 0)]),
        ((0.5, 0.5, 0.5, 0.5), (), []),
        ((None, 1.0, None, None), (), []),
        ((0.1 + 0.2, 0.3, None, 0.3), (), []),
    ],
)
def test_the_best_and_the_worst_are_a_pair(
    rewards: Sequence[float | None], masked: Sequence[int], expected: list[tuple[int, int]]
) -> None:
    made = group(rewards, masked)
    assert rows(judged(made, OnlineDPO.Config(group_size=4)), made) == expected


def test_each_reply_is_compared_with_one_of_the_reference() -> None:
    config = OnlineDPO.Config(group_size=2, opponent="reference")
    made = group((0.1, 0.9, 0.5, 0.0))
    found = list(judged(made, config))
    assert rows(found, made) == [(2, 0), (1, 3)]
    assert [pair.by_reference for pair in found] == [0, 1]
    assert [pair.share for pair in found] == [0.5, 0.5]
    made = group((0.1, None, 0.1, 0.0))
    assert not list(judged(made, config))


class Client:
    """Its policy finds the tokens of row r as likely as `POLICY[r]` says."""

    def forward_backward_custom(self, data: Sequence[Any], loss: Any) -> None:
        chosen = [datum.model_input.to_ints()[0] - 90 for datum in data]
        self.leaves = {row: torch.tensor(POLICY[row]).requires_grad_() for row in chosen}
        padded = [torch.cat([torch.zeros(1).double(), self.leaves[row]]) for row in chosen]
        self.loss, _ = loss(data, padded)
        self.loss.backward()


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_value_and_gradient(alpha: float) -> None:
    """Over two pairs of one prompt of five: value and the slope of every token, in float64."""
    beta, size = 0.3, 5
    config = OnlineDPO.Config(group_size=2, opponent="reference", xpo_alpha=alpha, beta=beta)
    made, client = group((0.1, 0.9, 0.5, 0.0)), Client()
    forward_backward(client, list(judged(made, config)), config, size)  # type: ignore[arg-type]
    value = 0.0
    slopes = dict.fromkeys(range(4), 0.0)
    for good, bad in ((2, 0), (1, 3)):
        ratio = [POLICY[r].sum() - REFERENCE[r].sum() for r in (good, bad)]
        h = beta * (ratio[0] - ratio[1])
        value += 0.5 / size * (-np.log(sigmoid(h)) + alpha * POLICY[max(good, bad)].sum())
        pull = 0.5 / size * beta * sigmoid(-h)
        slopes[good] -= pull
        slopes[bad] += pull
        slopes[max(good, bad)] += 0.5 / size * alpha
    assert float(client.loss) == pytest.approx(value, rel=1e-6)
    for row, slope in slopes.items():
        leaf = client.leaves[row].grad
        np.testing.assert_allclose(leaf, np.full(len(POLICY[row]), slope), rtol=1e-5)


def test_tails_of_longer_replies_count_less() -> None:
    beta, tail = 0.3, 0.25
    config = OnlineDPO.Config(group_size=2, ld_alpha=tail, beta=beta)
    made, client = group((0.1, 0.9, None, None)), Client()
    forward_backward(client, list(judged(made, config)), config, 1)  # type: ignore[arg-type]
    shared = min(len(POLICY[0]), len(POLICY[1]))
    counts = [np.where(np.arange(len(POLICY[r])) < shared, 1, tail) for r in (0, 1)]
    ratio = [float(counts[r] @ (np.array(POLICY[r]) - np.array(REFERENCE[r]))) for r in (0, 1)]
    h = beta * (ratio[1] - ratio[0])
    assert tail in np.concatenate(counts)
    assert float(client.loss) == pytest.approx(-np.log(sigmoid(h)), rel=1e-6)
    for row, sign in ((1, -1), (0, 1)):
        slope = sign * beta * sigmoid(-h) * counts[row]
        np.testing.assert_allclose(client.leaves[row].grad, slope, rtol=1e-5)


def test_what_is_told() -> None:
    made = group((1.0, 0.0, None, None))
    items = [RolloutSegment(made.rollouts[row], 0) for row in (0, 1)]
    outputs = [{"logprobs": SimpleNamespace(data=[-9.0, *POLICY[row]])} for row in (0, 1)]
    told = OnlinePairs(0.5).told([made], items, outputs)  # type: ignore[arg-type]
    ratios = [POLICY[row].sum() - REFERENCE[row].sum() for row in (0, 1)]
    assert told["rewards/margins"] == pytest.approx(0.5 * (ratios[0] - ratios[1]), rel=1e-5)
    assert told["pairs/formed"] == 1
    assert OnlinePairs(0.5).told([made], [], []) == {"pairs/formed": 0}
    assert forward_backward(Client(), [], OnlineDPO.Config(), 4) == []  # type: ignore[arg-type]


def test_metrics_are_of_the_policy_and_not_of_its_opponent() -> None:
    """The reference's replies have no divergence from it and a reward of their own."""
    made = group((1.0, 0.0, 0.2, 0.4))
    for one in made.rollouts[2:]:
        one.by_reference = True
        one.reference = [[-1.0] * one.length]
    told = batch_metrics([made])
    assert (told["reward/mean"], told["reward/reference"]) == (0.5, pytest.approx(0.3))
    kl = np.mean([-POLICY[row].size - REFERENCE[row].sum() for row in (0, 1)])
    assert told["policy/kl_reference"] == pytest.approx(kl)
    assert told["completions/max_length"] == 5
    assert told["rollouts/tokens"] == 8
    assert [len(one.scores) for one in shown([made])] == [2, 2]
    pairs = [(0, 2), (3, 1)]
    items = [RolloutSegment(made.rollouts[row], 0) for pair in pairs for row in pair]
    outputs = [
        {"logprobs": SimpleNamespace(data=[-9.0, *POLICY[row]])} for pair in pairs for row in pair
    ]
    found = OnlinePairs(0.5).told([made], items, outputs)  # type: ignore[arg-type]
    assert found["pairs/policy_won"] == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group_size": 1}, "group_size 1 makes no pair"),
        ({"loss": "aot", "batch_size": 1}, "ranks the pairs of a step"),
        ({"loss": "aot", "batch_size": 3, "updates_per_batch": 2}, "raise batch_size"),
        (
            {"loss": "aot", "batch_size": 1, "group_size": 1, "opponent": "reference"},
            "ranks the pairs of a step",
        ),
        ({"xpo_alpha": 0.1}, "xpo_alpha is for opponent: reference"),
        ({"loss": "exo_pair"}, "needs a label_smoothing"),
    ],
)
def test_options_that_make_no_pairs_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OnlineDPO.Config(**options)
