"""A model as a GGUF file, for llama.cpp and what is built on it (ggml-org/ggml, docs/gguf.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from posttrain_recipes import ggufs
from posttrain_recipes.errors import PtlError
from posttrain_recipes.exporting.gguf_tokens import Words

Kind = Literal["f32", "f16", "q8_0"]
ARCHITECTURES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""Names in GGUF, which are those of transformers, too; and how people say them."""
BLOCK = 32
"""Weights of a row that share a scale in q8_0."""
Array = NDArray[Any]

_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_BIASES = {
    "llama": ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
    "qwen2": ("attn_q", "attn_k", "attn_v"),
    "qwen3": (),
}
"""Layers whose biases llama.cpp adds, by architecture."""


def write(file: Path, model: Any, words: Words, kind: Kind, name: str) -> None:
    """Write a model of transformers to `file`, one tensor after the other.

    Weights are of `kind`, what has one dimension is of float32. A row that blocks of q8_0 do not
    fill is of f16.

    Args:
        name: what the file calls the model.

    Raises:
        MissingExtraError: the package gguf is not installed.
        PtlError: the architecture, or something of its config, has no form in GGUF; or a weight is
            too large for its type.
    """
    writer = _writer(file, model.config)
    _describe(writer, model.config, kind, name)
    words.add_to(writer)
    tensors = list(_tensors(model))
    for tensor, shape, _ in tensors:
        _announce(writer, tensor, shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, shape, values in tensors:
        writer.write_tensor_data(_encoded(tensor, values(), _type(shape, kind)))
    writer.close()


def check(config: Any) -> str:
    """The architecture of a model in GGUF.

    Raises:
        PtlError: this model cannot be written.
    """
    arch = str(config.model_type)
    if arch not in ARCHITECTURES:
        raise PtlError(
            f"a {arch} model is not written as GGUF",
            why=f"ptl writes {', '.join(ARCHITECTURES.values())}",
            hint="write it with --merge, and convert that with convert_hf_to_gguf.py of llama.cpp",
        )
    scaling = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if scaling not in ("default", "llama3"):
        raise _unknown(f"its rope scaling is {scaling!r}")
    if getattr(config, "use_sliding_window", False):
        raise _unknown("its attention slides a window")
    if getattr(config, "hidden_act", "silu") != "silu":
        raise _unknown(f"its activation is {config.hidden_act!r}, and llama.cpp takes silu")
    heads = config.num_attention_heads
    if arch == "qwen2" and _head_size(config) * heads != config.hidden_size:
        raise _unknown("its heads are not as wide together as its hidden states")
    return arch


def _unknown(why: str) -> PtlError:
    return PtlError("this model is not written as GGUF", why=why, hint="write it with --merge")


def _head_size(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _writer(file: Path, config: Any) -> Any:
    arch = check(config)
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise ggufs.needed("--gguf") from None
    return GGUFWriter(file, arch)


def _describe(writer: Any, config: Any, kind: Kind, name: str) -> None:
    from gguf import LlamaFileType

    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_rope_freq_base(float((config.rope_parameters or {}).get("rope_theta", 10000.0)))
    writer.add_file_type(
        {
            "f32": LlamaFileType.ALL_F32,
            "f16": LlamaFileType.MOSTLY_F16,
            "q8_0": LlamaFileType.MOSTLY_Q8_0,
        }[kind]
    )
    writer.add_quantization_version(2)


# --- tensors -------------------------------------------------------------------------------------

_Tensor = tuple[str, tuple[int, ...], Callable[[], Array]]


def _tensors(model: Any) -> Iterator[_Tensor]:
    """Every tensor of the file: its name, its shape, and its values in float32 when called."""
    config, tied = model.config, _tied(model)
    if (factors := rope_factors(config)) is not None:
        yield "rope_freqs.weight", factors.shape, lambda: factors
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue  # llama.cpp takes the embeddings
        yield named(name, config.model_type), tuple(weight.shape), _values(name, weight, config)


def _tied(model: Any) -> bool:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return head is None or head.weight.data_ptr() == embeddings.weight.data_ptr()


def named(name: str, arch: str) -> str:
    """What GGUF calls a tensor of transformers.

    Raises:
        PtlError: it has no such tensor.
    """
    layer, _, part = name.rpartition(".")
    found = _WHOLE.get(layer)
    if (match := _LAYER.fullmatch(layer)) and match[2] in _IN_LAYER:
        found = f"blk.{match[1]}.{_IN_LAYER[match[2]]}"
    short = (found or "").rpartition(".")[2]
    if found is None or (part == "bias" and short not in _BIASES[arch]):
        raise _unknown(f"llama.cpp has no place for its {name}")
    return f"{found}.{part}"


def _values(name: str, weight: Any, config: Any) -> Callable[[], Array]:
    def values() -> Array:
        made: Array = weight.detach().float().cpu().numpy()
        if config.model_type == "llama":
            if "self_attn.q_proj" in name:
                return permuted(made, config.num_attention_heads)
            if "self_attn.k_proj" in name:
                return permuted(made, config.num_key_value_heads)
        return made

    return values


def permuted(weight: Array, heads: int) -> Array:
    """Rows of a query or key projection, (heads * size, ...), as llama.cpp wants them of Llama.

    transformers rotates the first half of a head against the second, llama.cpp each even row
    against the odd one that follows it.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def rope_factors(config: Any) -> Array | None:
    """What the frequencies of Llama 3's rope scaling are divided by, (head size / 2,) float32.

    None where positions are not scaled. Wavelengths that are long against the context it was
    pretrained on are stretched by `factor`, short ones are kept, those between in between
    (`rope_type: llama3` of transformers; Llama team 2024, arXiv 2407.21783, section 3.4).
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "llama3":
        return None
    size, factor = _head_size(config), rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    between = (context / waves - low) / (high - low)
    mixed = 1 / ((1 - between) / factor + between)
    made = np.where(waves > context / low, factor, np.where(waves < context / high, 1.0, mixed))
    return made.astype(np.float32)


# --- types of numbers ----------------------------------------------------------------------------


def _type(shape: tuple[int, ...], kind: Kind) -> Kind:
    if len(shape) == 1:
        return "f32"
    return "f16" if kind == "q8_0" and shape[-1] % BLOCK else kind


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: Kind) -> None:
    from gguf import GGMLQuantizationType

    made = _type(shape, kind)
    count = math.prod(shape)
    if made == "q8_0":
        rows = (*shape[:-1], shape[-1] // BLOCK * (BLOCK + 2))
        quantized = GGMLQuantizationType.Q8_0
        writer.add_tensor_info(name, rows, np.dtype(np.uint8), math.prod(rows), quantized)
    else:
        dtype = np.dtype(np.float16 if made == "f16" else np.float32)
        writer.add_tensor_info(name, shape, dtype, count * dtype.itemsize)


def _encoded(name: str, values: Array, kind: Kind) -> Array:
    if kind == "f32":
        return np.ascontiguousarray(values)
    if kind == "q8_0":
        from gguf import GGMLQuantizationType, quants

        made: Array = quants.quantize(np.ascontiguousarray(values), GGMLQuantizationType.Q8_0)
        return made
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(values.astype(np.float16))
    if not np.isfinite(half).all():
        raise PtlError(
            f"a weight of {name} is too large for float16", hint="write it with --gguf q8_0"
        )
    return half
