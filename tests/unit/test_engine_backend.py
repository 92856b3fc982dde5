"""Passes over a base model with adapters: padding, gradients, isolation, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain_recipes.engine.model.base import BaseModel, new_adapter
from posttrain_recipes.engine.model.lora import Adapter
from posttrain_recipes.engine.train.forward_backward import forward_backward
from posttrain_recipes.engine.wire import AdamParams, AdapterConfig, Datum, RequestError
from tests.device import DEVICE, DTYPE, base_model, close, exact, near, noise
from tests.engine_model import VOCAB, build


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = build(tmp_path_factory.mktemp("model"))
    return base_model(folder)


@pytest.fixture
def adapter(base: BaseModel) -> Adapter:
    adapter = new_adapter(base, AdapterConfig(rank=4, seed=0))
    with torch.no_grad():  # away from B = 0, where half the gradient is zero
        adapter.flat.add_(0.02 * noise(adapter.flat, 1))
    return adapter


def datum(length: int, seed: int = 0, **inputs: Any) -> Datum:
    ids = np.random.default_rng(seed).integers(0, VOCAB, length + 1)
    return Datum(ids[:-1], {"target_tokens": ids[1:], **inputs})


def train(base: BaseModel, adapter: Adapter, data: list[Datum], loss: str = "cross_entropy") -> Any:
    return forward_backward(base, adapter, data, loss, {}, False)


def test_a_batch_gives_what_its_datums_give_alone(base: BaseModel, adapter: Adapter) -> None:
    data = [datum(n, seed=n) for n in (3, 40, 17, 1, 25, 9)]
    together = train(base, adapter, data)
    summed = adapter.grad.clone()
    adapter.grad.zero_()
    alone = [train(base, adapter, [item]) for item in data]
    for got, want in zip(together.logprobs, alone, strict=True):
        np.testing.assert_allclose(got, want.logprobs[0], atol=near(1e-5))
    total = sum(one.metrics["loss:sum"] for one in alone)
    assert together.metrics["loss:sum"] == pytest.approx(total, rel=near(1e-5))
    close(adapter.grad, summed)


@exact
def test_gradients_match_finite_differences(base: BaseModel, adapter: Adapter) -> None:
    data = [datum(12, weights=np.linspace(-1, 1, 12).astype(np.float32))]
    train(base, adapter, data)
    grad, step = adapter.grad.clone(), 1e-3
    direction = noise(grad, 2)
    direction /= direction.norm()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            adapter.flat.add_(sign * step * direction)
            out = forward_backward(base, adapter, data, "cross_entropy", {}, True)
            adapter.flat.sub_(sign * step * direction)
        values.append(out.metrics["loss:sum"])
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(float(grad @ direction), rel=0.02)


def test_forward_only_leaves_no_gradient(base: BaseModel, adapter: Adapter) -> None:
    forward_backward(base, adapter, [datum(5)], "cross_entropy", {}, True)
    assert not adapter.grad.any()


def test_adapters_on_one_base_do_not_meet(base: BaseModel, adapter: Adapter) -> None:
    fresh = new_adapter(base, AdapterConfig(rank=2, seed=5, train_unembed=False))
    before = train(base, fresh, [datum(8)]).logprobs[0]
    fresh.grad.zero_()
    train(base, adapter, [datum(8)])
    adapter.adam_step(AdamParams(learning_rate=0.1))
    assert not fresh.grad.any()
    np.testing.assert_array_equal(train(base, fresh, [datum(8)]).logprobs[0], before)
    with torch.no_grad():  # a new adapter changes nothing
        logits = base.model(torch.from_numpy(datum(8).tokens)[None].to(base.device)).logits[0]
    plain = logits.float().log_softmax(-1).cpu()[range(8), datum(8).inputs["target_tokens"]]
    np.testing.assert_allclose(before, plain, atol=near(1e-5))


def test_the_same_seed_and_data_give_the_same_weights(base: BaseModel) -> None:
    def trained() -> torch.Tensor:
        adapter = new_adapter(base, AdapterConfig(rank=4, seed=7))
        for seed in range(3):
            train(base, adapter, [datum(9, seed), datum(4, seed)])
            adapter.adam_step(AdamParams(learning_rate=1e-2))
        return adapter.flat.clone()

    assert torch.equal(trained(), trained())


def test_targets_may_be_many_and_of_different_widths(base: BaseModel, adapter: Adapter) -> None:
    wide = datum(6)
    both = np.stack([wide.inputs["target_tokens"], np.arange(6)], axis=1)
    weights = np.tile(np.array([[0.25, 0.75]], np.float32), (6, 1))
    data = [Datum(wide.tokens, {"target_tokens": both, "weights": weights}), datum(6)]
    data[1] = Datum(data[1].tokens, {**data[1].inputs, "weights": np.ones(6, np.float32)})
    out = train(base, adapter, data)
    assert [x.shape for x in out.logprobs] == [(6, 2), (6,)]
    np.testing.assert_allclose(out.logprobs[0][:, 0], out.logprobs[1], atol=near(1e-6))
    expected = -(out.logprobs[0] * weights).sum() - out.logprobs[1].sum()
    assert out.metrics["loss:sum"] == pytest.approx(float(expected), rel=1e-5)


def test_adam_matches_torch(base: BaseModel, adapter: Adapter) -> None:
    mine = adapter.flat.clone().requires_grad_()
    params = AdamParams(learning_rate=0.01, eps=1e-8, weight_decay=0.1, grad_clip_norm=1.0)
    theirs = torch.optim.AdamW([mine], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for seed in range(4):
        grad = noise(mine, seed) * (0.001 if seed % 2 else 1.0)
        adapter.grad.copy_(grad)
        norm = adapter.adam_step(params)
        mine.grad = grad.clone()
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_([mine], 1.0)), rel=1e-5)
        theirs.step()
        assert not adapter.grad.any()
    torch.testing.assert_close(adapter.flat, mine.detach(), rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_not_finite_takes_no_step(adapter: Adapter) -> None:
    before = adapter.flat.clone()
    adapter.grad[0] = float("nan")
    with pytest.raises(RequestError, match="nan"):
        adapter.adam_step(AdamParams())
    assert torch.equal(adapter.flat, before)
    assert adapter.step == 0
    assert not adapter.grad.any()


IDS = np.arange(4)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (Datum(IDS[:0], {"target_tokens": IDS[:0]}), "empty"),
        (Datum(IDS, {}), "target_tokens"),
        (Datum(IDS + VOCAB, {"target_tokens": IDS}), "vocabulary"),
        (Datum(IDS, {"target_tokens": IDS - 2}), "vocabulary"),
        (Datum(IDS, {"target_tokens": IDS[:3]}), "4 input tokens but 3 targets"),
        (Datum(IDS, {"target_tokens": IDS, "weights": np.ones(3, np.float32)}), "weights"),
        (Datum(IDS, {"target_tokens": IDS, "mask": np.ones(4, np.float32)}), "mask"),
        (Datum(np.zeros(129, int), {"target_tokens": np.zeros(129, int)}), "context window"),
        (Datum(IDS, {"target_tokens": IDS.astype(np.float32)}), "int64"),
    ],
)
def test_a_datum_at_fault_refuses_the_request_whole(
    base: BaseModel, adapter: Adapter, bad: Datum, says: str
) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        train(base, adapter, [datum(5), bad])
    assert caught.value.status == 422
    assert not adapter.grad.any()


def test_losses_say_what_they_miss(base: BaseModel, adapter: Adapter) -> None:
    with pytest.raises(RequestError, match="advantages"):
        train(base, adapter, [datum(5, logprobs=np.zeros(5, np.float32))], "ppo")
    with pytest.raises(RequestError, match="ppo"):
        train(base, adapter, [datum(5)], "stable_reinforce")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot load base model 'x'") as caught:
        base_model(tmp_path, "x")
    assert caught.value.status == 404


def test_a_model_in_memory_is_what_it_is_from_disk(base: BaseModel) -> None:
    given = AutoModelForCausalLM.from_pretrained(base.path, dtype=DTYPE)
    mine = BaseModel("given", base.path, DEVICE, model=given)
    assert mine.decoder is not None
    config = AdapterConfig(rank=4, seed=0)
    found = [train(one, new_adapter(one, config), [datum(9)]).logprobs[0] for one in (base, mine)]
    np.testing.assert_array_equal(*found)
    assert mine.eos_ids() == base.eos_ids()


@pytest.mark.parametrize("config", [AdapterConfig(rank=0), AdapterConfig(rank=9999)])
def test_ranks_have_bounds(base: BaseModel, config: AdapterConfig) -> None:
    with pytest.raises(RequestError, match="rank"):
        new_adapter(base, config)


def test_what_is_trained_follows_the_configuration(base: BaseModel) -> None:
    def names(**train: bool) -> set[str]:
        off = {"train_attn": False, "train_mlp": False, "train_unembed": False}
        layers = new_adapter(base, AdapterConfig(rank=1, seed=0, **{**off, **train})).layers
        return {name.rsplit(".", 1)[-1] for name in layers}

    assert names(train_attn=True) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert names(train_mlp=True) == {"gate_proj", "up_proj", "down_proj"}
    assert names(train_unembed=True) == {"lm_head"}
