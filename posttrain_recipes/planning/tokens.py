"""Counts tokens with a model's tokenizer and chat template, without importing transformers.

`transformers` takes seconds to import; a chat template and a tokenizer file are all that counting
needs, so both are read here by the libraries that `transformers` itself uses for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrain_recipes.pretrained import processor_template
from posttrain_recipes.records import Message
from posttrain_recipes.training.text.chat_template import ChatRenderer
from posttrain_recipes.training.text.jinja import template_environment
from posttrain_recipes.workload import CountTokens

CHARACTERS = 4
"""Characters of a token, where there is no tokenizer to ask."""
CACHED = 4096
"""Conversations whose count is remembered: stages of one plan often share their data."""
FRAME = 5
"""Tokens that a chat template adds to a message, where there is none to ask."""


def roughly(messages: Sequence[Message]) -> int:
    """About how many tokens a conversation has."""
    return sum(len(message.content) // CHARACTERS + FRAME for message in messages)


def counter(location: str, template: str | None = None) -> CountTokens | None:
    """Counts tokens by the tokenizer at `location`; None where it is not on this machine.

    `template` is a chat template in place of its own.
    """
    path = tokenizer_file(location)
    if path is None:
        return None
    try:
        renderer = ChatRenderer(_Tokenizer(path.parent, template))
    except Exception:  # a tokenizer or a template in a form that is not known here
        return None

    @lru_cache(maxsize=CACHED)
    def count(messages: tuple[Message, ...]) -> int:
        return renderer.length(messages)

    return lambda messages: count(tuple(messages))


def tokenizer_file(location: str) -> Path | None:
    """The `tokenizer.json` of the model at `location`; None where it is not on this machine."""
    there = folder(location)
    path = there / "tokenizer.json" if there else None
    return path if path and path.is_file() else None


def folder(location: str) -> Path | None:
    """The directory of a local model, or of one of the hub that was downloaded before."""
    path = Path(location)
    if path.is_dir():
        return path
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or f"{home}/hub"))
    snapshots = (cache / f"models--{location.replace('/', '--')}" / "snapshots").glob("*")
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


class _Tokenizer:
    """As much of a tokenizer of `transformers` as `ChatRenderer` asks for."""

    def __init__(self, folder: Path, template: str | None) -> None:
        from tokenizers import Tokenizer

        self.name_or_path = str(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self._special = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in config.items()
            if key.endswith("_token") and isinstance(value, str | dict)
        }
        beside = folder / "chat_template.jinja"
        written = beside.read_text(encoding="utf-8") if beside.is_file() else None
        own = written or config.get("chat_template") or processor_template(str(folder))
        self.chat_template = template or own
        self._template = template_environment().from_string(self.chat_template or "")
        self.eos_token_id: int | None = self._tokenizer.token_to_id(
            self._special.get("eos_token", "")
        )
        self.added_tokens_decoder = self._tokenizer.get_added_tokens_decoder()
        self.all_special_tokens = sorted(self._special.values())

    def convert_ids_to_tokens(self, token: int) -> str | None:
        found: str | None = self._tokenizer.id_to_token(token)
        return found

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tokenize: bool, **variables: Any
    ) -> str:
        return self._template.render(messages=messages, **self._special, **variables)

    def encode(
        self, text: str, *, add_special_tokens: bool, split_special_tokens: bool = False
    ) -> list[int]:
        # A control token that stands in data as text is rare: its own tokens are not counted.
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids
