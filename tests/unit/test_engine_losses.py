"""Every loss, value and gradient, against the same formula written again in NumPy, float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posttrain_recipes.engine import losses

N, V = 11, 7


@pytest.fixture
def numbers() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "logits": rng.normal(size=(N, V)) * 2,
        "targets": rng.integers(0, V, size=(N, 1)),
        "logprobs": rng.normal(-3, 1.0, size=(N, 1)),
        "advantages": rng.normal(size=(N, 1)) * 2,
        "weights": rng.normal(size=(N, 1)),
    }


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def loss_and_slope(name: str, p: np.ndarray, n: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """The loss, and d loss / d log p for each token, from the formula."""
    q, a, r = n["logprobs"], n["advantages"], np.exp(p - n["logprobs"])
    if name == "cross_entropy":
        return -(n["weights"] * p).sum(), -n["weights"]
    if name == "importance_sampling":
        return -(r * a).sum(), -r * a
    if name == "ppo":
        inside = np.clip(r, 0.8, 1.2)
        taken = np.minimum(r * a, inside * a)
        moves = (r * a <= inside * a) | (r == inside)
        return -taken.sum(), np.where(moves, -r * a, 0.0)
    if name == "cispo":
        w = np.clip(r, 0.0, 4.0)
        return -(w * p * a).sum(), -w * a
    assert name == "dro"
    return -(a * p - 0.025 * (p - q) ** 2).sum(), -(a - 0.05 * (p - q))


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_value_and_gradient_match_the_formula(name: str, numbers: dict[str, np.ndarray]) -> None:
    logits = torch.tensor(numbers["logits"], requires_grad=True)
    logp = losses.token_logprobs(logits, torch.tensor(numbers["targets"]))
    inputs = {k: torch.tensor(numbers[k]) for k in ("logprobs", "advantages", "weights")}
    loss = losses.find(name).fn(logp, inputs, losses.settings(name, {}))
    loss.backward()

    all_logp = log_softmax(numbers["logits"])
    p = np.take_along_axis(all_logp, numbers["targets"], -1)
    value, slope = loss_and_slope(name, p, numbers)
    onehot = np.eye(V)[numbers["targets"][:, 0]]
    assert loss.item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(logits.grad, slope * (onehot - np.exp(all_logp)), atol=1e-12)


def test_the_numbers_exercise_both_sides_of_the_clip(numbers: dict[str, np.ndarray]) -> None:
    p = np.take_along_axis(log_softmax(numbers["logits"]), numbers["targets"], -1)
    r = np.exp(p - numbers["logprobs"])
    clipped = (r < 0.8) | (r > 1.2)
    assert clipped.any()
    assert not clipped.all()
    assert (r > 4).any()


def test_several_targets_a_position(numbers: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    targets, weights = rng.integers(0, V, size=(N, 3)), rng.random((N, 3))
    logits = torch.tensor(numbers["logits"], requires_grad=True)
    logp = losses.token_logprobs(logits, torch.tensor(targets))
    losses.cross_entropy(logp, {"weights": torch.tensor(weights)}, {}).backward()
    all_logp = log_softmax(numbers["logits"])
    np.testing.assert_allclose(logp.detach(), np.take_along_axis(all_logp, targets, -1))
    onehots = np.eye(V)[targets]  # (N, 3, V)
    slope = -weights[..., None] * (onehots - np.exp(all_logp)[:, None])
    np.testing.assert_allclose(logits.grad, slope.sum(1), atol=1e-12)


def test_clip_bounds_come_from_the_settings_or_the_datum() -> None:
    logp = torch.log(torch.tensor([[2.0], [2.0]]))
    base = {"logprobs": torch.zeros(2, 1), "advantages": torch.ones(2, 1)}
    given = losses.settings("ppo", {"clip_high_threshold": 1.5})
    assert float(losses.ppo(logp, base, given)) == pytest.approx(-3.0)
    per_token = {**base, "clip_high_threshold": torch.tensor([[1.1], [9.0]])}
    assert float(losses.ppo(logp, per_token, given)) == pytest.approx(-3.1)


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("stable_reinforce", {}, "ppo"),
        ("custom", {}, "forward_backward_custom"),
        ("croos_entropy", {}, "cross_entropy"),
        ("ppo", {"clip": 0.2}, "clip_low_threshold"),
        ("ppo", {"clip_low_threshold": "low"}, "number"),
        ("cross_entropy", {"beta": 1.0}, "none"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_to_use(
    name: str, config: dict[str, float | str], says: str
) -> None:
    with pytest.raises(losses.LossError, match=says):
        losses.settings(name, config)
