"""A transformer layer, forward and backward, as functions of tensors.

None uses autograd: each has its backward pass beside it. A token of generation is a thousand
operations of microseconds: run from Python it takes up to 1.8 times as long as by TorchScript,
which needs no compiler (`benchmarks/layers.py`). So those of the forward pass keep to the subset of
Python that TorchScript reads. Passes over many tokens gain nothing by it, and run as they are.

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
    """The function compiled by TorchScript; unchanged, and so slower, where that is missing."""
    try:
        # On a GPU it would compile fused kernels anew for every few lengths.
        torch._C._jit_set_texpr_fuser_enabled(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, with nothing in its place
            made: Function = torch.jit.script(function)
            return made
    except (AttributeError, RuntimeError):
        return function


class FusedLora(NamedTuple):
    """The LoRA factors of a product's layers, the A matrices stacked into one."""

    a: Tensor  # (sum of ranks, in)
    b: List[Tensor]  # of each layer that has one, (out, rank)
    rows: List[int]  # the first output row of each
    scale: float
    merged: bool  # W already has scale B A added


class Product(NamedTuple):
    """Linear layers that read one input: y = x (W + scale B A)^T + b."""

    weight: Tensor  # (out, in); packed where nothing is trained through it
    bias: Optional[Tensor]
    lora: Optional[FusedLora]
    onednn: bool = False  # whether large products go to oneDNN: see `matmul`


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


class SavedActivations(NamedTuple):
    """What the backward pass of a layer needs of its forward pass."""

    x: Tensor
    n1: Tensor
    r1: Tensor
    qkv: Tensor
    r_heads: Optional[Tensor]
    attn_out: Tensor
    middle: Tensor
    n2: Tensor
    r2: Tensor
    gate_up: Tensor
    activated: Tensor
    inner: Tensor


def matmul(x: Tensor, weight: Tensor, bias: Optional[Tensor], onednn: bool) -> Tensor:
    """x (T, in) times the transpose of `weight` (out, in), plus `bias`.

    With `onednn` a float32 product goes to oneDNN, which on some CPUs is more than twice as fast as
    the BLAS that torch asks. Not a small one, which costs more to start than to compute, nor one of
    strided tensors, for which it has no fast code. A packed weight (`precision.packed`) is oneDNN's
    own and goes there whatever its size.
    """
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if (
        onednn
        and x.dim() == 2
        and x.shape[0] * weight.numel() >= 2097152
        and (weight.is_contiguous() or weight.t().is_contiguous())
    ):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def product(x: Tensor, by: Product) -> Tensor:
    """The layers' outputs (..., out) for x (..., in), adapters applied."""
    y = matmul(x, by.weight, by.bias, by.onednn)
    lora = by.lora
    if lora is not None and not lora.merged:
        inner = matmul(x, lora.a, None, by.onednn) * lora.scale
        at = 0
        for row, b in zip(lora.rows, lora.b):  # noqa: B905, TorchScript has no strict
            part = matmul(inner.narrow(-1, at, b.shape[1]), b, None, by.onednn)
            y.narrow(-1, row, b.shape[0]).add_(part)
            at += b.shape[1]
    return y


def product_backward(x: Tensor, dy: Tensor, by: Product, grads: List[Tensor]) -> Tensor:
    """d loss / d x (T, in), given the input x and d loss / d y (T, out). Adds the gradients of each
    adapter's A and B to `grads`, (A, B) in their order."""
    dx = matmul(dy, by.weight.t(), None, by.onednn)
    lora = by.lora
    if lora is not None:
        down = lora_backward(x, dy, lora, grads, by.onednn)
        if not lora.merged:
            dx.addmm_(down, lora.a, alpha=lora.scale)
    return dx


def lora_backward(
    x: Tensor, dy: Tensor, lora: FusedLora, grads: List[Tensor], onednn: bool
) -> Tensor:
    """Add each adapter's gradients to `grads`; returns dy B, (T, sum of ranks)."""
    inner = matmul(x, lora.a, None, onednn)
    down = torch.empty([x.shape[0], lora.a.shape[0]], dtype=dy.dtype, device=dy.device)
    at = 0
    for index, b in enumerate(lora.b):
        d_out = dy.narrow(1, lora.rows[index], b.shape[0])
        part = matmul(d_out, b.t(), None, onednn)
        down.narrow(1, at, b.shape[1]).copy_(part)
        accumulate(grads[2 * index], part, x, lora.scale, onednn)
        right = inner.narrow(1, at, b.shape[1])
        accumulate(grads[2 * index + 1].t(), right, d_out, lora.scale, onednn)
        at += b.shape[1]
    return down


def accumulate(total: Tensor, left: Tensor, right: Tensor, scale: float, onednn: bool) -> None:
    """total (a, b) += scale left^T right, of left (T, a) and right (T, b)."""
    if onednn or total.dtype != left.dtype:
        total.add_(matmul(left.t(), right.t(), None, onednn), alpha=scale)
    else:
        total.addmm_(left.t(), right, alpha=scale)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
    """Root-mean-square normalization over the last dimension, arXiv 1910.07467: the result, in the
    precision of `weight`, and 1 / rms of each row, for the backward pass."""
    if x.is_cuda and x.dtype == weight.dtype:
        return norm_on_gpu(x, weight, eps)
    return norm_by_parts(x, weight, eps)


def norm_by_parts(x: Tensor, weight: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
    """`norm` by plain operations, which a CPU takes no longer for."""
    wide = x.float()
    size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    r = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * r).to(weight.dtype).mul_(weight), r


def norm_in_one(x: Tensor, weight: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
    """`norm` by one kernel in place of nine: a token of generation waits for each on a GPU."""
    if weight.dim() == 1:
        return torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], weight, eps)
    y, r = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], None, eps)
    return y.mul_(weight), r


norm_on_gpu = norm_in_one if hasattr(torch.ops.aten, "_fused_rms_norm") else norm_by_parts
"""torch has that kernel since 2.9."""


def norm_backward(x: Tensor, weight: Tensor, r: Tensor, dy: Tensor) -> Tensor:
    """d loss / d x. May overwrite dy."""
    dy = dy.to(x.dtype).mul_(weight)
    mean = (dy * x).mean(-1, keepdim=True, dtype=r.dtype)
    return dy.mul_(r).addcmul_(x, mean * r**3, value=-1)


def before_attention(
    x: Tensor, layer: Layer, cos: Tensor, sin: Tensor, groups: int
) -> Tuple[Tensor, Tensor, Tensor, Optional[Tensor], Tensor]:
    """The part of a layer that precedes attention: norm, QKV product, QK norm, rotary embedding.

    Args:
        x: hidden states, (T, H).
        layer: the layer's weights.
        cos: of the rotary angles, (T, 1, D).
        sin: likewise, its first half negated.
        groups: the number of key heads, G.

    Returns:
        x normalized (T, H); its 1 / rms (T, 1); queries, keys and values (T, (N + 2 G) D); 1 / rms
        of the query and key heads, None in models without QK norm; queries and keys (T, N + G, D),
        normalized and rotated.
    """
    n1, r1 = norm(x, layer.before, layer.eps)
    qkv = product(n1, layer.qkv)
    qk = queries_and_keys(qkv, cos.shape[-1], groups)
    r_heads: Optional[Tensor] = None
    heads = layer.heads
    if heads is not None:
        qk, r_heads = norm(qk, heads, layer.eps)
    qk = (qk * cos).addcmul_(qk.roll(cos.shape[-1] // 2, -1), sin)
    return n1, r1, qkv, r_heads, qk


def queries_and_keys(qkv: Tensor, width: int, groups: int) -> Tensor:
    """The queries and keys in `qkv`, as (T, N + G, D)."""
    size = qkv.shape[1] - groups * width
    return qkv[:, :size].view(qkv.shape[0], size // width, width)


def values(qkv: Tensor, width: int, groups: int) -> Tensor:
    """The values in `qkv`, as (T, G, D)."""
    return qkv[:, qkv.shape[1] - groups * width :].view(qkv.shape[0], groups, width)


def after_attention(x: Tensor, attn_out: Tensor, layer: Layer) -> Tensor:
    """The layer's output (T, H), given its input (T, H) and attention's output (T, N D)."""
    middle = residual(x, product(attn_out, layer.out))
    n2, _ = norm(middle, layer.after, layer.eps)
    gate, up = product(n2, layer.gate_up).chunk(2, dim=-1)
    return residual(middle, product(F.silu(gate).mul_(up), layer.down))


def residual(x: Tensor, y: Tensor) -> Tensor:
    """x + y, in the precision of x; y may be overwritten."""
    if x.dtype == y.dtype:
        return y.add_(x)
    return x + y


def after_attention_kept(
    x: Tensor,
    attn_out: Tensor,
    layer: Layer,
    before: Tuple[Tensor, Tensor, Tensor, Optional[Tensor], Tensor],
) -> Tuple[Tensor, SavedActivations]:
    """As `after_attention`, with what the backward pass needs."""
    n1, r1, qkv, r_heads, _ = before
    middle = residual(x, product(attn_out, layer.out))
    n2, r2 = norm(middle, layer.after, layer.eps)
    gate_up = product(n2, layer.gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    activated = F.silu(gate)
    inner = activated * up
    y = residual(middle, product(inner, layer.down))
    return y, SavedActivations(
        x, n1, r1, qkv, r_heads, attn_out, middle, n2, r2, gate_up, activated, inner
    )


def after_attention_backward(
    dy: Tensor, layer: Layer, kept: SavedActivations, grads: List[List[Tensor]]
) -> Tuple[Tensor, Tensor]:
    """d loss / d `middle` (T, H), written over dy, and d loss / d attention's output (T, N D).

    `middle` is the residual stream between attention and the MLP. `grads` are the adapters' of
    (qkv, out, gate_up, down), which are added to.
    """
    d_inner = product_backward(kept.inner, dy.to(kept.inner.dtype), layer.down, grads[3])
    gate, up = kept.gate_up.chunk(2, dim=-1)
    d_gate_up = torch.empty_like(kept.gate_up)
    d_gate, d_up = d_gate_up.chunk(2, dim=-1)
    torch.mul(d_inner, kept.activated, out=d_up)
    torch.ops.aten.silu_backward(d_inner.mul_(up), gate, grad_input=d_gate)
    d_n2 = product_backward(kept.n2, d_gate_up, layer.gate_up, grads[2])
    dy += norm_backward(kept.middle, layer.after, kept.r2, d_n2)
    d_out = dy.to(kept.attn_out.dtype)
    return dy, product_backward(kept.attn_out, d_out, layer.out, grads[1])


def before_attention_backward(
    dy: Tensor,
    d_qk: Tensor,
    d_values: Tensor,
    layer: Layer,
    kept: SavedActivations,
    cos: Tensor,
    sin: Tensor,
    grads: List[List[Tensor]],
    first: bool,
) -> Tensor:
    """d loss / d x (T, H), written over dy, which comes in as the gradient of the residual stream.

    With `first`, the model's first layer, only the adapters' gradients are computed: nothing is
    trained below it.
    """
    width, groups = cos.shape[-1], d_values.shape[1]
    # The transpose of the rotation.
    d_qk = (d_qk * cos).add_((d_qk * sin).roll(width // 2, -1))
    heads, r_heads = layer.heads, kept.r_heads
    if heads is not None and r_heads is not None:
        d_qk = norm_backward(queries_and_keys(kept.qkv, width, groups), heads, r_heads, d_qk)
    d_qkv = torch.cat([d_qk.flatten(1), d_values.flatten(1)], dim=1).to(kept.n1.dtype)
    if first:
        lora = layer.qkv.lora
        if lora is not None:
            lora_backward(kept.n1, d_qkv, lora, grads[0], layer.qkv.onednn)
        return dy
    d_n1 = product_backward(kept.n1, d_qkv, layer.qkv, grads[0])
    dy += norm_backward(kept.x, layer.before, kept.r1, d_n1)
    return dy
