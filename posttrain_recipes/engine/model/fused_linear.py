"""Fused frozen linear layers (q, k, v or gate, up as one product), with their LoRA adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from posttrain_recipes.engine.model import precision
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
    onednn: bool  # whether its products go to oneDNN

    @classmethod
    def of(cls, modules: Mapping[str, nn.Linear], tied: bool = False) -> Block:
        """Stack the layers' weights. The layers then hold views of the stacked tensor. A `tied`
        weight, which is the embedding too, stays as it is."""
        parts = [module.weight.data for module in modules.values()]
        sizes = tuple(m.out_features for m in modules.values())
        onednn = parts[0].device.type == "cpu" and precision.onednn_leads()
        weight = torch.cat(parts) if len(parts) > 1 else parts[0]
        if onednn and not tied:
            # It multiplies few rows up to 1.4 times as fast by a weight that lies in columns.
            weight = weight.t().contiguous().t()
        for module, part in zip(modules.values(), weight.split(sizes), strict=True):
            module.weight.data = part
        biases = [m.bias.data for m in modules.values() if m.bias is not None]
        bias = torch.cat(biases) if len(biases) == len(modules) else None
        return cls(tuple(modules), sizes, weight, bias, onednn)

    def to(self, dtype: torch.dtype) -> Block:
        """The block with its weights in another precision."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, weight=self.weight.to(dtype), bias=bias)

    @cached_property
    def packed(self) -> Tensor:
        """W in oneDNN's own order, where `precision.packed` gives it: made once, kept from then
        on."""
        found = precision.packed(self.weight)
        return self.weight if found is None else found

    def product(
        self, adapters: Mapping[str, LoraFactors] | None, merge: bool, pack: bool = False
    ) -> Product:
        """The block's weights for a pass: W beside the factors A and B, or, with `merge`, a copy of
        W to which scale B A has been added. `pack` is for passes without a backward pass: W is then
        in the order that multiplies fastest."""
        found = [adapters[name] for name in self.names if name in adapters] if adapters else []
        if not found or adapters is None:
            weight = self.packed if pack else self.weight
            return Product(weight, self.bias, None, self.onednn)
        dtype, scale = self.weight.dtype, found[0].scale
        weight = self.weight.clone() if merge else self.packed if pack else self.weight
        rows, row = [], 0
        for name, size in zip(self.names, self.sizes, strict=True):
            item = adapters.get(name)
            if item is not None:
                rows.append(row)
                if merge:
                    weight[row : row + size].addmm_(item.b.detach(), item.a.detach(), alpha=scale)
            row += size
        if merge and pack and (own := precision.packed(weight)) is not None:
            weight = own
        a = torch.cat([item.a.detach() for item in found]).to(dtype)  # (ranks, in)
        b = [item.b.detach().to(dtype) for item in found]
        return Product(weight, self.bias, FusedLora(a, b, rows, scale, merge), self.onednn)

    def grads(self, grads: Grads) -> list[Tensor]:
        """The gradient tensors of this block's adapters, A then B for each, for `kernels`."""
        return [
            grads[name, side] for name in self.names if (name, "A") in grads for side in ("A", "B")
        ]
