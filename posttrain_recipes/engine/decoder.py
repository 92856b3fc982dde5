"""The models most people train, computed without transformers: Llama, Qwen2, Qwen3, Mistral and
their kin, which are all one architecture.

`Decoder.of` takes a loaded model's weights as they are, and checks on random tokens that it gives
the same logits; what it does not recognize, or gets wrong, stays with transformers. What is gained:
sequences of different lengths lie end to end, without padding (attention alone pads, in buckets of
like length); queries, keys and values are one product, and so are gate and up; an adapter is merged
into its layer once a step instead of being applied at every token; and the backward pass, written
out here, computes gradients for adapters alone, straight into the adapter's own gradient.

Shapes: T tokens, H hidden, N query heads, G key heads, D head width, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain_recipes.engine.layers import Block, Grads, Linear, Norm, norm_of, swiglu_backward
from posttrain_recipes.engine.lora import Low
from posttrain_recipes.engine.packing import Packing

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
_ROPE = {"default", "llama3", "linear", "yarn"}  # those whose angles do not depend on the length


@dataclass(frozen=True)
class Layer:
    """One layer's frozen parts."""

    qkv: Block
    out: Block
    gate_up: Block
    down: Block
    before: Norm
    after: Norm
    heads: Norm | None  # over (N + G, D): the query and key norms of Qwen3


@dataclass(frozen=True)
class Weights:
    """What a pass multiplies with: for each layer (qkv, out, gate_up, down), then the head."""

    layers: Sequence[tuple[Linear, Linear, Linear, Linear]]
    head: Linear


class Decoder:
    """A model of this architecture, frozen."""

    def __init__(self, model: Any) -> None:
        body, config = model.model, model.config
        names = {id(module): name for name, module in model.named_modules()}

        def block(*modules: nn.Linear) -> Block:
            return Block.of({names[id(module)]: module for module in modules})

        first = body.layers[0].self_attn
        self.width: int = first.head_dim
        self.heads = first.q_proj.out_features // self.width
        self.groups = first.k_proj.out_features // self.width
        self.scale: float = first.scaling
        self.embedding: Tensor = body.embed_tokens.weight.data
        self.hidden = self.embedding.shape[1]
        self.layers: list[Layer] = []
        for layer in body.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self.layers.append(
                Layer(
                    block(attention.q_proj, attention.k_proj, attention.v_proj),
                    block(attention.o_proj),
                    block(mlp.gate_proj, mlp.up_proj),
                    block(mlp.down_proj),
                    norm_of(layer.input_layernorm),
                    norm_of(layer.post_attention_layernorm),
                    self._head_norm(attention),
                )
            )
        self.norm = norm_of(body.norm)
        self.head = block(model.lm_head)
        self._rotary = body.rotary_emb
        self._angles: tuple[Tensor, Tensor] | None = None
        self.context = int(config.max_position_embeddings)

    def _head_norm(self, attention: Any) -> Norm | None:
        if not hasattr(attention, "q_norm"):
            return None
        q, k = norm_of(attention.q_norm), norm_of(attention.k_norm)
        rows = [q.weight.expand(self.heads, -1), k.weight.expand(self.groups, -1)]
        return Norm(torch.cat(rows), q.eps)

    @classmethod
    def of(cls, model: Any) -> Decoder | None:
        """The decoder of a transformers model, or None where it would not give the same."""
        config = model.config
        rope = getattr(config, "rope_parameters", None) or {}
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        plain = (
            kinds == {"full_attention"}
            and rope.get("rope_type", "default") in _ROPE
            and getattr(config, "hidden_act", "") == "silu"
            and (getattr(config, "sliding_window", None) is None
                 or not getattr(config, "use_sliding_window", True))
            and getattr(config, "pretraining_tp", 1) == 1
        )  # fmt: skip
        try:
            decoder = cls(model) if plain else None
        except (AttributeError, TypeError, IndexError):  # another architecture
            return None
        return decoder if decoder is not None and decoder._agrees(model) else None

    @torch.no_grad()
    def _agrees(self, model: Any) -> bool:
        generator = torch.Generator().manual_seed(0)
        lengths = (9, 5)
        ids = [
            torch.randint(0, self.embedding.shape[0], (n,), generator=generator) for n in lengths
        ]
        device = self.embedding.device
        packing = Packing(lengths, device)
        weights = self.weights(None, merge=False)
        mine = weights.head(self.forward(weights, torch.cat(ids).to(device), packing)).float()
        want = [model(input_ids=one[None].to(device)).logits[0] for one in ids]
        theirs = torch.cat(want).float()
        near = 1e-4 if self.embedding.dtype == torch.float32 else 5e-2
        return bool((mine - theirs).abs().max() <= near * theirs.abs().max().clamp_min(1e-6))

    def weights(self, low: Mapping[str, Low] | None, merge: bool) -> Weights:
        """Everything a pass multiplies with, with an adapter or without. Merging takes a copy of
        what it adapts, and the time of a few hundred tokens."""

        def make(block: Block) -> Linear:
            return Linear(block, low, merge and low is not None)

        return Weights(
            [(make(x.qkv), make(x.out), make(x.gate_up), make(x.down)) for x in self.layers],
            make(self.head),
        )

    def angles(self, longest: int) -> tuple[Tensor, Tensor]:
        """cos and sin (positions, 1, D) for at least `longest` positions; the first half of sin is
        negative, so that x cos + swap(x) sin rotates."""
        if self._angles is None or self._angles[0].shape[0] < longest:
            size = min(self.context, max(256, 2 * longest)) if longest <= self.context else longest
            device = self.embedding.device
            positions = torch.arange(size, device=device)[None]
            cos, sin = self._rotary(self.embedding[:1], positions)
            sin = torch.cat([-sin[0, :, : self.width // 2], sin[0, :, self.width // 2 :]], dim=-1)
            self._angles = (cos[0, :, None].contiguous(), sin[:, None].contiguous())
        return self._angles

    # One layer -------------------------------------------------------------------------------

    def rotated(
        self, layer: Layer, qkv: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Queries and keys (T, N + G, D), normalized where the model does so and rotated, and what
        the norm's backward pass wants."""
        both = self._queries_and_keys(qkv)
        r = None
        if layer.heads is not None:
            both, r = layer.heads(both)
        return (both * cos).addcmul_(both.roll(self.width // 2, -1), sin), r

    def _queries_and_keys(self, qkv: Tensor) -> Tensor:
        size = (self.heads + self.groups) * self.width
        return qkv[:, :size].view(-1, self.heads + self.groups, self.width)

    def values(self, qkv: Tensor) -> Tensor:
        """(T, G, D)."""
        size = (self.heads + self.groups) * self.width
        return qkv[:, size:].view(-1, self.groups, self.width)

    # Passes ----------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(
        self,
        weights: Weights,
        ids: Tensor,
        packing: Packing,
        keep: list[Any] | None = None,
        cache: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """The last hidden states (T, H), normalized, of packed tokens (T,).

        Args:
            weights: from `weights`.
            ids: token ids, end to end.
            packing: where each sequence begins, and its positions.
            keep: filled with what `backward` needs.
            cache: filled with each layer's keys and values, (T, G, D) each.
        """
        attended: list[Any] = []

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mine: list[Any] | None = None if keep is None else []
            attended.append(mine)
            if cache is not None:
                cache.append((k, v))
            return packing.attend(q, k, v, self.scale, mine)

        x = self._run(weights, ids, packing.positions, packing.longest, attend, keep)
        if keep is not None:
            for index, mine in enumerate(attended):
                keep[index] += (mine,)
        return x

    @torch.no_grad()
    def step(
        self, weights: Weights, ids: Tensor, positions: Tensor, longest: int, attend: Attend
    ) -> Tensor:
        """The last hidden states (R, H), normalized, of one token (R,) of each of R sequences at
        its position, below `longest`. `attend` is called once a layer, in their order, with
        queries (R, N, D) and the token's keys and values (R, G, D), and gives (R, N, D)."""
        return self._run(weights, ids, positions, longest, attend, None)

    def _run(
        self,
        weights: Weights,
        ids: Tensor,
        positions: Tensor,
        longest: int,
        attend: Attend,
        keep: list[Any] | None,
    ) -> Tensor:
        cos, sin = (table[positions] for table in self.angles(longest))
        x = F.embedding(ids, self.embedding)
        for layer, part in zip(self.layers, weights.layers, strict=True):
            n1, r1 = layer.before(x)
            qkv = part[0](n1)
            both, r_heads = self.rotated(layer, qkv, cos, sin)
            values = self.values(qkv)
            mixed = attend(both[:, : self.heads], both[:, self.heads :], values).flatten(1)
            middle = part[1](mixed).add_(x)
            n2, r2 = layer.after(middle)
            gate_up = part[2](n2)
            gate, up = gate_up.chunk(2, dim=-1)
            lit = F.silu(gate)
            inner = lit * up if keep is not None else lit.mul_(up)
            if keep is not None:
                keep.append((x, n1, r1, qkv, r_heads, mixed, middle, n2, r2, gate_up, lit, inner))
            x = part[3](inner).add_(middle)
        last, r = self.norm(x)
        if keep is not None:
            keep.append((x, r))
        return last

    def backward(
        self, weights: Weights, kept: list[Any], dy: Tensor, packing: Packing, grads: Grads
    ) -> None:
        """Add the adapter's gradients to `grads`, given d loss / d the last hidden states (T, H).
        Empties `kept`; overwrites dy."""
        cos, sin = (table[packing.positions] for table in self.angles(packing.longest))
        last, r = kept.pop()
        dx = self.norm.backward(last, r, dy)
        for layer, part in zip(reversed(self.layers), reversed(weights.layers), strict=True):
            x, n1, r1, qkv, r_heads, mixed, middle, n2, r2, gate_up, lit, inner, attended = (
                kept.pop()
            )
            first = not kept
            d_inner = part[3].backward(inner, dx, grads)
            d_n2 = part[2].backward(n2, swiglu_backward(d_inner, gate_up, lit), grads)
            dx += layer.after.backward(middle, r2, d_n2)
            d_mixed = part[1].backward(mixed, dx, grads)
            assert d_mixed is not None
            d_both, d_values = packing.attend_backward(
                attended, d_mixed.view(-1, self.heads, self.width)
            )
            # The transposed rotation, in the place of the rotation.
            d_both = (d_both * cos).add_((d_both * sin).roll(self.width // 2, -1))
            if layer.heads is not None:
                d_both = layer.heads.backward(self._queries_and_keys(qkv), r_heads, d_both)
            d_qkv = torch.cat([d_both.flatten(1), d_values.flatten(1)], dim=1)
            d_n1 = part[0].backward(n1, d_qkv, grads, need_dx=not first)
            if d_n1 is not None:
                dx += layer.before.backward(x, r1, d_n1)
