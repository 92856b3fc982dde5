"""Losses, their gradients and their metrics against formulas in float64 numpy."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.methods.dpo import DPO, Pair, _Preference
from posttrain_recipes.methods.sft import SFT, _Likelihood
from posttrain_recipes.training import losses
from posttrain_recipes.training.examples import Example

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


# --- what the methods ask of the engine ----------------------------------------------------------


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


@dataclass
class Client:
    """Keeps what it was asked."""

    asked: list[tuple[Any, Any]] = field(default_factory=list)

    def forward_backward(self, data: Any, loss_fn: str) -> Future[None]:
        self.asked.append((data, loss_fn))
        return done(None)

    def forward_backward_custom(self, data: Any, loss_fn: Any) -> Future[None]:
        self.asked.append((data, loss_fn))
        return done(None)


def test_sft_is_a_mean_over_the_tokens_of_the_batch() -> None:
    batch = [
        Example([1, 2, 3, 4], [0.0, 0.0, 1.0, 1.0]),
        Example([5, 6, 7], [1.0, 0.0, 1.0]),  # the first token is never predicted
        Example([8, 9, 8, 9, 8], [0.0, 1.0, 1.0, 1.0, 1.0]),
    ]
    client = Client()
    _Likelihood().submit(client, batch)
    [(data, loss_fn)] = client.asked
    assert loss_fn == "cross_entropy"
    weights = [datum.loss_fn_inputs["weights"].data for datum in data]
    assert weights == [
        pytest.approx([0, 1 / 7, 1 / 7]),
        pytest.approx([0, 1 / 7]),
        pytest.approx([1 / 7] * 4),
    ]
    assert sum(map(sum, weights)) == pytest.approx(1.0)
    assert [datum.loss_fn_inputs["target_tokens"].data for datum in data] == [
        [2, 3, 4],
        [6, 7],
        [9, 8, 9, 8],
    ]
    assert [datum.model_input.to_ints() for datum in data] == [[1, 2, 3], [5, 6], [8, 9, 8, 9]]
    assert _Likelihood().tokens(batch) == 12


class Stage:
    """What DPO needs of a stage: a reference whose log p is given, and a wait."""

    start = object()

    def __init__(self, reference: dict[tuple[int, ...], list[float | None]]) -> None:
        self.reference = reference
        self.asked: list[tuple[int, ...]] = []

    def sampling_client(self, checkpoint: object) -> Stage:
        assert checkpoint is self.start
        return self

    def compute_logprobs(self, model_input: Any) -> Future[list[float | None]]:
        tokens = tuple(model_input.to_ints())
        self.asked.append(tokens)
        return done(self.reference[tokens])

    def wait(self, future: Future[Any]) -> Any:
        return future.result()


def pairs(random: np.random.Generator, count: int) -> list[Pair]:
    def example(length: int) -> Example:
        prompt = int(random.integers(1, 4))
        tokens = random.integers(0, 10_000, size=prompt + length).tolist()
        return Example(tokens, [0.0] * prompt + [1.0] * length)

    return [
        Pair(example(int(random.integers(1, 6))), example(int(random.integers(1, 6))), index)
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("name", "smoothing"),
    [("sigmoid", 0.0), ("sigmoid", 0.1), ("robust", 0.1), ("hinge", 0.0), ("ipo", 0.0)],
)
@pytest.mark.parametrize(("beta", "scale"), [(0.1, 1.0), (1.0, 1.0), (0.5, 100.0)])
def test_dpo_gives_the_engine_its_loss_gradient_and_metrics(
    beta: float, scale: float, name: str, smoothing: float
) -> None:
    random = np.random.default_rng(7)
    batch = pairs(random, 40)
    flat = [example for pair in batch for example in (pair.chosen, pair.rejected)]
    reference = {tuple(e.tokens): random.normal(size=len(e.tokens)) * scale for e in flat}
    policy = [random.normal(size=len(e.tokens) - 1) * scale for e in flat]
    stage = Stage({k: [None, *v[1:].tolist()] for k, v in reference.items()})
    config = DPO.Config(beta=beta, loss=name, label_smoothing=smoothing)
    method = _Preference(stage, config)
    client = Client()
    method.prepare(batch)
    method.submit(client, batch)
    [(data, loss_fn)] = client.asked
    assert [datum.model_input.to_ints() for datum in data] == [e.tokens[:-1] for e in flat]

    logprobs = [torch.tensor(p, dtype=torch.float32, requires_grad=True) for p in policy]
    loss, metrics = loss_fn(data, logprobs)
    loss.backward()

    weights = [np.array(e.weights[1:]) for e in flat]
    ours = np.array([(w * p).sum() for w, p in zip(weights, policy, strict=True)]).reshape(-1, 2)
    theirs = np.array(
        [(w * reference[tuple(e.tokens)][1:]).sum() for w, e in zip(weights, flat, strict=True)]
    ).reshape(-1, 2)
    ratio = ours - theirs
    lengths = np.array([w.sum() for w in weights]).reshape(-1, 2) if name == "ipo" else 1.0
    scaled = ratio / lengths
    wanted, slope = formula(name, beta, smoothing)(scaled[:, 0] - scaled[:, 1])
    assert loss.item() == pytest.approx(wanted.mean(), rel=1e-4)
    for index, (weight, logprob) in enumerate(zip(weights, logprobs, strict=True)):
        sign = 1.0 if index % 2 == 0 else -1.0
        length = weight.sum() if name == "ipo" else 1.0
        gradient = sign * slope[index // 2] / len(batch) * weight / length
        np.testing.assert_allclose(logprob.grad, gradient, rtol=1e-3, atol=1e-9)
    assert metrics == pytest.approx(
        {
            "rewards/chosen": beta * ratio[:, 0].mean(),
            "rewards/rejected": beta * ratio[:, 1].mean(),
            "rewards/margins": beta * (ratio[:, 0] - ratio[:, 1]).mean(),
            "rewards/accuracies": (ratio[:, 0] > ratio[:, 1]).mean(),
            "logps/chosen": ours[:, 0].mean(),
            "logps/rejected": ours[:, 1].mean(),
        },
        rel=1e-4,
        abs=1e-5,
    )


def test_dpo_starts_at_log_two_where_the_policy_is_the_reference() -> None:
    random = np.random.default_rng(3)
    batch = pairs(random, 4)
    flat = [example for pair in batch for example in (pair.chosen, pair.rejected)]
    values = {tuple(e.tokens): (-random.random(len(e.tokens))).tolist() for e in flat}
    method = _Preference(Stage({k: [None, *v[1:]] for k, v in values.items()}), DPO.Config())
    client = Client()
    method.prepare(batch)
    method.submit(client, batch)
    loss, metrics = client.asked[0][1](
        None, [torch.tensor(values[tuple(e.tokens)][1:]) for e in flat]
    )
    assert loss.item() == pytest.approx(0.6931472, abs=1e-5)
    assert metrics["rewards/margins"] == pytest.approx(0.0, abs=1e-5)


def test_dpo_asks_the_reference_once_for_each_reply() -> None:
    random = np.random.default_rng(1)
    batch = pairs(random, 3)
    flat = [tuple(e.tokens) for pair in batch for e in (pair.chosen, pair.rejected)]
    stage = Stage({tokens: [None] + [-1.0] * (len(tokens) - 1) for tokens in flat})
    method = _Preference(stage, DPO.Config())
    for epoch in (batch, batch[::-1]):
        method.prepare(epoch)
        method.prepare(epoch)
        method.submit(Client(), epoch)
    assert stage.asked == flat


class Output:
    metrics = {"loss:sum": 0.5, "rewards/chosen": 1.0, "logps/chosen": -3.0, "other": 9.0}


def test_what_is_logged_goes_by_its_name() -> None:
    method = _Preference(Stage({}), DPO.Config())
    assert method.metrics([], Output()) == {
        "train/loss": 0.5,
        "rewards/chosen": 1.0,
        "logps/chosen": -3.0,
    }
    assert _Likelihood().metrics([], Output()) == {"train/loss": 0.5}


def test_the_methods_name_what_they_minimise() -> None:
    assert "log sigmoid(beta" in DPO.loss
    assert "2305.18290" in DPO.paper
    assert SFT.loss.startswith("-sum(w * log p) / sum(w)")
