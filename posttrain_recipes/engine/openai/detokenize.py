"""Text <-> tokens for the OpenAI routes: chat templates, and replies that appear token by token."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posttrain_recipes.engine.wire import RequestError

if TYPE_CHECKING:
    from posttrain_recipes.engine.model.base import BaseModel


class Text:
    """A base model's tokenizer. Made on the worker, used on any thread."""

    def __init__(self, base: BaseModel) -> None:
        try:
            # Its own copy: the tokenizers' Rust code refuses two threads at once, and the worker
            # looks for stop strings with the other.
            self._tokenizer = copy.deepcopy(base.tokenizer)
        except (OSError, ValueError) as error:
            raise RequestError(
                422, f"{base.name} has no tokenizer that loads: {error}"
            ) from error  # fmt: skip
        self.name, self.eos, self.context = base.name, frozenset(base.eos_ids()), base.context
        self._lock = threading.Lock()

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """A conversation by the model's own chat template, up to where the reply begins.

        Raises RequestError 422 if the model has no template, or it refuses the conversation.
        """
        import jinja2

        with self._lock:
            if not self._tokenizer.chat_template:
                raise RequestError(
                    422, f"{self.name} has no chat template: ask /v1/completions for plain text"
                )
            try:
                ids: list[int] = self._tokenizer.apply_chat_template(
                    list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
                )
            except (jinja2.TemplateError, TypeError, KeyError) as error:
                raise RequestError(
                    422, f"the chat template of {self.name} refuses these messages: {error}"
                ) from error
        return ids

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain text."""
        with self._lock:
            ids: list[int] = self._tokenizer.encode(text)
        return ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of tokens, without special ones unless asked for."""
        with self._lock:
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=not special)
        return text


@dataclass
class Reply:
    """A reply as its tokens come. Text that may yet change (half a character), or turn out to be
    the beginning of a stop string, is held back."""

    text: Text
    stops: Sequence[str] = ()
    tokens: list[int] = field(default_factory=list)
    over: bool = False
    length: int = 0  # characters given so far
    _held: str = ""
    _from: int = 0  # the first token that the next text is decoded with
    _read: int = 0  # the tokens whose text is known

    def push(self, token: int) -> str:
        """The text that is certain with one more token."""
        self.tokens.append(token)
        if token in self.text.eos:
            return ""
        known = self.text.decode(self.tokens[self._from : self._read])
        whole = self.text.decode(self.tokens[self._from :])
        if whole.endswith("\ufffd"):
            return ""
        self._from, self._read = self._read, len(self.tokens)
        return self._give(whole[len(known) :])

    def end(self) -> str:
        """What is left when no more tokens come."""
        known = self.text.decode(self.tokens[self._from : self._read])
        rest = [token for token in self.tokens[self._from :] if token not in self.text.eos]
        last = self._give(self.text.decode(rest)[len(known) :])
        held, self._held = self._held, ""
        self.length += len(held)
        self.over = True
        return last + held

    def _give(self, new: str) -> str:
        if self.over:
            return ""
        known = self._held + new
        found = [known.index(stop) for stop in self.stops if stop in known]
        if found:
            self.over, self._held = True, ""
            given = known[: min(found)]
        else:
            keep = max((_overlap(known, stop) for stop in self.stops), default=0)
            given, self._held = known[: len(known) - keep], known[len(known) - keep :]
        self.length += len(given)
        return given


def _overlap(text: str, stop: str) -> int:
    """The characters at the end of `text` that `stop` may begin with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1)
                 if text.endswith(stop[:n])), 0)  # fmt: skip
