"""The model's layers as TorchScript, forward and back.

A pass is thousands of small operations. Run from Python each of them takes the interpreter's lock
in turn, and two cores are no faster than one; TorchScript runs a whole layer in one call without
the lock, and needs no compiler. So the functions below keep to its part of Python. None uses
autograd: each has its backward pass beside it.

Shapes: T tokens, H hidden, N query heads, G key heads, D head width, F feed-forward.
"""

# TorchScript reads annotations as they are: List and Optional, and no `from __future__`.
# ruff: noqa: UP006, UP035, UP045

import functools
import warnings
from collections.abc import Callable
from typing import Any, List, NamedTuple, Optional, Tuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def compiled(function: Function) -> Function:
    """The function in TorchScript; as it is, and so slower, where that does not load."""
    try:
        # On a GPU it would compile fused kernels anew for every few lengths.
        torch._C._jit_set_texpr_fuser_enabled(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, with nothing in its place
            made: Function = torch.jit.script(function)
            return made
    except (AttributeError, RuntimeError):
        return function


class Low(NamedTuple):
    """The adapters of a product's layers."""

    a: Tensor  # (sum of ranks, in)
    b: List[Tensor]  # of each layer that has one, (out, rank)
    rows: List[int]  # where each one's rows of y begin
    scale: float
    merged: bool  # W holds them already


class Product(NamedTuple):
    """Linear layers that read one input: y = x W' + b, W' = W + scale B A."""

    weight: Tensor  # (out, in)
    bias: Optional[Tensor]
    low: Optional[Low]


class Layer(NamedTuple):
    """A layer's weights."""

    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    before: Tensor  # (H,)
    after: Tensor  # (H,)
    heads: Optional[Tensor]  # (N + G, D): the query and key norms of Qwen3
    eps: float


class Kept(NamedTuple):
    """What a layer's way back needs."""

    x: Tensor
    n1: Tensor
    r1: Tensor
    qkv: Tensor
    r_heads: Optional[Tensor]
    mixed: Tensor
    middle: Tensor
    n2: Tensor
    r2: Tensor
    gate_up: Tensor
    lit: Tensor
    inner: Tensor


def product(x: Tensor, by: Product) -> Tensor:
    """x (..., in) -> (..., out)."""
    y = F.linear(x, by.weight, by.bias)
    low = by.low
    if low is not None and not low.merged:
        inner = F.linear(x, low.a) * low.scale
        at = 0
        for row, b in zip(low.rows, low.b):  # noqa: B905, TorchScript has no strict
            part = F.linear(inner.narrow(-1, at, b.shape[1]), b)
            y.narrow(-1, row, b.shape[0]).add_(part)
            at += b.shape[1]
    return y


def product_backward(x: Tensor, dy: Tensor, by: Product, grads: List[Tensor]) -> Tensor:
    """d loss / d x (T, in), given the input x and d loss / d y (T, out). Adds the gradients of each
    adapter's A and B to `grads`, (A, B) in their order."""
    dx = dy @ by.weight
    low = by.low
    if low is not None:
        down = low_backward(x, dy, low, grads)
        if not low.merged:
            dx.addmm_(down, low.a, alpha=low.scale)
    return dx


def low_backward(x: Tensor, dy: Tensor, low: Low, grads: List[Tensor]) -> Tensor:
    """Add the adapters' gradients; dy B (T, sum of ranks)."""
    inner = F.linear(x, low.a)
    down = torch.empty([x.shape[0], low.a.shape[0]], dtype=dy.dtype, device=dy.device)
    at = 0
    for index, b in enumerate(low.b):
        d_out = dy.narrow(1, low.rows[index], b.shape[0])
        mine = down.narrow(1, at, b.shape[1])
        torch.mm(d_out, b, out=mine)
        accumulate(grads[2 * index], mine.t(), x, low.scale)
        accumulate(grads[2 * index + 1], d_out.t(), inner.narrow(1, at, b.shape[1]), low.scale)
        at += b.shape[1]
    return down


def accumulate(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """total += scale left right."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
    """Root-mean-square normalization over the last dimension, arXiv 1910.07467: the result, and
    1 / rms of each row, for the way back."""
    wide = x.float()
    size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    r = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * r).to(x.dtype).mul_(weight), r


def norm_backward(x: Tensor, weight: Tensor, r: Tensor, dy: Tensor) -> Tensor:
    """d loss / d x. Overwrites dy."""
    dy = dy.mul_(weight)
    mean = (dy * x).mean(-1, keepdim=True, dtype=r.dtype)
    return dy.mul_(r).addcmul_(x, mean * r**3, value=-1)


def before_attention(
    x: Tensor, layer: Layer, cos: Tensor, sin: Tensor, groups: int
) -> Tuple[Tensor, Tensor, Tensor, Optional[Tensor], Tensor]:
    """x (T, H) normalized, its 1 / rms, queries keys and values (T, (N + 2 G) D), 1 / rms of the
    heads, and queries and keys (T, N + G, D), normalized where the model does so and rotated.

    cos and sin are (T, 1, D), the first half of sin negative.
    """
    n1, r1 = norm(x, layer.before, layer.eps)
    qkv = product(n1, layer.qkv)
    both = queries_and_keys(qkv, cos.shape[-1], groups)
    r_heads: Optional[Tensor] = None
    heads = layer.heads
    if heads is not None:
        both, r_heads = norm(both, heads, layer.eps)
    both = (both * cos).addcmul_(both.roll(cos.shape[-1] // 2, -1), sin)
    return n1, r1, qkv, r_heads, both


def queries_and_keys(qkv: Tensor, width: int, groups: int) -> Tensor:
    """(T, N + G, D)."""
    size = qkv.shape[1] - groups * width
    return qkv[:, :size].view(qkv.shape[0], size // width, width)


def values(qkv: Tensor, width: int, groups: int) -> Tensor:
    """(T, G, D)."""
    return qkv[:, qkv.shape[1] - groups * width :].view(qkv.shape[0], groups, width)


def after_attention(x: Tensor, mixed: Tensor, layer: Layer) -> Tensor:
    """The layer's output (T, H), given its input (T, H) and attention's output (T, N D)."""
    middle = product(mixed, layer.out).add_(x)
    n2, _ = norm(middle, layer.after, layer.eps)
    gate, up = product(n2, layer.gate_up).chunk(2, dim=-1)
    return product(F.silu(gate).mul_(up), layer.down).add_(middle)


def after_attention_kept(
    x: Tensor,
    mixed: Tensor,
    layer: Layer,
    before: Tuple[Tensor, Tensor, Tensor, Optional[Tensor], Tensor],
) -> Tuple[Tensor, Kept]:
    """As `after_attention`, with what the way back needs."""
    n1, r1, qkv, r_heads, _ = before
    middle = product(mixed, layer.out).add_(x)
    n2, r2 = norm(middle, layer.after, layer.eps)
    gate_up = product(n2, layer.gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    lit = F.silu(gate)
    inner = lit * up
    y = product(inner, layer.down).add_(middle)
    return y, Kept(x, n1, r1, qkv, r_heads, mixed, middle, n2, r2, gate_up, lit, inner)


def after_attention_backward(
    dy: Tensor, layer: Layer, kept: Kept, grads: List[List[Tensor]]
) -> Tuple[Tensor, Tensor]:
    """d loss / d middle (T, H), in the place of dy, and / d mixed (T, N D). `grads` are those of
    (qkv, out, gate_up, down)."""
    d_inner = product_backward(kept.inner, dy, layer.down, grads[3])
    gate, up = kept.gate_up.chunk(2, dim=-1)
    d_gate_up = torch.empty_like(kept.gate_up)
    d_gate, d_up = d_gate_up.chunk(2, dim=-1)
    torch.mul(d_inner, kept.lit, out=d_up)
    torch.ops.aten.silu_backward(d_inner.mul_(up), gate, grad_input=d_gate)
    d_n2 = product_backward(kept.n2, d_gate_up, layer.gate_up, grads[2])
    dy += norm_backward(kept.middle, layer.after, kept.r2, d_n2)
    return dy, product_backward(kept.mixed, dy, layer.out, grads[1])


def before_attention_backward(
    dy: Tensor,
    d_both: Tensor,
    d_values: Tensor,
    layer: Layer,
    kept: Kept,
    cos: Tensor,
    sin: Tensor,
    grads: List[List[Tensor]],
    first: bool,
) -> Tensor:
    """d loss / d x (T, H), in the place of dy, the part that goes past attention. Of the first
    layer nothing needs it."""
    width, groups = cos.shape[-1], d_values.shape[1]
    # The transposed rotation, in the place of the rotation.
    d_both = (d_both * cos).add_((d_both * sin).roll(width // 2, -1))
    heads, r_heads = layer.heads, kept.r_heads
    if heads is not None and r_heads is not None:
        d_both = norm_backward(queries_and_keys(kept.qkv, width, groups), heads, r_heads, d_both)
    d_qkv = torch.cat([d_both.flatten(1), d_values.flatten(1)], dim=1)
    if first:
        low = layer.qkv.low
        if low is not None:
            low_backward(kept.n1, d_qkv, low, grads[0])
        return dy
    d_n1 = product_backward(kept.n1, d_qkv, layer.qkv, grads[0])
    dy += norm_backward(kept.x, layer.before, kept.r1, d_n1)
    return dy
