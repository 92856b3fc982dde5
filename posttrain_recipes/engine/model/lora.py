"""LoRA adapters on a frozen base model, several on one base, with their optimizer.

y = base(x) + (alpha / rank) B A x, arXiv 2106.09685. Alpha is 32 whatever the rank, as on hosted
Tinker, so that a learning rate carries over from one rank to another. A starts Kaiming-uniform and
B at zero, so a new adapter changes nothing.

A base model's linear layers are hooked once; each looks up in an `ActiveAdapter` what to apply. All
of an adapter's parameters lie in one flat tensor, and so do its gradients and its moments, so that
a step of Adam is a handful of operations whatever the number of layers, a snapshot is one copy, and
the same numbers give the same result to the bit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from posttrain_recipes.engine.wire import AdamParams, AdapterConfig, RequestError

ALPHA = 32.0
MAX_RANK = 1024
_PREFIX = "base_model.model."  # PEFT's name for "the model inside"
_SUFFIX = {"A": ".lora_A.weight", "B": ".lora_B.weight"}


@dataclass(frozen=True)
class LoraFactors:
    """The low-rank factors of one layer: A (rank, in), B (out, rank), both float32."""

    a: Tensor
    b: Tensor
    scale: float

    def apply(self, x: Tensor, base: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer's output for x (..., in)."""
        y = base(x)
        delta = F.linear(F.linear(x.to(self.a.dtype), self.a) * self.scale, self.b)
        return y + delta.to(y.dtype)


@dataclass(frozen=True)
class Merged:
    """A layer's weight with its adapter added in, for sampling: one product instead of three."""

    weight: Tensor  # (out, in)
    bias: Tensor | None

    def apply(self, x: Tensor, base: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer's output for x (..., in)."""
        return F.linear(x, self.weight, self.bias)


AdapterLayers = Mapping[str, LoraFactors | Merged]


@dataclass
class ActiveAdapter:
    """The adapter that a base model's layers apply now: layer name -> its part; None for none."""

    layers: AdapterLayers | None = None


@dataclass(frozen=True)
class LoraTarget:
    """A linear layer that adapters may train: its kind is attn, mlp or unembed."""

    kind: str
    module: nn.Module
    inputs: int
    outputs: int


def hook(model: nn.Module, active_adapter: ActiveAdapter) -> dict[str, LoraTarget]:
    """Have every linear layer of `model` apply `active_adapter`. Returns them by name, in order.

    The layers stay where they are and keep their type (some models read `.weight` directly).
    """
    unembed = model.get_output_embeddings()
    targets: dict[str, LoraTarget] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            inputs, outputs = module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
        else:
            continue
        attention = re.search(r"attn|attention", name) is not None
        kind = "unembed" if module is unembed else "attn" if attention else "mlp"
        targets[name] = LoraTarget(kind, module, inputs, outputs)
        module.forward = _hooked(name, module.forward, active_adapter)  # type: ignore[assignment]
    return targets


def _hooked(
    name: str, base: Callable[[Tensor], Tensor], active_adapter: ActiveAdapter
) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        layer = active_adapter.layers.get(name) if active_adapter.layers else None
        return base(x) if layer is None else layer.apply(x, base)

    return forward


def wanted(config: AdapterConfig, targets: Mapping[str, LoraTarget]) -> dict[str, LoraTarget]:
    """The layers `config` trains. Raises RequestError if there are none, or no such rank."""
    if not 1 <= config.rank <= MAX_RANK:
        raise RequestError(422, f"lora rank must be between 1 and {MAX_RANK}, not {config.rank}")
    chosen = {"attn": config.train_attn, "mlp": config.train_mlp, "unembed": config.train_unembed}
    kept = {name: target for name, target in targets.items() if chosen[target.kind]}
    if not kept:
        raise RequestError(422, "this LoRA configuration trains no layer of this model")
    return kept


@dataclass(frozen=True)
class Layout:
    """Where each matrix lies in the flat tensor: (layer, "A" | "B") -> (offset, shape)."""

    places: Mapping[tuple[str, str], tuple[int, tuple[int, int]]]
    size: int

    @classmethod
    def of(cls, rank: int, targets: Mapping[str, LoraTarget]) -> Layout:
        """Lay out an adapter of this rank on these layers, in their order."""
        places, offset = {}, 0
        for name, target in targets.items():
            for part, shape in (("A", (rank, target.inputs)), ("B", (target.outputs, rank))):
                places[name, part] = (offset, shape)
                offset += shape[0] * shape[1]
        return cls(places, offset)

    def views(self, flat: Tensor) -> dict[tuple[str, str], Tensor]:
        """Each matrix as a view of `flat` (size,)."""
        return {
            key: flat[offset : offset + shape[0] * shape[1]].view(shape)
            for key, (offset, shape) in self.places.items()
        }


@dataclass
class Snapshot:
    """A copy of an adapter's weights, (parameters,) float32, which a sampler samples from."""

    config: AdapterConfig
    flat: Tensor
    layout: Layout
    merged: AdapterLayers | None = field(default=None, repr=False)

    @property
    def scale(self) -> float:
        """The factor of B A: alpha / rank."""
        return ALPHA / self.config.rank

    def factors(self) -> dict[str, LoraFactors]:
        """Every layer's A and B, as views of the flat weights."""
        views = self.layout.views(self.flat)
        names = dict.fromkeys(name for name, _ in views)
        return {name: LoraFactors(views[name, "A"], views[name, "B"], self.scale) for name in names}

    def merge(self, targets: Mapping[str, LoraTarget]) -> AdapterLayers:
        """Every layer's weight with the adapter added, kept for the next batch."""
        if self.merged is None:
            merged: dict[str, LoraFactors | Merged] = {}
            for name, layer in self.factors().items():
                module = targets[name].module
                weight: Tensor = module.weight  # type: ignore[assignment]
                weight = weight.T if isinstance(module, Conv1D) else weight
                bias: Tensor | None = module.bias  # type: ignore[assignment]
                full = torch.addmm(weight, layer.b, layer.a, alpha=layer.scale)
                merged[name] = Merged(full, bias)
            self.merged = merged
        return self.merged

    def offload(self, file: Path) -> None:
        """Write the flat weights to `file`, for `reload_snapshot`."""
        np.save(file, self.flat.cpu().numpy())

    def save(self, folder: Path, base_model: str, targets: Mapping[str, LoraTarget]) -> None:
        """Write PEFT's adapter_config.json and adapter_model.safetensors into `folder`."""
        tensors = {
            f"{_PREFIX}{name}{_SUFFIX[part]}": view.detach().cpu().numpy()
            for (name, part), view in self.layout.views(self.flat).items()
        }
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        names = list(dict.fromkeys(name for name, _ in self.layout.places))
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.config.rank,
            "lora_alpha": ALPHA,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": _short_names(names, targets),
            "fan_in_fan_out": any(isinstance(targets[n].module, Conv1D) for n in names),
            "inference_mode": True,
        }
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def _short_names(names: list[str], targets: Mapping[str, LoraTarget]) -> list[str]:
    """Last parts of the layers' names (`q_proj`) where those say it all, else the full names."""
    short = {name.rsplit(".", 1)[-1] for name in names}
    reached = {name for name in targets if name.rsplit(".", 1)[-1] in short}
    return sorted(short) if reached == set(names) else names


class Adapter:
    """A LoRA adapter in training: weights, accumulated gradients, Adam's moments."""

    def __init__(
        self, config: AdapterConfig, targets: Mapping[str, LoraTarget], device: torch.device
    ) -> None:
        self.config = config
        self.layout = Layout.of(config.rank, wanted(config, targets))
        self.flat, self.grad, self.exp_avg, self.exp_avg_sq = (
            torch.zeros(self.layout.size, device=device) for _ in range(4)
        )
        self.step = 0
        self._init_weights()
        self._leaves: dict[tuple[str, str], nn.Parameter] = {}
        grads = self.layout.views(self.grad)
        for key, view in self.layout.views(self.flat).items():
            leaf = nn.Parameter(view)
            leaf.grad = grads[key]  # autograd adds into it in place
            self._leaves[key] = leaf
        names = dict.fromkeys(name for name, _ in self._leaves)
        scale = ALPHA / config.rank
        self.layers: dict[str, LoraFactors] = {
            name: LoraFactors(self._leaves[name, "A"], self._leaves[name, "B"], scale)
            for name in names
        }

    def _init_weights(self) -> None:
        generator = torch.Generator().manual_seed((self.config.seed or 0) & (2**63 - 1))
        for (_, part), view in self.layout.views(self.flat).items():
            if part == "A":
                bound = 1.0 / math.sqrt(view.shape[1])  # kaiming_uniform_(a=sqrt(5)), as PEFT
                values = torch.rand(view.shape, generator=generator)
                view.copy_(values.mul_(2 * bound).sub_(bound))

    @torch.no_grad()
    def adam_step(self, params: AdamParams) -> float:
        """One step of AdamW on the accumulated gradients, which it clears.

        Returns the gradient's L2 norm before clipping. Raises RequestError, leaving the weights as
        they were, if the gradient is not finite.
        """
        norm = float(torch.linalg.vector_norm(self.grad))
        if not math.isfinite(norm):
            self.grad.zero_()
            raise RequestError(
                422,
                f"the gradient's norm is {norm}: the step was not taken and the gradient was "
                "dropped; lower the learning rate, or look for extreme advantages or weights",
            )
        if params.grad_clip_norm > 0 and norm > params.grad_clip_norm:
            self.grad.mul_(params.grad_clip_norm / (norm + 1e-6))
        self.step += 1
        beta1, beta2 = params.beta1, params.beta2
        self.exp_avg.lerp_(self.grad, 1 - beta1)
        self.exp_avg_sq.mul_(beta2).addcmul_(self.grad, self.grad, value=1 - beta2)
        if params.weight_decay:
            self.flat.mul_(1 - params.learning_rate * params.weight_decay)
        denominator = self.exp_avg_sq.sqrt().div_(math.sqrt(1 - beta2**self.step)).add_(params.eps)
        rate = -params.learning_rate / (1 - beta1**self.step)
        self.flat.addcdiv_(self.exp_avg, denominator, value=rate)
        self.grad.zero_()
        return norm

    def snapshot(self) -> Snapshot:
        """A copy of the weights, which further training does not change. Raises RequestError 422
        where training has made them infinite or NaN."""
        if not _finite(self.flat):
            raise RequestError(
                422,
                "the weights hold NaN or infinity: training diverged, and nothing was saved. Go on "
                "from the last checkpoint, with a lower learning rate",
            )
        return Snapshot(self.config, self.flat.detach().clone(), self.layout)

    def load(self, snapshot: Snapshot, optimizer: Mapping[str, Any] | None) -> None:
        """Take over a snapshot's weights, and `optimizer`'s state; None resets Adam.

        Raises RequestError 422, leaving the adapter as it was, if that state does not fit.
        """
        state = None if optimizer is None else _adam_state(optimizer, self.flat)
        self.flat.copy_(snapshot.flat)
        self.grad.zero_()
        if state is None:
            self.exp_avg.zero_()
            self.exp_avg_sq.zero_()
            self.step = 0
        else:
            self.exp_avg.copy_(state[0])
            self.exp_avg_sq.copy_(state[1])
            self.step = state[2]

    def save_optimizer(self, folder: Path) -> None:
        """Write Adam's moments, flat in the layout's order, and its step count."""
        state = {
            "exp_avg": self.exp_avg.cpu().numpy(),
            "exp_avg_sq": self.exp_avg_sq.cpu().numpy(),
            "step": np.array([self.step], dtype=np.int64),
        }
        save_file(state, folder / "optimizer.safetensors")


def _adam_state(arrays: Mapping[str, Any], like: Tensor) -> tuple[Tensor, Tensor, int]:
    """Moments, each in the shape of `like`, and step count, as `Adapter.save_optimizer` wrote."""
    try:
        first, second = (torch.from_numpy(arrays[name]) for name in ("exp_avg", "exp_avg_sq"))
        step = int(arrays["step"][0])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RequestError(422, f"the checkpoint's optimizer state is damaged: {error}") from None
    fits = first.shape == second.shape == like.shape
    if not (fits and _finite(first) and _finite(second) and (second >= 0).all() and step >= 0):
        raise RequestError(
            422,
            "the checkpoint's optimizer state is not this model's, or holds NaN or infinity: load "
            "the weights alone",
        )
    return first, second, step


def _finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


def make_snapshot(
    tensors: Mapping[str, Any], config: AdapterConfig, targets: Mapping[str, LoraTarget]
) -> Snapshot:
    """A saved adapter's arrays, by PEFT's names, as a snapshot on the base model's device.

    Raises RequestError 422 if they do not fit the base model, or hold NaN or infinity.
    """
    layout = Layout.of(config.rank, wanted(config, targets))
    flat = torch.empty(layout.size)
    for (name, part), view in layout.views(flat).items():
        stored = tensors.get(f"{_PREFIX}{name}{_SUFFIX[part]}")
        if stored is None or stored.shape != tuple(view.shape):
            raise RequestError(422, f"the checkpoint does not fit this base model at {name}")
        view.copy_(torch.from_numpy(stored))
    if not _finite(flat):
        raise RequestError(422, "the checkpoint's weights hold NaN or infinity: it is not used")
    weight: Tensor = next(iter(targets.values())).module.weight  # type: ignore[assignment]
    return Snapshot(config, flat.to(weight.device), layout)


def reload_snapshot(
    file: Path, config: AdapterConfig, targets: Mapping[str, LoraTarget]
) -> Snapshot:
    """A snapshot from the file that `Snapshot.offload` wrote."""
    layout = Layout.of(config.rank, wanted(config, targets))
    weight: Tensor = next(iter(targets.values())).module.weight  # type: ignore[assignment]
    return Snapshot(config, torch.from_numpy(np.load(file)).to(weight.device), layout)
