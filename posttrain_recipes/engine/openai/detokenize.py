"""Text <-> tokens for the OpenAI routes: chat templates, and incremental detokenization."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posttrain_recipes.engine.wire import RequestError

if TYPE_CHECKING:
    from posttrain_recipes.engine.model.base import BaseModel


THINKING = {"enable_thinking": False, "thinking": False}
"""What a chat template is told where a request does not say otherwise: as models are trained unless
their recipe says `thinking: on`."""
_MARK = "\ue001\ue002\ue001"
"""A reply that no template changes."""


class ThreadSafeTokenizer:
    """A base model's tokenizer behind a lock. Made on the worker thread, used on any.

    `template` is a chat template in place of its own.

    Raises RequestError 422 if the model has no tokenizer that loads.
    """

    def __init__(self, base: BaseModel, template: str | None = None) -> None:
        try:
            # Its own copy: the tokenizers' Rust code refuses two threads at once, and the worker
            # looks for stop strings with the other.
            self._tokenizer = copy.deepcopy(base.tokenizer)
        except (OSError, ValueError) as error:
            raise RequestError(
                422, f"{base.name} has no tokenizer that loads: {error}"
            ) from error  # fmt: skip
        self._tokenizer.chat_template = template or self._tokenizer.chat_template
        self.name, self.context = base.name, base.context
        self.eos = frozenset(base.eos_ids() | self._template_end())
        self._lock = threading.Lock()

    def _template_end(self) -> set[int]:
        """The token that the chat template writes after a reply, which some models' configs lack.

        Training learns it as the end of a reply.
        """
        if not self._tokenizer.chat_template:
            return set()
        said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        try:
            text = self._tokenizer.apply_chat_template(said, tokenize=False, **THINKING)
        except Exception:  # a template is a program, and this one wants something else
            return set()
        after = text.partition(_MARK)[2].lstrip()
        added = self._tokenizer.added_tokens_decoder.items()
        fits = [(len(t.content), i) for i, t in added if after.startswith(t.content)]
        return {max(fits)[1]} if fits else set()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """A conversation as token ids by the model's chat template, with its generation prompt.

        `variables` are the template's, beside `THINKING`.

        Raises RequestError 422 if the model has no template, or it refuses the conversation; 400
        for tools, or messages of them, that the template would leave out.
        """
        import jinja2

        with self._lock:
            if not self._tokenizer.chat_template:
                raise RequestError(
                    422, f"{self.name} has no chat template: ask /v1/completions for plain text"
                )
            self._check_tools(messages, tools)
            try:
                ids: list[int] = self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=False,
                    **{**THINKING, **(variables or {})},
                )
            except (jinja2.TemplateError, TypeError, KeyError) as error:
                raise RequestError(
                    422, f"the chat template of {self.name} refuses these messages: {error}"
                ) from error
        return ids

    def token(self, text: str) -> int | None:
        """The id of a text that is one token; None where it is several."""
        with self._lock:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
        return int(ids[0]) if len(ids) == 1 else None

    def _check_tools(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> None:
        template = str(self._tokenizer.chat_template)
        for name, asked in (
            ("tools", bool(tools)),
            ("tool_calls", any("tool_calls" in message for message in messages)),
        ):
            if asked and name not in template:
                raise RequestError(
                    400,
                    f"{name!r}: the chat template of {self.name} leaves them out, so that the "
                    "model would not be told: do without",
                )

    def encode(self, text: str) -> list[int]:
        """The token ids of a plain text."""
        with self._lock:
            ids: list[int] = self._tokenizer.encode(text)
        return ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of tokens, without special ones unless asked for."""
        with self._lock:
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=not special)
        return text


@dataclass
class IncrementalDetokenizer:
    """Turns the tokens of one reply into text as they come, up to a stop string.

    Text that may yet change (an incomplete UTF-8 character), or may be the beginning of a stop
    string, is held back until the tokens after it decide.
    """

    tokenizer: ThreadSafeTokenizer
    stops: Sequence[str] = ()
    ends: frozenset[int] = frozenset()
    """Tokens beside EOS that end the reply and are no text of it."""
    tokens: list[int] = field(default_factory=list)
    over: bool = False  # after a stop string or `end`
    length: int = 0  # characters returned so far
    _held: str = ""
    _from: int = 0  # the first token of the window that is decoded next
    _read: int = 0  # tokens whose text has been returned or held

    def push(self, token: int) -> str:
        """Add a token. Returns the text that has become certain with it."""
        self.tokens.append(token)
        if self._ends(token):
            return ""
        known = self.tokenizer.decode(self.tokens[self._from : self._read])
        whole = self.tokenizer.decode(self.tokens[self._from :])
        if whole.endswith("\ufffd"):
            return ""
        self._from, self._read = self._read, len(self.tokens)
        return self._give(whole[len(known) :])

    def end(self) -> str:
        """End the reply. Returns the text still held back."""
        known = self.tokenizer.decode(self.tokens[self._from : self._read])
        rest = [token for token in self.tokens[self._from :] if not self._ends(token)]
        last = self._give(self.tokenizer.decode(rest)[len(known) :])
        held, self._held = self._held, ""
        self.length += len(held)
        self.over = True
        return last + held

    def _ends(self, token: int) -> bool:
        return token in self.tokenizer.eos or token in self.ends

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
    """The length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1)
                 if text.endswith(stop[:n])), 0)  # fmt: skip
