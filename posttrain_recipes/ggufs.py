"""What a GGUF file says of its model: its shape, its tokenizer, its ends (github.com/ggml-org/ggml,
docs/gguf.md).

transformers reads the tensors. What it makes of the rest is mended here: it takes no head size for
Qwen3, no ends of a sequence, and makes another tokenizer of most byte-level ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrain_recipes.errors import MissingExtraError, PtlError
from posttrain_recipes.importing import import_tokenizers

SUFFIX = ".gguf"
MAGIC = b"GGUF"
HUGGING_FACE = "tokenizer.huggingface.json"
"""The key of a whole `tokenizer.json`; files that ptl writes have it."""
CONTROL, USER_DEFINED = 3, 4
"""Types of tokens: those that stand for no text, and those that are never split."""
HINT = "name the directory that the file was made from: with config.json and tokenizer.json"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| "
    r"?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_MODERN.format(digits="{1,3}"),),
    "qwen2": (_MODERN.format(digits=""),),
}
"""By `tokenizer.ggml.pre`: the patterns that text is split by, one after the other, before pairs of
bytes are merged (llama.cpp, src/llama-vocab.cpp)."""
_SAME = {"gpt2": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "starcoder": "smollm",
         "refact": "smollm", "deepseek-r1-qwen": "qwen2"}  # fmt: skip
_TENSORS_LOST = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def is_gguf(location: str) -> bool:
    """Whether a model is named as a GGUF file."""
    return location.lower().endswith(SUFFIX)


def fault(file: Path) -> str | None:
    """Why a model cannot be a GGUF file, seen by its first bytes; None where nothing is known."""
    try:
        with file.open("rb") as opened:
            first = opened.read(len(MAGIC))
    except FileNotFoundError:
        return "there is no GGUF file here"
    except OSError as error:
        return f"this GGUF file cannot be read: {error.strerror}"
    return None if first == MAGIC else "is no GGUF file: its first four bytes are not 'GGUF'"


def metadata(location: str) -> dict[str, Any]:
    """All that a GGUF file says but its tensors; their names are under `tensors`.

    Raises:
        MissingExtraError: the package gguf is not installed.
        PtlError: it cannot be read.
    """
    file = Path(location)
    if why := fault(file):
        raise PtlError(f"{location}: {why}", code="bad-model")
    told = file.stat()
    return _metadata(location, told.st_mtime_ns, told.st_size)


@lru_cache(maxsize=4)
def _metadata(location: str, time: int, size: int) -> dict[str, Any]:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise needed("a model of a GGUF file") from None
    try:
        reader = GGUFReader(location)
        found = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise PtlError(
            f"{location} cannot be read as GGUF",
            why=str(error),
            hint="it may be cut short: compare its size with its origin's",
            code="bad-model",
        ) from None
    return {**found, "tensors": [tensor.name for tensor in reader.tensors]}


def needed(what: str) -> MissingExtraError:
    """What to tell where the package is not installed."""
    return MissingExtraError(
        f"{what} needs the packages gguf and accelerate",
        hint="pip install 'posttrain-recipes[gguf]'",
    )


def config(location: str) -> Any:
    """The config of transformers of the model in a GGUF file.

    Raises:
        PtlError: transformers does not know its architecture, or would leave something out of it.
    """
    from transformers import AutoConfig

    told, file = metadata(location), Path(location)
    if lost := [name for name in told["tensors"] if name.endswith(_TENSORS_LOST)]:
        raise PtlError(
            f"{location} cannot be a base model",
            why=f"transformers does not read its {lost[0]}: positions would be others",
            hint=HINT,
            code="bad-model",
        )
    try:
        made = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except ImportError:
        raise needed("a model of a GGUF file") from None
    except (ValueError, KeyError, OSError) as error:
        raise PtlError(
            f"{location} does not load", why=str(error), hint=HINT, code="bad-model"
        ) from None
    arch = told.get("general.architecture", "")
    if size := told.get(f"{arch}.attention.key_length"):
        made.head_dim = size
    if arch == "llama" and any(name.endswith("attn_q.bias") for name in told["tensors"]):
        made.attention_bias = True
    if arch == "llama" and any(name.endswith("ffn_up.bias") for name in told["tensors"]):
        made.mlp_bias = True
    if (base := told.get(f"{arch}.rope.freq_base")) is not None:
        made.rope_parameters = {**(made.rope_parameters or {}), "rope_theta": float(base)}
    scaling = told.get(f"{arch}.rope.scaling.type", "none")
    if scaling != "none":
        raise PtlError(
            f"{location} cannot be a base model",
            why=f"transformers does not read its rope scaling, {scaling!r}",
            hint=HINT,
            code="bad-model",
        )
    listed = ends(location)
    made.eos_token_id = listed if len(listed) > 1 else next(iter(listed), None)
    made.bos_token_id = told.get("tokenizer.ggml.bos_token_id")
    made.pad_token_id = told.get("tokenizer.ggml.padding_token_id")
    return made


def ends(location: str) -> list[int]:
    """Token ids that end a reply by the file: its ends of a sequence and of a turn."""
    told = metadata(location)
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return list(dict.fromkeys(told[key] for key in keys if key in told))


def shape(location: str) -> dict[str, Any]:
    """The sizes of a model by its file, under the names of a `config.json`."""
    told = metadata(location)
    arch = told.get("general.architecture", "")
    heads, width = (
        told.get(f"{arch}.{key}") for key in ("attention.head_count", "embedding_length")
    )
    tokens = told.get("tokenizer.ggml.tokens")
    made = {
        "vocab_size": told.get(f"{arch}.vocab_size") or (len(tokens) if tokens else None),
        "max_position_embeddings": told.get(f"{arch}.context_length"),
        "hidden_size": width,
        "intermediate_size": told.get(f"{arch}.feed_forward_length"),
        "num_hidden_layers": told.get(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": told.get(f"{arch}.attention.head_count_kv"),
        "head_dim": told.get(f"{arch}.attention.key_length")
        or (width // heads if width and heads else None),
        "tie_word_embeddings": "output.weight" not in told["tensors"],
    }
    return {key: value for key, value in made.items() if value is not None}


# --- the tokenizer -------------------------------------------------------------------------------


def tokenizer(location: str) -> Any:
    """The tokenizer in a GGUF file, as one of transformers.

    Raises:
        PtlError: there is none, or it splits text in a way that is not known here.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    told = metadata(location)
    kind = told.get("tokenizer.ggml.model")
    if (whole := told.get(HUGGING_FACE)) is not None:
        made = Tokenizer.from_str(whole)
    elif kind == "gpt2":
        made = _byte_level(location, told)
    elif kind is None:
        raise PtlError(f"there is no tokenizer in {location}", hint=HINT, code="bad-model")
    else:
        made = _by_transformers(location)
    tokens = told.get("tokenizer.ggml.tokens", [])
    named = {
        option: tokens[number]
        for option, key in (
            ("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
        if (number := told.get(f"tokenizer.ggml.{key}_token_id")) is not None
        and number < len(tokens)
    }  # fmt: skip
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, **named
    )
    fast.chat_template = _templates(told)
    fast.name_or_path = location
    return fast


def _templates(told: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The chat template of a file, or its several by their names."""
    key = "tokenizer.chat_template"
    named = {name: told[f"{key}.{name}"] for name in told.get(f"{key}s", ())}
    default: str | None = told.get(key)
    if not named:
        return default
    return named if default is None else {"default": default, **named}


def _byte_level(location: str, told: Mapping[str, Any]) -> Any:
    """Byte-level BPE (Radford et al. 2019, section 2.2) from its tokens and merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    pre = told.get("tokenizer.ggml.pre", "default")
    if (splits := SPLITS.get(_SAME.get(pre, pre))) is None:
        raise PtlError(
            f"the tokenizer of {location} cannot be loaded",
            why=f"it splits text by the rules {pre!r}, and ptl knows {', '.join(SPLITS)}",
            hint=HINT,
            code="bad-model",
        )
    tokens = told["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in told.get("tokenizer.ggml.merges", [])]
    made: Any = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(tokens)},
            merges,
            ignore_merges=_SAME.get(pre, pre) == "llama-bpe",  # as llama.cpp has it
        )
    )
    made.pre_tokenizer = pre_tokenizer(splits)
    made.decoder = decoders.ByteLevel()
    for number, kind in enumerate(told.get("tokenizer.ggml.token_type", [])):
        if kind in (CONTROL, USER_DEFINED):
            added = AddedToken(tokens[number], normalized=False, special=kind == CONTROL)
            add = made.add_special_tokens if kind == CONTROL else made.add_tokens
            add([added])
    return made


def pre_tokenizer(splits: tuple[str, ...]) -> Any:
    """Text in pieces by these patterns, and those as bytes."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _by_transformers(location: str) -> Any:
    import_tokenizers()
    from transformers import AutoTokenizer

    file = Path(location)
    try:
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)._tokenizer
    except Exception as error:  # whatever its many converters raise
        raise PtlError(
            f"the tokenizer of {location} cannot be loaded",
            why=str(error),
            hint=HINT,
            code="bad-model",
        ) from None
