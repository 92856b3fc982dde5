"""Weights computed of an adapter belong to that adapter: never to another at its address."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from posttrain_recipes.engine.model.base import BaseModel, new_adapter
from posttrain_recipes.engine.model.derived import Derived
from posttrain_recipes.engine.model.lora import Adapter
from posttrain_recipes.engine.train.forward_backward import forward_backward
from posttrain_recipes.engine.wire import AdamParams, AdapterConfig, Datum
from tests.device import base_model, near
from tests.engine_model import VOCAB, build
from tests.sampling import run, sample_request, tokens

IDS = np.random.default_rng(3).integers(0, VOCAB, 41)
DATA = [Datum(IDS[:-1], {"target_tokens": IDS[1:]})]


@pytest.fixture(scope="module", params=["short", "long"])
def base(request: Any, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """`long`: passes merge the adapter into its layers; `short`: they do not."""
    folder = build(tmp_path_factory.mktemp("model"), tied=request.param == "long")
    model = base_model(folder)
    assert model.decoder is not None
    if request.param == "short":
        model.decoder.hidden = 1000
    return model


def loss(base: BaseModel, adapter: Adapter) -> float:
    total: float = forward_backward(base, adapter, DATA, "cross_entropy", {}, True).metrics[
        "loss:sum"
    ]
    return total


def train(base: BaseModel, adapter: Adapter) -> None:
    """Move it far away from what it was."""
    forward_backward(base, adapter, DATA, "cross_entropy", {}, False)
    adapter.adam_step(AdamParams(learning_rate=0.5))


def begin(base: BaseModel, adapter: Adapter, how: str, index: int) -> None:
    """Bring a new adapter to where it begins without changing what it computes."""
    if how == "loaded":
        adapter.load(new_adapter(base, replace(adapter.config, seed=100)).snapshot(), None)
    elif how == "stepped" and index % 2:  # as often written to as the one before it at its end
        adapter.adam_step(AdamParams(learning_rate=0.0))


@pytest.mark.parametrize("how", ["new", "loaded", "stepped"])
@pytest.mark.parametrize("ranks", [(1,), (4,), (16,), (2, 8)], ids=str)
def test_ten_models_one_after_another_each_begin_at_the_base(
    base: BaseModel, ranks: tuple[int, ...], how: str
) -> None:
    expected = loss(base, new_adapter(base, AdapterConfig(rank=4, seed=0)))
    adapter: Adapter | None = None
    for index in range(10):
        config = AdapterConfig(rank=ranks[index % len(ranks)], seed=index)
        adapter = None  # nothing is made in between: the next one mostly gets its address
        adapter = new_adapter(base, config)
        begin(base, adapter, how, index)
        assert loss(base, adapter) == pytest.approx(expected, rel=near(1e-5))
        train(base, adapter)
        if how == "stepped":
            assert loss(base, adapter) != pytest.approx(expected, rel=0.01)


def test_samplers_made_one_after_another_sample_from_their_own_weights(base: BaseModel) -> None:
    def drawn(snapshot: Any) -> list[int]:
        (result,) = run(base, snapshot, sample_request(IDS[:9].tolist(), temperature=0))
        return tokens(result)

    plain = drawn(None)
    for seed in range(10):
        adapter = new_adapter(base, AdapterConfig(rank=4, seed=seed))
        assert drawn(adapter.snapshot()) == plain
        train(base, adapter)
        assert drawn(adapter.snapshot()) != plain
        del adapter


def test_nothing_of_an_adapter_outlives_it(base: BaseModel) -> None:
    adapter = new_adapter(base, AdapterConfig(rank=4, seed=0))
    loss(base, adapter)
    snapshot = adapter.snapshot()
    base.sampling_weights(snapshot)
    weights = weakref.ref(base.training_weights(adapter, 40))
    sampled = weakref.ref(base.sampling_weights(snapshot))
    del adapter, snapshot
    gc.collect()
    assert weights() is None
    assert sampled() is None


class Owner:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Owner)

    __hash__ = None  # type: ignore[assignment]


def test_the_last_few_are_kept_and_equal_owners_stay_apart() -> None:
    made: list[str] = []

    def make(name: str) -> Callable[[], str]:
        return lambda: made.append(name) or name  # type: ignore[func-returns-value]

    kept: Derived[str] = Derived(2)
    a, b, c = Owner(), Owner(), Owner()
    assert [kept.of(a, 0, make("a")), kept.of(b, 0, make("b"))] == ["a", "b"]
    assert kept.of(a, 0, make("a again")) == "a"
    assert kept.of(c, 0, make("c")) == "c"  # b was used longest ago
    assert kept.of(a, 0, make("a again")) == "a"
    assert kept.of(b, 0, make("b again")) == "b again"
    assert kept.of(b, 1, make("b changed")) == "b changed"
    assert kept.of(b, 0, make("b back")) == "b back"
    assert made == ["a", "b", "c", "b again", "b changed", "b back"]


def test_a_value_that_cannot_be_made_leaves_the_others() -> None:
    kept: Derived[int] = Derived(2)
    a, b = Owner(), Owner()
    kept.of(a, 0, lambda: 1)
    with pytest.raises(ZeroDivisionError):
        kept.of(b, 0, lambda: 1 // 0)
    assert kept.of(a, 0, lambda: 2) == 1
    assert kept.of(b, 0, lambda: 3) == 3
