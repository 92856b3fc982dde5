"""What is computed of numbers, against formulas written another way."""

import math
import random

import pytest
import torch
from ptl_ppo.critic import Estimate, loss
from ptl_ppo.gae import explained_variance, gae, whitened


@pytest.mark.parametrize(("gamma", "lam"), [(1, 0.95), (0.9, 0.5), (0.99, 1), (1, 0), (0, 0.7)])
def test_advantages_are_the_double_sum_of_the_paper(gamma: float, lam: float) -> None:
    """Equation 14 of arXiv 1506.02438: the weighted mean of the k-step estimates."""
    draw = random.Random(0)
    for length in (1, 2, 9):
        r = [draw.gauss(0, 1) for _ in range(length)]
        V = [draw.gauss(0, 1) for _ in range(length)] + [0.0]
        expected = []
        for t in range(length):
            deltas = [r[s] + gamma * V[s + 1] - V[s] for s in range(t, length)]
            expected.append(sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas)))
        assert gae(r, V[:-1], gamma, lam) == pytest.approx(expected)


def test_lambda_1_is_the_return_less_the_value_and_0_is_one_step() -> None:
    r, V = [0.0, 0.5, 1.0], [0.3, -0.2, 0.6]
    returns = [sum(0.9**k * x for k, x in enumerate(r[t:])) for t in range(3)]
    assert gae(r, V, 0.9, 1.0) == pytest.approx([g - v for g, v in zip(returns, V, strict=True)])
    one_step = [0.9 * -0.2 - 0.3, 0.5 + 0.9 * 0.6 + 0.2, 1.0 - 0.6]
    assert gae(r, V, 0.9, 0.0) == pytest.approx(one_step)


def test_whitening_is_over_all_tokens_of_the_batch() -> None:
    white = whitened([[1.0, 2.0], [6.0], []])
    assert [len(reply) for reply in white] == [2, 1, 0]
    flat = [a for reply in white for a in reply]
    assert math.fsum(flat) == pytest.approx(0)
    assert math.fsum(a * a for a in flat) / 3 == pytest.approx(1)
    assert whitened([[0.5], [0.5, 0.5]]) == [[0.0], [0.0, 0.0]]
    assert whitened([]) == []


def test_explained_variance_is_1_of_one_who_knows_and_0_of_one_who_says_the_mean() -> None:
    def told(V: list[float], R: list[float]) -> dict[str, float]:
        A = [r - v for r, v in zip(R, V, strict=True)]
        return dict(explained_variance([Estimate(None, V, A)]))  # type: ignore[arg-type]

    assert told([0.0, 1.0], [0.0, 1.0]) == {"critic/explained_variance": 1.0}
    assert told([0.5, 0.5], [0.0, 1.0]) == {"critic/explained_variance": 0.0}
    assert told([1.0, 0.0], [0.0, 1.0]) == {"critic/explained_variance": -3.0}
    assert told([1.0, 0.0], [1.0, 1.0]) == {}


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_critics_loss_in_value_and_gradient(clip: float | None) -> None:
    """Against a formula of plain numbers, and its difference quotient, in float64."""
    draw = random.Random(1)
    R, old = ([draw.gauss(0, 1) for _ in range(20)] for _ in range(2))
    V = [value + draw.gauss(0, 0.4) for value in old]

    def plain(values: list[float]) -> float:
        total = 0.0
        for v, r, o in zip(values, R, old, strict=True):
            worst = (v - r) ** 2
            if clip is not None:
                worst = max(worst, (min(max(v, o - clip), o + clip) - r) ** 2)
            total += worst / 2
        return total / len(values)

    tensor = torch.tensor(V, dtype=torch.float64, requires_grad=True)
    others = (torch.tensor(values, dtype=torch.float64) for values in (R, old))
    found = loss(tensor, *others, clip)
    found.backward()
    assert found.item() == pytest.approx(plain(V), rel=1e-12)
    step = 1e-6
    for i in range(len(V)):
        up, down = ([*V[:i], V[i] + s, *V[i + 1 :]] for s in (step, -step))
        quotient = (plain(up) - plain(down)) / (2 * step)
        assert tensor.grad is not None
        assert tensor.grad[i].item() == pytest.approx(quotient, abs=1e-8)
    if clip is not None:
        assert (tensor.grad == 0).any(), "where clipping acts, nothing moves"
