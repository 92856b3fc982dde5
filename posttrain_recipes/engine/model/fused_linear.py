"""Fused frozen linear layers (q, k, v or gate, up as one product), with their LoRA adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posttrain_recipes.engine.model.kernels import FusedLora, Product
from posttrain_recipes.engine.model.lora import LoraFactors

Grads = Mapping[tuple[str, str], Tensor]


@dataclass(frozen=True)
class Block:
    """Linear layers that read the same input, stacked into one weight (sum of sizes, in)."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weight: Tensor  # (sum of sizes, in)
    bias: Tensor | None

    @classmethod
    def of(cls, modules: Mapping[str, nn.Linear]) -> Block:
        """Stack the layers' weights. The layers then hold views of the stacked tensor."""
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

    def product(self, adapters: Mapping[str, LoraFactors] | None, merge: bool) -> Product:
        """The block's weights for a pass: W beside the factors A and B, or, with `merge`, a copy of
        W to which scale B A has been added."""
        found = [adapters[name] for name in self.names if name in adapters] if adapters else []
        if not found or adapters is None:
            return Product(self.weight, self.bias, None)
        dtype, scale = self.weight.dtype, found[0].scale
        weight = self.weight.clone() if merge else self.weight
        rows, row = [], 0
        for name, size in zip(self.names, self.sizes, strict=True):
            item = adapters.get(name)
            if item is not None:
                rows.append(row)
                if merge:
                    weight[row : row + size].addmm_(item.b.detach(), item.a.detach(), alpha=scale)
            row += size
        a = torch.cat([item.a.detach() for item in found]).to(dtype)  # (ranks, in)
        b = [item.b.detach().to(dtype) for item in found]
        return Product(weight, self.bias, FusedLora(a, b, rows, scale, merge))

    def grads(self, grads: Grads) -> list[Tensor]:
        """The gradient tensors of this block's adapters, A then B for each, for `kernels`."""
        return [
            grads[name, side] for name in self.names if (name, "A") in grads for side in ("A", "B")
        ]
