"""The layers of `decoder`: linear ones with an adapter, normalization, the feed-forward's gate.

Each has its backward pass beside it, and none uses autograd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain_recipes.engine.lora import Low

Grads = Mapping[tuple[str, str], Tensor]


@dataclass(frozen=True)
class Block:
    """Linear layers that read the same input, as one: their names, and where their rows lie."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weight: Tensor  # (sum of sizes, in)
    bias: Tensor | None

    @classmethod
    def of(cls, modules: Mapping[str, nn.Linear]) -> Block:
        """Join the layers. They keep their weights, as views of what is made here."""
        weight = torch.cat([m.weight.data for m in modules.values()])
        sizes = tuple(m.out_features for m in modules.values())
        if len(modules) == 1:
            weight = next(iter(modules.values())).weight.data
        else:
            for module, part in zip(modules.values(), weight.split(sizes), strict=True):
                module.weight.data = part
        biases = [m.bias.data for m in modules.values() if m.bias is not None]
        bias = torch.cat(biases) if len(biases) == len(modules) else None
        return cls(tuple(modules), sizes, weight, bias)


class Linear:
    """A block with an adapter: y = x W' + b, W' = W + scale B A, merged or not."""

    def __init__(self, block: Block, low: Mapping[str, Low] | None, merge: bool) -> None:
        self.bias = block.bias
        self.weight, self.merged = block.weight, merge
        self.parts: list[tuple[str, slice, slice, Tensor]] = []  # name, its rows of y, of A; B
        found = [low[name] for name in block.names if name in low] if low else []
        if not found:
            return
        dtype, self.scale = block.weight.dtype, found[0].scale
        self.a = torch.cat([item.a.detach() for item in found]).to(dtype)  # (ranks, in)
        if merge:
            self.weight = torch.empty_like(block.weight)
        row = rank = 0
        for name, size in zip(block.names, block.sizes, strict=True):
            rows = slice(row, row + size)
            row += size
            item = low.get(name) if low else None
            if item is not None:
                ranks = slice(rank, rank + item.a.shape[0])
                rank = ranks.stop
                self.parts.append((name, rows, ranks, item.b.detach().to(dtype)))
                if merge:
                    torch.addmm(
                        block.weight[rows], item.b.detach(), item.a.detach(),
                        alpha=item.scale, out=self.weight[rows],
                    )  # fmt: skip
            elif merge:
                self.weight[rows] = block.weight[rows]

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        y = F.linear(x, self.weight, self.bias)
        if self.parts and not self.merged:
            low = F.linear(x, self.a) * self.scale
            for _, rows, ranks, b in self.parts:
                y[..., rows] += F.linear(low[..., ranks], b)
        return y

    def backward(self, x: Tensor, dy: Tensor, grads: Grads, need_dx: bool = True) -> Tensor | None:
        """Add the gradients of A and B to `grads`, given the input x (T, in) and d loss / d y
        (T, out); the gradient of x, if needed."""
        dx = dy @ self.weight if need_dx else None
        if self.parts:
            low, down = F.linear(x, self.a), dy.new_empty(x.shape[0], self.a.shape[0])
            for name, rows, ranks, b in self.parts:
                torch.mm(dy[:, rows], b, out=down[:, ranks])
                _accumulate(grads[name, "B"], dy[:, rows].T, low[:, ranks], self.scale)
                _accumulate(grads[name, "A"], down[:, ranks].T, x, self.scale)
            if dx is not None and not self.merged:
                dx.addmm_(down, self.a, alpha=self.scale)
        return dx


def _accumulate(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)


class Norm:
    """Root-mean-square normalization over the last dimension, arXiv 1910.07467."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y, r): the result, and 1 / rms of each row, for the backward pass."""
        wide = x.float()
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        r = size.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return (wide * r).to(x.dtype).mul_(self.weight), r

    def backward(self, x: Tensor, r: Tensor, dy: Tensor) -> Tensor:
        """d loss / d x. Overwrites dy."""
        dy = dy.mul_(self.weight)
        mean = (dy * x).mean(-1, keepdim=True, dtype=r.dtype)
        return dy.mul_(r).addcmul_(x, mean * r**3, value=-1)


def swiglu_backward(d_inner: Tensor, gate_up: Tensor, lit: Tensor) -> Tensor:
    """d (gate, up) (T, 2F) of silu(gate) * up, where lit is silu(gate)."""
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.empty_like(gate_up)
    d_gate, d_up = out.chunk(2, dim=-1)
    torch.mul(d_inner, lit, out=d_up)
    torch.ops.aten.silu_backward.grad_input(d_inner.mul_(up), gate, grad_input=d_gate)
    return out


def norm_of(module: Any) -> Norm:
    """A transformers module as `Norm`."""
    eps = getattr(module, "variance_epsilon", None)
    return Norm(module.weight.data, float(module.eps if eps is None else eps))
