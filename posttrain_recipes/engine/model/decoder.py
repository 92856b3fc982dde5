"""The engine's own forward and backward passes of Llama-like models: Llama, Qwen2, Qwen3, Mistral
and others of that architecture.

`Decoder.of` takes a loaded model's weights as they are, and checks on random tokens that it
computes the same logits; a model that it does not recognize, or computes otherwise, is run by
transformers. It is faster than transformers because sequences are packed end to end, without
padding (attention alone pads, in buckets of similar length); queries, keys and values are one
product, and so are gate and up; an adapter is merged into its layer once a step instead of being
applied at every token; and the backward pass, written out in `kernels`, computes gradients for the
adapter alone, straight into the adapter's own gradient.

Shapes: T tokens, H hidden, N query heads, G key heads, D head width, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain_recipes.engine.model import kernels
from posttrain_recipes.engine.model.fused_linear import Block, Grads
from posttrain_recipes.engine.model.kernels import Product
from posttrain_recipes.engine.model.lora import LoraFactors
from posttrain_recipes.engine.model.packing import Packing, wide_dtype

_ROPE = {"default", "llama3", "linear", "yarn"}  # those whose angles do not depend on the length


@dataclass(frozen=True)
class Blocks:
    """The frozen weights of one layer."""

    qkv: Block
    out: Block
    gate_up: Block
    down: Block
    before: Tensor
    after: Tensor
    heads: Tensor | None

    @property
    def linear(self) -> tuple[Block, Block, Block, Block]:
        """The linear blocks, in the order that they run in."""
        return self.qkv, self.out, self.gate_up, self.down


@dataclass(frozen=True)
class DecoderWeights:
    """The weights of one pass: the layers and the LM head, with an adapter's factors or merged."""

    layers: Sequence[kernels.Layer]
    head: Product


class Decoder:
    """A model of this architecture, frozen."""

    def __init__(self, model: Any) -> None:
        body, config = model.model, model.config
        names = {id(module): name for name, module in model.named_modules()}

        def block(*modules: nn.Linear, tied: bool = False) -> Block:
            return Block.of({names[id(module)]: module for module in modules}, tied)

        first = body.layers[0].self_attn
        self.width: int = first.head_dim
        self.heads = first.q_proj.out_features // self.width
        self.groups = first.k_proj.out_features // self.width
        self.scale: float = first.scaling
        self.embedding: Tensor = body.embed_tokens.weight.data
        self.hidden = self.embedding.shape[1]
        self.layers: list[Blocks] = []
        for layer in body.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self.layers.append(
                Blocks(
                    block(attention.q_proj, attention.k_proj, attention.v_proj),
                    block(attention.o_proj),
                    block(mlp.gate_proj, mlp.up_proj),
                    block(mlp.down_proj),
                    layer.input_layernorm.weight.data,
                    layer.post_attention_layernorm.weight.data,
                    self._head_norm(attention),
                )
            )
        # Logits of 16 and more are a tenth apart in bfloat16, which is more than a sampler's and a
        # trainer's log-probabilities may differ.
        wide = wide_dtype(self.embedding)
        self.norm: Tensor = body.norm.weight.data.to(wide)
        self.eps = float(body.norm.variance_epsilon)
        tied = model.lm_head.weight is body.embed_tokens.weight
        self.head = block(model.lm_head, tied=tied).to(wide)
        self._rotary = body.rotary_emb
        self._angles: tuple[Tensor, Tensor] | None = None
        self.context = int(config.max_position_embeddings)

    def _head_norm(self, attention: Any) -> Tensor | None:
        if not hasattr(attention, "q_norm"):
            return None
        q, k = attention.q_norm.weight.data, attention.k_norm.weight.data
        return torch.cat([q.expand(self.heads, -1), k.expand(self.groups, -1)])

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
        hidden = self.forward(weights, torch.cat(ids).to(device), packing)
        own = kernels.product(hidden, weights.head).float()
        reference = torch.cat([model(input_ids=x[None].to(device)).logits[0] for x in ids]).float()
        if self.embedding.dtype != torch.float32:
            # Rounding grows with the layers, to a few hundredths at 24, and the largest of a
            # million differences with it: that of a model computed otherwise is about 1.
            return bool((own - reference).norm() <= 0.1 * reference.norm())
        limit = 1e-4 * reference.abs().max().clamp_min(1e-6)
        return bool((own - reference).abs().max() <= limit)

    def weights(
        self, factors: Mapping[str, LoraFactors] | None, merge: bool, pack: bool = False
    ) -> DecoderWeights:
        """The weights of a pass, with an adapter's factors or, for None, the base model alone.

        `merge` adds the adapter into a copy of the layers that it adapts, which takes the time of a
        pass over a few hundred tokens. `pack` is for passes without a backward pass: it multiplies
        by packed copies of the weights, see `Block.product`.
        """

        def make(block: Block) -> Product:
            return block.product(factors, merge, pack)

        layers = [
            kernels.Layer(
                make(x.qkv), make(x.out), make(x.gate_up), make(x.down),
                x.before, x.after, x.heads, self.eps,
            )
            for x in self.layers
        ]  # fmt: skip
        return DecoderWeights(layers, make(self.head))

    def angles(self, longest: int) -> tuple[Tensor, Tensor]:
        """Rotary embedding: cos and sin (positions, 1, D) for at least `longest` positions.

        The first half of sin is negated, so that x cos + swap(x) sin rotates, where `swap` swaps
        the halves of the last dimension.
        """
        if self._angles is None or self._angles[0].shape[0] < longest:
            size = min(self.context, max(256, 2 * longest)) if longest <= self.context else longest
            device = self.embedding.device
            positions = torch.arange(size, device=device)[None]
            like = self.embedding[:1]
            cos, sin = self._rotary(like.to(wide_dtype(like)), positions)
            sin = torch.cat([-sin[0, :, : self.width // 2], sin[0, :, self.width // 2 :]], dim=-1)
            self._angles = (cos[0, :, None].contiguous(), sin[:, None].contiguous())
        return self._angles

    # Passes ----------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(
        self,
        weights: DecoderWeights,
        ids: Tensor,
        packing: Packing,
        keep: list[Any] | None = None,
        recomputed: int = 0,
    ) -> Tensor:
        """The last hidden states (T, H), normalized, of packed tokens (T,).

        Args:
            weights: from `weights`.
            ids: token ids, end to end.
            packing: where each sequence begins, and its positions.
            keep: a list to fill with the activations that `backward` needs.
            recomputed: of so many layers, the first ones, `backward` computes the activations
                again, arXiv 1604.06174: only the layer's input is kept.
        """
        cos, sin = self.rotation(packing)
        x = self.embed(ids)
        for index, layer in enumerate(weights.layers):
            if keep is not None and index >= recomputed:
                x, saved = self._keeping(x, layer, cos, sin, packing)
                keep.append(saved)
                continue
            if keep is not None:
                keep.append(x)
            before = kernels.before_attention(x, layer, cos, sin, self.groups)
            x = kernels.after_attention(x, self._attend(before, packing, None), layer)
        last, r = kernels.norm(x, self.norm, self.eps)
        if keep is not None:
            keep.append((x, r))
        return last

    def _keeping(
        self, x: Tensor, layer: kernels.Layer, cos: Tensor, sin: Tensor, packing: Packing
    ) -> tuple[Tensor, tuple[kernels.SavedActivations, list[Any]]]:
        """A layer's output, and what its backward pass needs."""
        before = kernels.before_attention(x, layer, cos, sin, self.groups)
        attended: list[Any] = []
        y, kept = kernels.after_attention_kept(
            x, self._attend(before, packing, attended), layer, before
        )
        return y, (kept, attended)

    @torch.no_grad()
    def prefill(
        self,
        weights: DecoderWeights,
        ids: Tensor,
        packing: Packing,
        start: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read prompts, for generation.

        Args:
            weights: from `weights`.
            ids: token ids (T,) of S prompts, end to end; without `start` if that is given.
            packing: where each prompt begins, and its positions.
            start: the cached keys and values, (layers, G, P, D), of a prefix of P tokens that all
                of the prompts continue; None if they have none in common.

        Returns:
            The normalized hidden states (S, H) of each prompt's last token, and the keys and values
            of `ids`, (layers, T, G, D) each.
        """
        cos, sin = self.rotation(packing, start[0].shape[2] if start else 0)
        x = self.embed(ids)
        ends = torch.from_numpy(packing.starts[1:] - 1).to(ids.device)
        shape = (len(weights.layers), packing.total, self.groups, self.width)
        keys, values = (
            self.embedding.new_empty(shape, dtype=wide_dtype(self.embedding)) for _ in range(2)
        )
        for index, layer in enumerate(weights.layers):
            before = kernels.before_attention(x, layer, cos, sin, self.groups)
            keys[index] = before[4][:, self.heads :]
            values[index] = kernels.values(before[2], self.width, self.groups)
            prefix = (start[0][index], start[1][index]) if start else None
            attn_out = self._attend(before, packing, None, prefix)
            if index == len(weights.layers) - 1:  # only the last tokens' outputs are read
                x, attn_out = x[ends], attn_out[ends]
            x = kernels.after_attention(x, attn_out, layer)
        return kernels.norm(x, self.norm, self.eps)[0], keys, values

    def kept_per_token(self) -> int:
        """Bytes that the backward pass of one layer needs of a token."""
        heads, groups, width = self.heads, self.groups, self.width
        mlp = self.layers[0].down.weight.shape[1]
        qkv = (heads + 2 * groups) * width
        wide = torch.finfo(wide_dtype(self.embedding)).bits // 8
        own = 2 * self.hidden + qkv + heads * width + 4 * mlp
        return own * self.embedding.itemsize + (2 * self.hidden + qkv + heads * width) * wide

    def recomputed(self, tokens: int, budget: int) -> int:
        """How many layers are recomputed so that what is kept of a pass over so many tokens stays
        within `budget` bytes, as far as that can be."""
        wide = torch.finfo(wide_dtype(self.embedding)).bits // 8
        full, least = self.kept_per_token(), self.hidden * wide
        layers = len(self.layers)
        if tokens * full * layers <= budget:
            return 0
        # One layer's activations are there while it is recomputed.
        left = budget - tokens * (full + least * layers)
        return layers - max(0, min(layers - 1, left // (tokens * (full - least))))

    def embed(self, ids: Tensor) -> Tensor:
        """The embeddings (T, H) of token ids (T,), where the residual stream begins: in float32 on
        a CPU, whatever the weights are in."""
        found = F.embedding(ids, self.embedding)
        return found.to(wide_dtype(found))

    def rotation(self, packing: Packing, start: int = 0) -> tuple[Tensor, Tensor]:
        """cos and sin (T, 1, D) of every token's position, `start` tokens coming before each."""
        cos, sin = self.angles(start + packing.longest)
        return cos[start + packing.positions], sin[start + packing.positions]

    def _attend(
        self,
        before: Any,
        packing: Packing,
        keep: list[Any] | None,
        start: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        qkv, qk = before[2], before[4]
        q, k = qk[:, : self.heads], qk[:, self.heads :]
        v = kernels.values(qkv, self.width, self.groups)
        return packing.attend(q, k, v, self.scale, keep, start).flatten(1)

    def backward(
        self, weights: DecoderWeights, kept: list[Any], dy: Tensor, packing: Packing, grads: Grads
    ) -> None:
        """Add the adapter's gradients to `grads`, given dy = d loss / d last hidden states (T, H).

        `kept` is what `forward` put into `keep`; it is emptied, and dy overwritten.
        """
        cos, sin = self.rotation(packing)
        last, r = kept.pop()
        dx = kernels.norm_backward(last, self.norm, r, dy)
        for blocks, layer in zip(reversed(self.layers), reversed(weights.layers), strict=True):
            last = kept.pop()
            if isinstance(last, Tensor):  # the layer's input alone
                _, last = self._keeping(last, layer, cos, sin, packing)
            saved, attended = last
            block_grads = [block.grads(grads) for block in blocks.linear]
            dx, d_attn_out = kernels.after_attention_backward(dx, layer, saved, block_grads)
            d_qk, d_values = packing.attend_backward(
                attended, d_attn_out.view(-1, self.heads, self.width)
            )
            dx = kernels.before_attention_backward(
                dx, d_qk, d_values, layer, saved, cos, sin, block_grads, not kept
            )
