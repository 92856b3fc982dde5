"""The engine's TorchScript functions: the same in Python, and against autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain_recipes.engine.generate import decode_step, slots
from posttrain_recipes.engine.model import kernels
from posttrain_recipes.engine.model.kernels import FusedLora, Layer, Product
from tests.device import DEVICE

T, H, N, G, D, F, RANK = 7, 12, 4, 2, 6, 10, 2


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[None]:
    with DEVICE:
        yield


def lora(rows: list[int], sizes: list[int], inner: int, merged: bool = False) -> FusedLora:
    b = [torch.randn(size, RANK) for size in sizes]
    return FusedLora(torch.randn(RANK * len(sizes), inner), b, rows, 0.5, merged)


def layer(seed: int = 0) -> Layer:
    """Random weights; what is drawn after them follows from the seed too."""
    torch.manual_seed(seed)
    return Layer(
        # the second of the three has no adapter
        Product(torch.randn((N + 2 * G) * D, H), torch.randn((N + 2 * G) * D),
                lora([0, (N + G) * D], [N * D, G * D], H)),
        Product(torch.randn(H, N * D), None, lora([0], [H], N * D)),
        Product(torch.randn(2 * F, H), None, lora([0, F], [F, F], H)),
        Product(torch.randn(H, F), None, None),
        torch.rand(H), torch.rand(H), torch.rand(N + G, D), 1e-6,
    )  # fmt: skip


def grads_of(made: Layer) -> list[list[Tensor]]:
    out = []
    for by in (made.qkv, made.out, made.gate_up, made.down):
        mine: list[Tensor] = []
        for index in range(len(by.lora.b) if by.lora else 0):
            assert by.lora is not None
            mine += [torch.zeros(RANK, by.lora.a.shape[1]), torch.zeros_like(by.lora.b[index])]
        out.append(mine)
    return out


def angles() -> tuple[Tensor, Tensor]:
    angle = torch.rand(T, 1, D // 2)
    sin = angle.sin()
    return torch.cat([angle.cos()] * 2, -1), torch.cat([-sin, sin], -1)


Call = Callable[[Callable[..., Any]], Any]


def forward_and_back(run: Callable[[Any], Any]) -> list[Any]:
    """What a layer gives with attention left out (queries pass through), each function as `run`
    makes it."""
    made = layer()
    x, (cos, sin), dy = torch.randn(T, H), angles(), torch.randn(T, H)
    grads = grads_of(made)
    before = run(kernels.before_attention)(x, made, cos, sin, G)
    attn_out = before[4][:, :N].flatten(1)
    y, kept = run(kernels.after_attention_kept)(x, attn_out, made, before)
    plain = run(kernels.after_attention)(x, attn_out, made)
    dx, d_attn_out = run(kernels.after_attention_backward)(dy.clone(), made, kept, grads)
    d_qk = torch.cat([d_attn_out.view(T, N, D), torch.zeros(T, G, D)], 1)
    dx = run(kernels.before_attention_backward)(
        dx, d_qk, torch.zeros(T, G, D), made, kept, cos, sin, grads, False
    )
    return [y, plain, dx, *(grad for block in grads for grad in block)]


def test_the_functions_are_the_same_in_torchscript_and_in_python() -> None:
    with torch.no_grad():
        plain = forward_and_back(lambda function: function)
        scripted = forward_and_back(kernels.compiled)
    for a, b in zip(plain, scripted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(
    kernels.norm_on_gpu is kernels.norm_by_parts, reason="this torch has no such kernel"
)
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_kernel_normalizes_as_nine_operations_do(dtype: torch.dtype, heads: bool) -> None:
    """On a CPU it is made of operations, with the same interface."""
    torch.manual_seed(0)
    x, weight = torch.randn(T, N + G, D).to(dtype), torch.randn(N + G, D).to(dtype)
    if not heads:
        x, weight = x[:, 0], weight[0]
    y, r = kernels.norm_in_one(x, weight, 1e-5)
    wanted, wanted_r = kernels.norm_by_parts(x, weight, 1e-5)
    assert (y.dtype, r.dtype, r.shape) == (dtype, torch.float32, wanted_r.shape)
    assert torch.allclose(r, wanted_r, rtol=1e-5)
    rounding = 1e-5 if dtype == torch.float32 else 2**-7
    assert torch.allclose(y.float(), wanted.float(), rtol=rounding, atol=1e-5)


def test_a_layers_way_back_is_what_autograd_finds() -> None:
    with torch.no_grad():
        _, _, dx, *found = forward_and_back(lambda function: function)
    made = layer()
    x, (cos, sin), dy = torch.randn(T, H).requires_grad_(), angles(), torch.randn(T, H)
    leaves = []
    for by in (made.qkv, made.out, made.gate_up):
        assert by.lora is not None
        leaves += [by.lora.a, *by.lora.b]
    for leaf in leaves:
        leaf.requires_grad_()

    def norm(z: Tensor, weight: Tensor) -> Tensor:
        return z * (z.square().mean(-1, keepdim=True) + made.eps).rsqrt() * weight

    def linear(z: Tensor, by: Product) -> Tensor:
        delta = torch.zeros_like(by.weight)
        if by.lora is not None:
            for index, (row, b) in enumerate(zip(by.lora.rows, by.lora.b, strict=True)):
                a = by.lora.a[index * RANK : (index + 1) * RANK]
                delta = delta.index_add(
                    0, torch.arange(row, row + b.shape[0]), by.lora.scale * b @ a
                )
        return torch.nn.functional.linear(z, by.weight + delta, by.bias)

    qkv = linear(norm(x, made.before), made.qkv)
    assert made.heads is not None
    qk = norm(qkv[:, : (N + G) * D].view(T, N + G, D), made.heads)
    turned = torch.cat([qk[..., D // 2 :], qk[..., : D // 2]], -1)
    attn_out = (qk * cos + turned * sin)[:, :N].flatten(1)
    middle = x + linear(attn_out, made.out)
    gate, up = linear(norm(middle, made.after), made.gate_up).chunk(2, -1)
    y = middle + linear(torch.nn.functional.silu(gate) * up, made.down)
    y.backward(dy)
    torch.testing.assert_close(x.grad, dx, rtol=1e-4, atol=1e-3)
    mine = iter(found)
    for by in (made.qkv, made.out, made.gate_up):
        assert by.lora is not None
        for index, b in enumerate(by.lora.b):
            assert by.lora.a.grad is not None
            part = by.lora.a.grad[index * RANK : (index + 1) * RANK]
            torch.testing.assert_close(part, next(mine), rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(b.grad, next(mine), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("uniform", [True, False])
def test_a_step_of_decoding_is_the_same_in_torchscript_and_in_python(uniform: bool) -> None:
    torch.manual_seed(0)
    rows, room = T, 9
    layers = [layer(0), layer(1)]
    head = Product(torch.randn(20, H), None, None)
    write_at = torch.full((rows,), 4) if uniform else torch.arange(rows)
    layout = decode_step.BatchLayout(write_at, int(write_at.max()) + 1, uniform, [4, 3], [5, 0])
    keys = [torch.randn(rows, G, D, room) for _ in layers]
    values = [torch.randn(rows, G, room, D) for _ in layers]
    shared = [torch.randn(G, 5, D) for _ in range(2 * len(layers))]
    x, (cos, sin) = torch.randn(rows, H), angles()
    found = []
    for step in (decode_step.step, kernels.compiled(decode_step.step)):
        mine = [[tensor.clone() for tensor in buffers] for buffers in (keys, values)]
        with torch.no_grad():
            logits = step(
                x, cos, sin, layers, torch.ones(H), head, 0.4, mine[0], mine[1], layout, shared
            )
        found.append([logits, *mine[0], *mine[1]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_token_is_torchscript() -> None:
    """Else one of a small model takes up to 1.8 times as long."""
    assert isinstance(slots._step, torch.jit.ScriptFunction)


def test_where_torchscript_does_not_load_functions_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(function: object) -> object:
        raise RuntimeError("no TorchScript here")

    def add(a: Tensor, b: Tensor) -> Tensor:
        return a + b

    monkeypatch.setattr(torch.jit, "script", refuse)
    assert kernels.compiled(add) is add
