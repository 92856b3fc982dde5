"""The losses of `dpo` against formulas written another way, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.methods.dpo import DPO
from posttrain_recipes.training.preference.completions import Logps
from posttrain_recipes.training.preference.pair_losses import DIVERGENCES, PAIR_LOSSES, ScoredPairs

B = 8
RNG = np.random.default_rng(5)
P = -RNG.random((B, 2)) * 9
REF = P + RNG.normal(size=(B, 2)) * 2
LENGTHS = RNG.integers(1, 9, size=(B, 2))


def sig(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def dpo(h: Any, beta: float, e: float) -> Any:
    return -(1 - e) * np.log(sig(beta * h)) - e * np.log(sig(-beta * h))


def aot(p: Any, ref: Any, beta: float, e: float) -> Any:
    return dpo(np.sort(p[:, 0] - p[:, 1]) - np.sort(ref[:, 0] - ref[:, 1]), beta, e)


def aot_unpaired(p: Any, ref: Any, beta: float, e: float) -> Any:
    ratio = p - ref
    return dpo(np.sort(ratio[:, 0]) - np.sort(ratio[:, 1]), beta, e)


def on_score(formula: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, ref, beta, e: formula(*(p - ref).T, beta, e)


def exo(c: Any, r: Any, beta: float, e: float) -> Any:
    q = sig(beta * (c - r))
    return q * np.log(q / (1 - e)) + (1 - q) * np.log((1 - q) / e)


def blend(c: Any, r: Any, beta: float, e: float) -> Any:
    m = beta * (c - r)
    return np.log1p(np.exp(-m)) * (1 - sig(m / 0.05)) + np.exp(-m) * sig(m / 0.05)


def of_means(formula: Callable[..., Any]) -> Callable[..., Any]:
    def loss(p: Any, ref: Any, beta: float, e: float) -> Any:
        mean = (p - ref) / LENGTHS
        return formula(mean[:, 0] - mean[:, 1], beta, e)

    return loss


FORMULAS: Mapping[str, Callable[..., Any]] = {
    "sigmoid": on_score(lambda c, r, b, e: dpo(c - r, b, e)),
    "ipo": of_means(lambda h, b, e: (h - 0.5 / b) ** 2),
    "hinge": on_score(lambda c, r, b, e: np.maximum(0, 1 - b * (c - r))),
    "robust": on_score(
        lambda c, r, b, e: ((1 - e) * dpo(c - r, b, 0) - e * dpo(r - c, b, 0)) / (1 - 2 * e)
    ),
    "exo_pair": on_score(exo),
    "nca_pair": on_score(
        lambda c, r, b, e: -np.log(sig(b * c)) - (np.log(sig(-b * c)) + np.log(sig(-b * r))) / 2
    ),
    "bco_pair": on_score(lambda c, r, b, e: -np.log(sig(b * c) * sig(-b * r))),
    "sppo_hard": on_score(lambda c, r, b, e: (c - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2),
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "apo_zero": on_score(lambda c, r, b, e: 1 - sig(b * c) + sig(b * r)),
    "apo_down": on_score(lambda c, r, b, e: sig(b * c) + 1 - sig(b * (c - r))),
    "discopop": on_score(blend),
    "sigmoid_norm": of_means(lambda h, b, e: dpo(h, b, 0)),
    "sft": lambda p, ref, b, e: -p[:, 0] * B / LENGTHS[:, 0].sum(),
}


def values(name: str, p: torch.Tensor, divergence: str = "reverse_kl", e: float = 0.1) -> Any:
    logps = Logps(p, torch.tensor(REF), torch.tensor(LENGTHS))
    return PAIR_LOSSES[name](ScoredPairs(logps, DIVERGENCES[divergence](logps.ratio, 0.5), 0.3, e))


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_loss_is_its_formula_with_its_gradient(name: str) -> None:
    wanted = FORMULAS[name]
    p = torch.tensor(P, requires_grad=True)
    found = values(name, p)
    assert found.shape == (B,)
    np.testing.assert_allclose(found.detach(), wanted(P, REF, 0.3, 0.1), rtol=1e-9, atol=1e-12)
    found.sum().backward()
    step = 1e-6
    for place in np.ndindex(B, 2):
        moved = np.zeros_like(P)
        moved[place] = step
        up, down = (wanted(P + d, REF, 0.3, 0.1).sum() for d in (moved, -moved))
        assert p.grad is not None
        assert float(p.grad[place]) == pytest.approx((up - down) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_far_apart_a_loss_stays_a_number(name: str) -> None:
    for far in (1e3, -1e3):
        p = torch.tensor(REF + np.array([far, -far]), dtype=torch.float32, requires_grad=True)
        found = values(name, p)
        found.sum().backward()
        assert p.grad is not None
        assert found.isfinite().all()
        assert p.grad.isfinite().all()


@pytest.mark.parametrize(
    ("divergence", "slope"),
    [
        ("forward_kl", lambda t: 1 / t**2),
        ("js", lambda t: 1 / (t * (1 + t))),
        ("alpha", lambda t: t**-1.5),
    ],
)
def test_a_divergence_scores_by_its_derivative(
    divergence: str, slope: Callable[[Any], Any]
) -> None:
    """f''(t) of t = p/p_ref: f = -log t, t log t - (t + 1) log((t + 1)/2), and for alpha a
    (t^a - a t - (1 - a)) / (a (a - 1)), here with a = 1/2."""
    ratio = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    score = DIVERGENCES[divergence](ratio, 0.5)
    assert float(score.detach()[3]) == pytest.approx(0, abs=1e-12)
    score.sum().backward()
    t = ratio.detach().exp()
    torch.testing.assert_close(ratio.grad, slope(t) * t)  # d/d log t = t d/dt


@pytest.mark.parametrize("near", [0.0, 1.0])
def test_an_alpha_divergence_lies_between_both_kls(near: float) -> None:
    ratio = torch.linspace(-3, 3, 7, dtype=torch.float64)
    limit = DIVERGENCES["reverse_kl" if near else "forward_kl"](ratio, 0.5)
    torch.testing.assert_close(
        DIVERGENCES["alpha"](ratio, near + 1e-9), limit, rtol=1e-6, atol=1e-6
    )


def test_what_stands_beyond_the_shorter_reply_counts_less() -> None:
    counts = DPO.Config(ld_alpha=0.25).counts_by_token
    assert counts([2, 4]) == [[1, 1], [1, 1, 0.25, 0.25]]
    assert counts([3, 3]) == [[1, 1, 1], [1, 1, 1]]


def test_several_losses_are_summed_with_their_weights() -> None:
    method = DPO(DPO.Config(loss={"sigmoid": 1, "nca_pair": 0.5}, beta=0.3, label_smoothing=0.1))
    logps = Logps(torch.tensor(P), torch.tensor(REF), torch.tensor(LENGTHS))
    found, _ = method.of_pairs([], logps)
    p = torch.tensor(P)
    expected = (values("sigmoid", p) + 0.5 * values("nca_pair", p)).mean()
    assert float(found) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"loss": "exo_pair"}, "needs a label_smoothing above 0"),
        ({"loss": "apo_zero", "label_smoothing": 0.1}, "label_smoothing means nothing"),
        ({"loss": "aot", "divergence": "js"}, "divergence means nothing"),
        ({"loss": {}}, "it is empty"),
        ({"loss": {"sigmoid": 0}}, "greater than 0"),
        ({"loss": "robust"}, "is sigmoid without a label_smoothing"),
        ({"loss": "sft"}, "compares nothing"),
        ({"loss": "aot", "batch_size": 1}, "'aot' ranks the pairs of a step"),
        ({"loss": {"sigmoid": 1, "sft": 1}, "ld_alpha": 0.5}, "learns whole replies"),
        ({"divergence": "alpha", "divergence_alpha": 1}, "set that"),
        ({"divergence_alpha": 0.3}, "is for divergence: alpha"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        DPO.Config(**options)
