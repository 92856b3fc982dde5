"""OpenAI's completion requests: what they may contain, and which of it this engine supports."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.wire import RequestError

T = TypeVar("T")

# Unsupported fields that would change the reply, each with the values that have no effect.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}


@dataclass(frozen=True)
class StreamOptions:
    """Options of a stream: whether its last chunk has the token usage."""

    include_usage: bool = False


@dataclass(frozen=True)
class Part:
    """A content part of a message; only text is supported."""

    type: str
    text: str | None = None


@dataclass(frozen=True)
class ChatMessage:
    """A message of a conversation."""

    role: str
    content: str | list[Part] | None = None

    def plain(self) -> dict[str, str]:
        """The message as role and text. Raises RequestError 422 for images, audio and files."""
        if not isinstance(self.content, list):
            return {"role": self.role, "content": self.content or ""}
        other = {part.type for part in self.content if part.text is None}
        if other:
            raise RequestError(422, f"this engine reads text only, not {', '.join(sorted(other))}")
        return {"role": self.role, "content": "".join(part.text or "" for part in self.content)}


@dataclass(frozen=True, kw_only=True)
class BaseCompletionRequest:
    """The fields that chat completions and completions share."""

    model: str
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = Field(default=None)
    seed: int | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def count(self) -> int:
        """The choices asked for, for each prompt."""
        return self.n or 1

    @property
    def limit(self) -> int | None:
        """The most tokens of a reply; None: what the context window leaves."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """The alternatives that each token's log-probability comes with; None: no logprobs."""
        return None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def params(self, eos: frozenset[int]) -> wire.SamplingParams:
        """The sampling parameters; EOS ends a sequence as well as the stop strings.

        Raises RequestError 422 for more than 4 of those.
        """
        stops = self.stops()
        if len(stops) > 4:
            raise RequestError(422, "stop: 4 strings at most")
        return wire.SamplingParams(
            max_tokens=self.limit,
            seed=self.seed,
            stop=[*sorted(eos), *stops],
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or -1,
            top_p=1.0 if self.top_p is None else self.top_p,
        )


@dataclass(frozen=True, kw_only=True)
class ChatCompletionRequest(BaseCompletionRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self) -> list[dict[str, str]]:
        """The messages as a chat template takes them."""
        return [message.plain() for message in self.messages]


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(BaseCompletionRequest):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = ""
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def limit(self) -> int | None:
        return self.max_tokens or 16

    @property
    def top(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        if not 1 <= len(self.prompt) <= 128:
            raise RequestError(422, "prompt: from 1 to 128 of them")
        return list(self.prompt)  # type: ignore[arg-type]


def parse(kind: type[T], body: bytes) -> T:
    """The request in `body`. Raises RequestError 400 if it is malformed or unsupported."""
    request = wire.parse(kind, body)
    for key, value in json.loads(body or b"{}").items():
        if value is not None and key in _UNSUPPORTED and value not in _UNSUPPORTED[key]:
            raise RequestError(400, f"this engine does not do {key!r}: leave it out")
    return request
