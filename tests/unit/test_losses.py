"""Losses and their gradients against formulas in float64 numpy, written out of the papers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from posttrain_recipes.methods.dpo import DPO
from posttrain_recipes.training.preference import losses

Formula = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-softplus(-x))


def formula(loss: str, beta: float, e: float = 0.0) -> Formula:
    """The loss and its derivative by the margin h, written out of the papers."""

    def mixed(keep: float, flip: float) -> Formula:
        return lambda h: (
            keep * softplus(-beta * h) + flip * softplus(beta * h),
            -keep * beta * sigmoid(-beta * h) + flip * beta * sigmoid(beta * h),
        )

    return {
        "sigmoid": mixed(1 - e, e),
        "robust": mixed((1 - e) / (1 - 2 * e), -e / (1 - 2 * e)),
        "hinge": lambda h: (np.maximum(0, 1 - beta * h), np.where(beta * h < 1, -beta, 0.0)),
        "ipo": lambda h: ((h - 1 / (2 * beta)) ** 2, 2 * (h - 1 / (2 * beta))),
    }[loss]


LOSSES: list[tuple[str, float, Callable[[torch.Tensor, float], torch.Tensor]]] = [
    ("sigmoid", 0.0, losses.dpo_sigmoid),
    ("sigmoid", 0.2, lambda h, beta: losses.dpo_sigmoid(h, beta, 0.2)),
    ("robust", 0.0, lambda h, beta: losses.dpo_robust(h, beta, 0.0)),
    ("robust", 0.3, lambda h, beta: losses.dpo_robust(h, beta, 0.3)),
    ("hinge", 0.0, losses.dpo_hinge),
    ("ipo", 0.0, losses.dpo_ipo),
]


@pytest.mark.parametrize(("name", "e", "loss"), LOSSES)
@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
def test_a_preference_loss_is_its_formula_with_its_gradient(
    name: str,
    e: float,
    loss: Callable[[torch.Tensor, float], torch.Tensor],
    beta: float,
    scale: float,
) -> None:
    margin = np.random.default_rng(int(beta * 100) + int(scale)).normal(size=64) * scale
    wanted, slope = formula(name, beta, e)(margin)
    h = torch.tensor(margin, requires_grad=True)
    values = loss(h, beta)
    values.sum().backward()
    assert values.shape == (64,)
    np.testing.assert_allclose(values.detach(), wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(h.grad, slope, rtol=1e-9, atol=1e-12)


def test_dpo_of_no_difference_is_log_two() -> None:
    assert losses.dpo_sigmoid(torch.zeros(1), 0.1).item() == pytest.approx(0.6931471805599453)


def test_dpo_holds_where_exp_would_not() -> None:
    far = torch.tensor([1e4, -1e4])
    assert losses.dpo_sigmoid(far, 1.0).tolist() == [0.0, 1e4]


def test_smoothing_that_a_loss_does_not_read_is_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing means nothing to loss 'ipo'"):
        DPO.Config(loss="ipo", label_smoothing=0.1)


# --- losses of two log-likelihoods ---------------------------------------------------------------

Two = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Values and their derivatives by chosen and rejected."""


def orpo(chosen: np.ndarray, rejected: np.ndarray) -> Two:
    odds = [np.exp(x) / (1 - np.exp(x)) for x in (chosen, rejected)]
    ratio = odds[0] / odds[1]
    slope = 0.3 / (1 + ratio)  # by the log odds ratio, whose derivatives are 1 / (1 - P)
    return (
        -chosen + 0.3 * np.log1p(1 / ratio),
        -1 - slope / (1 - np.exp(chosen)),
        slope / (1 - np.exp(rejected)),
    )


def simpo(chosen: np.ndarray, rejected: np.ndarray) -> Two:
    z = 2.5 * (chosen - rejected) - 0.7
    return softplus(-z), -2.5 * sigmoid(-z), 2.5 * sigmoid(-z)


def cpo(chosen: np.ndarray, rejected: np.ndarray) -> Two:
    z = 0.2 * (chosen - rejected)
    return softplus(-z), -0.2 * sigmoid(-z), 0.2 * sigmoid(-z)


def bradley_terry(chosen: np.ndarray, rejected: np.ndarray) -> Two:
    z = chosen - rejected
    return softplus(-z), -sigmoid(-z), sigmoid(-z)


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (lambda c, r: losses.orpo(c, r, 0.3), orpo),
        (lambda c, r: losses.simpo(c, r, 2.5, 0.7), simpo),
        (lambda c, r: losses.cpo(c, r, 0.2), cpo),
        (losses.bradley_terry, bradley_terry),
    ],
    ids=["orpo", "simpo", "cpo", "bradley_terry"],
)
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_a_pair_loss_is_its_formula_with_its_gradients(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    wanted: Callable[[np.ndarray, np.ndarray], Two],
    scale: float,
) -> None:
    given = -np.random.default_rng(5).exponential(size=(2, 64)) * scale
    values, *slopes = wanted(*given)
    chosen, rejected = (torch.tensor(x, requires_grad=True) for x in given)
    found = loss(chosen, rejected)
    found.sum().backward()
    np.testing.assert_allclose(found.detach(), values, rtol=1e-9, atol=1e-12)
    for tensor, slope in zip((chosen, rejected), slopes, strict=True):
        np.testing.assert_allclose(tensor.grad, slope, rtol=1e-9, atol=1e-12)


def test_orpo_survives_a_likelihood_that_rounds_to_one() -> None:
    chosen = torch.tensor([0.0, -1e-9, -1e-3], requires_grad=True)
    values = losses.orpo(chosen, torch.tensor([-100.0, 0.0, -1.0]), 0.1)
    values.sum().backward()
    assert values.isfinite().all()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


@pytest.mark.parametrize("z", [0.0, 3.0])
def test_kto_is_its_formula_with_its_gradient(z: float) -> None:
    random = np.random.default_rng(2)
    given, good = random.normal(size=64) * 20, random.random(64) < 0.5
    sign = np.where(good, 1.0, -1.0)
    share = sigmoid(0.1 * sign * (given - z))
    ratio = torch.tensor(given, requires_grad=True)
    values = losses.kto(ratio, torch.tensor(good), torch.tensor(z, dtype=torch.float64), 0.1)
    values.sum().backward()
    np.testing.assert_allclose(values.detach(), 1 - share, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ratio.grad, -0.1 * sign * share * (1 - share), rtol=1e-9, atol=1e-12)
