"""Every loss, value and gradient, against the same formula written again in NumPy, float64: alone
over random shapes, and through a model over ragged batches and chunked requests."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from posttrain_recipes.engine.model.base import BaseModel, new_adapter
from posttrain_recipes.engine.model.lora import Adapter
from posttrain_recipes.engine.train import losses
from posttrain_recipes.engine.train.forward_backward import forward_backward
from posttrain_recipes.engine.wire import AdapterConfig, Datum, RequestError
from tests.device import base_model, near, noise
from tests.engine_model import VOCAB, build

V = 7
LOW, HIGH = 0.9, 1.15  # close enough to 1 for a sequence's ratio to meet them


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def loss_and_slope(name: str, p: np.ndarray, n: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """One datum's loss, and d loss / d log p for each token, from the formula. All are (N,) or
    (N, K)."""
    if name == "cross_entropy":
        return -(n["weights"] * p).sum(), -n["weights"]
    if "weights" in n:  # of each token's term
        others = {key: value for key, value in n.items() if key != "weights"}
        terms, slopes = policy_terms(name, p, others)
        return (n["weights"] * terms).sum(), n["weights"] * slopes
    terms, slopes = policy_terms(name, p, n)
    return terms.sum(), slopes


def policy_terms(
    name: str, p: np.ndarray, n: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Each token's term of a loss with advantages, and its slope."""
    q, a, r = n["logprobs"], n["advantages"], np.exp(p - n["logprobs"])
    if name == "importance_sampling":
        return -r * a, -r * a
    if name == "gspo":
        marked = n.get("sequence_ratio_mask", a) != 0
        r = np.full_like(p, np.exp((p - q)[marked].mean()))
    if name in ("ppo", "gspo"):
        inside = np.clip(r, LOW, HIGH)
        moves = (r * a <= inside * a) | (r == inside)
        return -np.minimum(r * a, inside * a), np.where(moves, -r * a, 0.0)
    if name == "cispo":
        w = np.clip(r, LOW, HIGH)
        return -w * p * a, -w * a
    assert name == "dro"
    return -(a * p - 0.025 * (p - q) ** 2), -(a - 0.05 * (p - q))


def settings(name: str) -> dict[str, float | str]:
    clipped = name in ("ppo", "cispo", "gspo")
    return {"clip_low_threshold": LOW, "clip_high_threshold": HIGH} if clipped else {}


def inputs_for(
    name: str,
    near: np.ndarray,
    rng: np.random.Generator,
    shape: tuple[int, ...],
    weighted: bool = False,
) -> dict[str, np.ndarray]:
    """Loss inputs of a datum; log q lies around `near`, so that ratios fall on both sides."""
    if name == "cross_entropy":
        return {"weights": rng.normal(size=shape)}
    found = {"logprobs": near + rng.normal(0, 0.2, shape), "advantages": rng.normal(size=shape)}
    if weighted:
        found["weights"] = rng.normal(size=shape)
    if name == "gspo":
        found["sequence_ratio_mask"] = (rng.random(shape) < 0.7) * 1.0
        found["sequence_ratio_mask"][-1] = 1.0
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_value_and_gradient_match_the_formula(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, size=rng.integers(1, 6))
    value, slopes, rows, batch = 0.0, [], [], []
    for size in sizes:
        logits, targets = rng.normal(size=(size, V)) * 2, rng.integers(0, V, size=(size, 1))
        p = np.take_along_axis(log_softmax(logits), targets, -1)
        numbers = inputs_for(name, p, rng, (size, 1), weighted=seed > 2)
        one, slope = loss_and_slope(name, p, numbers)
        value += one
        slopes.append(slope)
        rows.append(logits)
        batch.append({"targets": targets, **numbers})
    joined = {k: torch.tensor(np.concatenate([b[k] for b in batch])) for k in batch[0]}
    joined["datum"] = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)[:, None])
    logits = torch.tensor(np.concatenate(rows), requires_grad=True)
    logp = losses.token_logprobs(logits, joined["targets"])
    loss = losses.find(name).fn(logp, joined, losses.settings(name, settings(name)))
    loss.backward()

    assert loss.item() == pytest.approx(value, rel=1e-12)
    onehot = np.eye(V)[joined["targets"][:, 0].numpy()]
    wanted = np.concatenate(slopes) * (onehot - np.exp(log_softmax(np.concatenate(rows))))
    np.testing.assert_allclose(logits.grad, wanted, atol=1e-12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return base_model(build(tmp_path_factory.mktemp("model")))


def adapted(base: BaseModel) -> Adapter:
    adapter = new_adapter(base, AdapterConfig(rank=3, seed=0))
    with torch.no_grad():
        adapter.flat.add_(0.05 * noise(adapter.flat, 1))
    return adapter


class Reference:
    """The same model and adapter in float64, by transformers alone, one sequence at a time."""

    def __init__(self, base: BaseModel, adapter: Adapter) -> None:
        active_adapter, base.active_adapter.layers = base.active_adapter.layers, None
        self.model = copy.deepcopy(base.model)
        base.active_adapter.layers = active_adapter
        for module in self.model.modules():
            module.__dict__.pop("forward", None)  # the engine's own
        self.model.double().cpu()
        self.model.config._attn_implementation = "eager"
        snapshot = adapter.snapshot()
        self.leaves = {
            key: view.double().cpu().requires_grad_()
            for key, view in snapshot.layout.views(snapshot.flat).items()
        }
        self.names = list(dict.fromkeys(name for name, _ in self.leaves))
        self.scale = snapshot.scale

    def logits(self, tokens: np.ndarray) -> torch.Tensor:
        weights = {}
        for name in self.names:
            delta = self.scale * self.leaves[name, "B"] @ self.leaves[name, "A"]
            weights[f"{name}.weight"] = self.model.get_submodule(name).weight + delta
        out = torch.func.functional_call(
            self.model, weights, (torch.from_numpy(tokens)[None],), tie_weights=False
        )
        return out.logits[0]

    def gradient(self, adapter: Adapter) -> np.ndarray:
        flat = torch.zeros(adapter.flat.shape, dtype=torch.float64)
        for key, view in adapter.layout.views(flat).items():
            view.copy_(self.leaves[key].grad)
        return flat.numpy()


@pytest.mark.parametrize("name", [*sorted(losses.LOSSES), "cross_entropy of 3"])
def test_through_a_model_ragged_and_in_chunks(base: BaseModel, name: str) -> None:
    adapter = adapted(base)
    reference = Reference(base, adapter)
    many = name.endswith("3")
    name = name.split()[0]
    rng = np.random.default_rng(len(name))
    data, value = [], 0.0
    wanted_logp = []
    for size in (9, 40, 1, 17, 17, 3, 28):
        tokens = rng.integers(0, VOCAB, size)
        targets = rng.integers(0, VOCAB, (size, 3) if many else size)
        logits = reference.logits(tokens)
        logp = logits.log_softmax(-1).gather(-1, torch.from_numpy(targets.reshape(size, -1)))
        p = logp.detach().numpy().reshape(targets.shape)
        numbers = inputs_for(name, p, rng, targets.shape)
        numbers = {key: item.astype(np.float32) for key, item in numbers.items()}
        exact = {key: item.astype(np.float64) for key, item in numbers.items()}
        one, slope = loss_and_slope(name, p, exact)
        value += one
        (logp * torch.from_numpy(slope.reshape(size, -1))).sum().backward()
        wanted_logp.append(p)
        data.append(Datum(tokens, {"target_tokens": targets, **numbers}))
    scale = np.abs(reference.gradient(adapter)).max()
    for chunks in ([data], [data[:2], data[2:3], data[3:]]):
        adapter.grad.zero_()
        outs = [forward_backward(base, adapter, c, name, settings(name), False) for c in chunks]
        total = sum(out.metrics["loss:sum"] for out in outs)
        assert total == pytest.approx(value, rel=near(1e-4), abs=near(1e-3))
        for got, want in zip([x for o in outs for x in o.logprobs], wanted_logp, strict=True):
            np.testing.assert_allclose(got, want, atol=near(2e-5))
        np.testing.assert_allclose(
            adapter.grad.cpu() / scale, reference.gradient(adapter) / scale, atol=near(2e-5)
        )
    before = adapter.grad.clone()
    only = forward_backward(base, adapter, data, name, settings(name), True)
    assert only.metrics["loss:sum"] == pytest.approx(value, rel=near(1e-4), abs=near(1e-3))
    assert torch.equal(adapter.grad, before)


def test_clip_bounds_come_from_the_settings_or_the_datum() -> None:
    logp = torch.log(torch.tensor([[2.0], [2.0]]))
    base = {"logprobs": torch.zeros(2, 1), "advantages": torch.ones(2, 1)}
    given = losses.settings("ppo", {"clip_high_threshold": 1.5})
    assert float(losses.ppo(logp, base, given)) == pytest.approx(-3.0)
    per_token = {**base, "clip_high_threshold": torch.tensor([[1.1], [9.0]])}
    assert float(losses.ppo(logp, per_token, given)) == pytest.approx(-3.1)


def test_without_a_mask_a_sequence_has_the_ratio_of_what_has_an_advantage() -> None:
    """As programs send it whose prompts have no log-probabilities: 0 there, and no advantage."""
    rng = np.random.default_rng(0)
    p, q, a = rng.normal(-2, 0.05, (9, 1)), rng.normal(-2, 0.05, (9, 1)), rng.normal(size=(9, 1))
    for numbers in (q, a):
        numbers[:4] = 0.0
    rows = {"logprobs": q, "advantages": a}
    inputs = {key: torch.tensor(value) for key, value in rows.items()}
    inputs["datum"] = torch.zeros(9, 1, dtype=torch.int64)
    given = losses.settings("gspo", settings("gspo"))
    value, _ = loss_and_slope("gspo", p, rows)
    assert float(losses.gspo(torch.tensor(p), inputs, given)) == pytest.approx(value)
    marked = {**inputs, "sequence_ratio_mask": torch.tensor(a != 0, dtype=torch.float64)}
    assert float(losses.gspo(torch.tensor(p), marked, given)) == pytest.approx(value)


def test_a_sequence_without_a_ratio_is_refused(base: BaseModel) -> None:
    ids, zero = np.arange(3), np.zeros(3, np.float32)
    inputs: dict[str, Any] = {"target_tokens": ids, "logprobs": zero, "advantages": zero}
    datum = Datum(ids, {**inputs, "sequence_ratio_mask": zero})
    with pytest.raises(RequestError, match="marks no token"):
        forward_backward(base, adapted(base), [datum], "gspo", {}, False)


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("stable_reinforce", {}, "ppo"),
        ("custom", {}, "loss_id"),
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
