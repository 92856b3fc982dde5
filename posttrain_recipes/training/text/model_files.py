"""What the files of a model say of the text that it reads: its tokenizer, its ends, its bounds."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_recipes import ggufs
from posttrain_recipes.pretrained import token_ids

NO_TOKENIZER = "copy the model's tokenizer.json and tokenizer_config.json there"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "tekken.json", "spiece.model")
_LAYER = re.compile(r"^(?:model\.)?layers\.(\d+)\.")
"""A weight of a decoder's layer: not of what sees, nor of what predicts tokens further ahead."""
_CONTEXT = ("max_position_embeddings", "n_positions")
"""What configs call the longest sequence; the second is of GPT-2, GPT-J and their like."""
_VOCABULARIES = ("vocab.json", "vocab.txt", "sentencepiece*.model")


@dataclass(frozen=True)
class ModelLimits:
    """What a model can read, by its config; None where that does not say."""

    vocabulary: int | None = None
    """Rows of its embedding."""
    context: int | None = None
    """Tokens of a sequence."""


NO_LIMITS = ModelLimits()


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files of a tokenizer in a model's directory."""
    return any(next(folder.glob(name), None) for name in (*_TOKENIZERS, *_VOCABULARIES))


def limits(location: str) -> ModelLimits:
    """Of the model at `location`, a directory or a hub id."""
    config = ggufs.shape(location) if ggufs.is_gguf(location) else _read(location, "config.json")
    config = {**config, **_of_text(config)}
    contexts = [_count(config.get(name)) for name in _CONTEXT]
    context = next((count for count in contexts if count is not None), None)
    return ModelLimits(_count(config.get("vocab_size")), context)


def ends_by_file(location: str) -> dict[str, list[int]]:
    """Token ids that end a sequence, by the file that names them; empty where it names none."""
    if ggufs.is_gguf(location):
        return {Path(location).name: ggufs.ends(location)}
    return {file: token_ids(named) for file, named in _named_ends(location).items()}


def no_ends(location: str) -> dict[str, Any]:
    """What files name as the end of a sequence that is no token id, by the file."""
    if ggufs.is_gguf(location):
        return {}
    return {
        file: named
        for file, named in _named_ends(location).items()
        if named is not None
        and (not isinstance(named, list) or named)
        and len(token_ids(named)) < (len(named) if isinstance(named, list) else 1)
    }


def ends(location: str) -> list[int]:
    """Token ids that end a reply by its generation config; none where it has none."""
    if ggufs.is_gguf(location):
        return ggufs.ends(location)
    return token_ids(_read(location, "generation_config.json").get("eos_token_id"))


def layers_left_out(location: str) -> tuple[int, int] | None:
    """(layers that the weights have, layers that the config names) where those are fewer: the
    others would not be loaded. None where they are not, and where no safetensors file lies there.
    """
    named = _count(_read(location, "config.json").get("num_hidden_layers"))
    found = {int(number) for name in _weights(Path(location)) for number in _LAYER.findall(name)}
    held = max(found, default=-1) + 1
    return (held, named) if named is not None and held > named else None


def _weights(folder: Path) -> Iterator[str]:
    """Names of the weights in a directory, by the heads of its safetensors files."""
    for file in folder.glob("model*.safetensors"):
        with contextlib.suppress(OSError, ValueError, AttributeError), file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length <= file.stat().st_size:
                yield from json.loads(stream.read(length)).keys()


def _named_ends(location: str) -> dict[str, Any]:
    """`eos_token_id` as it stands in each file that may name it."""
    config = _read(location, "config.json")
    named = config.get("eos_token_id", _of_text(config).get("eos_token_id"))
    said = _read(location, "generation_config.json").get("eos_token_id")
    return {"config.json": named, "generation_config.json": said}


def _of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said of the decoder alone: models that also see have it in a part of its own."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _read(location: str, name: str) -> dict[str, Any]:
    """A file of the model; empty where there is none."""
    from transformers.utils import cached_file

    try:
        found = json.loads(Path(cached_file(location, name)).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
