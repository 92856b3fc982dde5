"""Custom losses as the SDK sends them: run as torch would, refused for what is not allowed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tinker.lib.public_interfaces.custom_loss import encode_graph, trace_loss

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.model.base import BaseModel, new_adapter
from posttrain_recipes.engine.train.custom_loss import LossGraph
from posttrain_recipes.engine.train.forward_backward import forward_backward
from posttrain_recipes.engine.wire import AdapterConfig, CreateCustomLoss, Datum, RequestError
from tests.device import base_model
from tests.engine_model import VOCAB, build


def uploaded(fn: Any, **ranks: Any) -> CreateCustomLoss:
    """`fn` as it arrives at the engine, through the SDK's own tracing and JSON."""
    from tinker.types import CreateCustomLossRequest

    handle = trace_loss(fn, ranks, "s")
    request = CreateCustomLossRequest(
        session_id="s",
        custom_loss_seq_id=0,
        name=handle.name,
        inputs=list(handle.inputs),
        graph=encode_graph(handle),
    )
    return wire.parse(CreateCustomLoss, request.model_dump_json().encode())


def clipped(logprobs, advantages, old, beta):  # type: ignore[no-untyped-def]
    ratio = torch.exp(logprobs - old)
    kept = torch.where(advantages > 0, ratio.clamp(max=1.2), ratio.clamp(min=0.8))
    late = torch.arange(logprobs.shape[0], device=logprobs.device) > 0
    loss = -(torch.minimum(ratio, kept) * advantages).sum() + beta * (logprobs - old).pow(2).mean()
    loss = loss - F.logsigmoid(logprobs[1:] - logprobs[:-1]).sum()
    loss = loss + F.softplus(ratio[..., None]).sum()
    return loss, {
        "custom/ratio:mean": ratio.mean().detach(),
        "custom/late:sum": late.float().sum(),
        "custom/top:sum": torch.max(ratio, dim=0).values.detach(),
    }


def wide(logprobs, teacher):  # type: ignore[no-untyped-def]
    mass = logprobs.to(torch.float32).logsumexp(-1, keepdim=True)
    loss = -(F.softmax(teacher, dim=-1) * (logprobs - mass)).sum() / logprobs.size(0)
    return loss, {}


NUMBERS = torch.Generator().manual_seed(0)
CASES = [
    (clipped, {"logprobs": 1, "advantages": 1, "old": 1, "beta": 0}, [(6,), (6,), (6,), ()]),
    (wide, {"logprobs": 2, "teacher": 2}, [(5, 3), (5, 3)]),
]


@pytest.mark.parametrize(("fn", "ranks", "shapes"), CASES)
def test_a_graph_gives_what_its_function_gives(fn: Any, ranks: Any, shapes: Any) -> None:
    graph = LossGraph(uploaded(fn, **ranks))
    logprobs, *others = (torch.randn(shape, generator=NUMBERS) for shape in shapes)
    logprobs.requires_grad_()
    named = dict(zip(list(ranks)[1:], others, strict=True))
    loss, metrics = graph.evaluate(logprobs, named)
    want, want_metrics = fn(logprobs, *others)
    torch.testing.assert_close(loss, want)
    assert metrics == {key: pytest.approx(float(value)) for key, value in want_metrics.items()}
    mine, theirs = (torch.autograd.grad(x, logprobs)[0] for x in (loss, want))
    torch.testing.assert_close(mine, theirs)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return base_model(build(tmp_path_factory.mktemp("model")))


def weighted(logprobs, weights):  # type: ignore[no-untyped-def]
    loss = -(logprobs * weights).sum()
    return loss, {"custom/nll:mean": loss, "custom/tokens:sum": torch.ones_like(logprobs).sum()}


def test_a_custom_loss_trains_as_the_built_in_of_the_same_formula(base: BaseModel) -> None:
    rng = np.random.default_rng(0)
    data = []
    for size in (4, 9, 2):
        ids, weights = rng.integers(0, VOCAB, size + 1), rng.random(size).astype(np.float32)
        data.append(Datum(ids[:-1], {"target_tokens": ids[1:], "weights": weights}))
    adapter = new_adapter(base, AdapterConfig(rank=2, seed=0))
    graphs = {"s:loss:0": LossGraph(uploaded(weighted, logprobs=1, weights=1))}
    config = {"loss_id": "s:loss:0"}
    custom = forward_backward(base, adapter, data, "custom", config, False, graphs)
    grad = adapter.grad.clone()
    adapter.grad.zero_()
    built_in = forward_backward(base, adapter, data, "cross_entropy", {}, False)
    torch.testing.assert_close(grad, adapter.grad)
    total = built_in.metrics["loss:sum"]
    assert custom.metrics == {
        "loss:sum": pytest.approx(total),
        "custom/nll:mean": pytest.approx(total / 3),
        "custom/tokens:sum": 15,
    }
    for mine, theirs in zip(custom.logprobs, built_in.logprobs, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_datum_that_does_not_fit_undoes_the_request(base: BaseModel) -> None:
    adapter = new_adapter(base, AdapterConfig(rank=2, seed=0))
    graphs = {"x": LossGraph(uploaded(weighted, logprobs=1, weights=1))}
    one = np.ones(3, np.float32)
    many = np.ones(40, np.float32)
    good = Datum(np.arange(40), {"target_tokens": np.arange(40), "weights": many})
    bad = Datum(np.arange(4), {"target_tokens": np.arange(4), "weights": one})
    adapter.grad.fill_(2.0)
    with pytest.raises(RequestError, match=r"'weighted'.*mul") as caught:
        forward_backward(base, adapter, [good, bad], "custom", {"loss_id": "x"}, False, graphs)
    assert caught.value.status == 422
    assert bool((adapter.grad == 2.0).all())
    with pytest.raises(RequestError, match="needs 'weights'"):
        forward_backward(
            base, adapter, [Datum(np.arange(4), {"target_tokens": np.arange(4)})], "custom",
            {"loss_id": "x"}, False, graphs,
        )  # fmt: skip
    with pytest.raises(RequestError, match="no custom loss 'y'"):
        forward_backward(base, adapter, [good], "custom", {"loss_id": "y"}, False, graphs)


def node(op: str, target: str, *args: Any, **kwargs: Any) -> wire.GraphNode:
    return wire.GraphNode(op, "n", target, list(args), kwargs)  # type: ignore[arg-type]


LOGP = {"ref": "logprobs"}
DEEP: Any = 1
for _ in range(40):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (node("call_function", "os.system", "true"), "os.system"),
        (node("call_function", "torch.load", "/etc/passwd"), "torch.load"),
        (node("call_function", "torch.ops.aten.exp", LOGP), "torch.ops"),
        (node("call_function", "builtins.eval", "1"), "eval"),
        (node("call_method", "item", LOGP), "item"),
        (node("call_method", "mul_", LOGP, 2), "in-place"),
        (node("call_method", "__reduce__", LOGP), "__reduce__"),
        (node("call_module", "layer", LOGP), "modules"),
        (node("get_attr", "weight"), "modules"),
        (node("call_function", "torch.exp", LOGP, out=LOGP), "out="),
        (node("call_function", "torch.exp", {"ref": "later"}), "later"),
        (node("call_function", "torch.exp", DEEP), "deep"),
    ],
)
def test_what_is_not_arithmetic_is_refused_before_it_runs(bad: wire.GraphNode, says: str) -> None:
    request = uploaded(weighted, logprobs=1, weights=1)
    nodes = [*request.graph.nodes[:2], bad, *request.graph.nodes[2:]]
    with pytest.raises(RequestError, match=says) as caught:
        LossGraph(dataclasses.replace(request, graph=wire.Graph(nodes)))
    assert caught.value.status == 422


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (node("call_function", "getattr", LOGP, "__class__"), "__class__"),
        (node("call_function", "operator.mul", "a", 1 << 40), "arithmetic"),
        (node("call_function", "operator.mul", [1], 1 << 40), "arithmetic"),
        (node("call_function", "operator.mul", 1 << 62, 4), "too large"),
        (node("call_function", "operator.pow", 10, 100_000_000), "too large|out of range"),
        (node("call_function", "torch.zeros", 1 << 40), "elements"),
        (node("call_function", "torch.arange", 1 << 40), "elements"),
        (node("call_method", "expand", LOGP, 1 << 40, -1), "elements"),
        (node("call_function", "torch.exp", {"what": 1}), "kind"),
        (node("call_function", "torch.exp", {}), "malformed"),
        (node("call_function", "torch.sum", LOGP, 7), "[Dd]im"),
    ],
)
def test_what_would_break_out_or_blow_up_stops_with_a_reason(
    bad: wire.GraphNode, says: str
) -> None:
    request = uploaded(weighted, logprobs=1, weights=1)
    nodes = [*request.graph.nodes[:2], bad, *request.graph.nodes[2:]]
    graph = LossGraph(dataclasses.replace(request, graph=wire.Graph(nodes)))
    with pytest.raises(RequestError, match=says) as caught:
        graph.evaluate(torch.zeros(4), {"weights": torch.zeros(4)})
    assert caught.value.status == 422


def test_an_outer_product_of_a_long_sequence_is_refused() -> None:
    def outer(logprobs):  # type: ignore[no-untyped-def]
        return (logprobs[:, None] * logprobs[None]).sum(), {}

    graph = LossGraph(uploaded(outer, logprobs=1))
    graph.evaluate(torch.zeros(10), {})
    with pytest.raises(RequestError, match="elements"):
        graph.evaluate(torch.zeros(10_000), {})


def test_a_graph_of_another_shape_is_refused() -> None:
    request = uploaded(weighted, logprobs=1, weights=1)
    for changed, says in [
        (dataclasses.replace(request, inputs=request.inputs[::-1]), "first input"),
        (dataclasses.replace(request, inputs=request.inputs[:1]), "takes"),
        (dataclasses.replace(request, graph=wire.Graph(request.graph.nodes[:-1])), "end with"),
        (dataclasses.replace(request, graph=wire.Graph(request.graph.nodes, 2)), "format 2"),
        (dataclasses.replace(request, graph=wire.Graph(request.graph.nodes * 1000)), "limit"),
    ]:
        with pytest.raises(RequestError, match=says):
            LossGraph(changed)
