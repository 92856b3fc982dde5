"""What the files of a model say of the text that it reads: its tokenizer, its ends, its bounds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain_recipes import ggufs

NO_TOKENIZER = "copy the model's tokenizer.json and tokenizer_config.json there"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "tekken.json", "spiece.model")
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
    config = {**config, **(config.get("text_config") or {})}
    return ModelLimits(config.get("vocab_size"), config.get("max_position_embeddings"))


def ends_by_file(location: str) -> dict[str, list[int]]:
    """Token ids that end a sequence, by the file that names them; empty where it names none."""
    if ggufs.is_gguf(location):
        return {Path(location).name: ggufs.ends(location)}
    config = _read(location, "config.json")
    text = config.get("text_config") or {}
    named = config.get("eos_token_id", text.get("eos_token_id"))
    return {"config.json": _ids(named), "generation_config.json": ends(location)}


def ends(location: str) -> list[int]:
    """Token ids that end a reply by its generation config; none where it has none."""
    if ggufs.is_gguf(location):
        return ggufs.ends(location)
    return _ids(_read(location, "generation_config.json").get("eos_token_id"))


def _ids(found: Any) -> list[int]:
    return [found] if isinstance(found, int) else list(found or ())


def _read(location: str, name: str) -> dict[str, Any]:
    """A file of the model; empty where there is none."""
    from transformers.utils import cached_file

    try:
        found = json.loads(Path(cached_file(location, name)).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
