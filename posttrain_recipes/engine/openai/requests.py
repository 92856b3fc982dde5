"""OpenAI's completion requests, as OpenAI and vLLM have them: what this engine does of them.

What it does not do is refused by name, and so is what it does not know: a parameter that is taken
without effect gives a reply to another question than was asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.openai import constraints
from posttrain_recipes.engine.wire import LogitRules, RequestError

T = TypeVar("T")
TokenOf = Callable[[str], int | None]

WITHOUT_EFFECT = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "parallel_tool_calls", "cache_salt", "priority", "request_id",
    }
)  # fmt: skip
"""Taken and not looked at: they say who asks, or how urgently, and never change the reply."""

_ONLY: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none",),
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
"""Known and not done, each with the values that have no effect."""


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
    """A message of a conversation; `tool_calls` are the assistant's, `tool_call_id` a tool's."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """The message as a chat template takes it: arguments of calls are objects, not JSON text.

        Raises RequestError 422 for images, audio and files, 400 for calls that are none.
        """
        said: dict[str, Any] = {"role": self.role, "content": self._text()}
        if self.name is not None:
            said["name"] = self.name
        if self.tool_call_id is not None:
            said["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            said["tool_calls"] = [_call(one) for one in self.tool_calls]
        return said

    def _text(self) -> str:
        if not isinstance(self.content, list):
            return self.content or ""
        other = {part.type for part in self.content if part.text is None}
        if other:
            raise RequestError(422, f"this engine reads text only, not {', '.join(sorted(other))}")
        return "".join(part.text or "" for part in self.content)


def _call(given: dict[str, Any]) -> dict[str, Any]:
    function = given.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(400, "tool_calls: each needs a function with a name")
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise RequestError(
                400, f"tool_calls: the arguments of {function['name']!r} are no JSON"
            ) from None
    return {**given, "type": "function", "function": {**function, "arguments": arguments}}


@dataclass(frozen=True, kw_only=True)
class BaseCompletionRequest:
    """The fields that chat completions and completions share. Those that OpenAI does not have are
    vLLM's, with its meaning."""

    model: str
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = None
    min_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=0)
    min_tokens: int | None = Field(default=None, ge=0)
    stop: str | list[str] | None = Field(default=None)
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    logit_bias: dict[int, float] | None = None
    response_format: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[Any] | None = None
    seed: int | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

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
    def scores_prompt(self) -> bool:
        """Whether the tokens of the prompt come with log-probabilities."""
        return False

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
        ends = {*(self.stop_token_ids or ()), *(() if self.ignore_eos else eos)}
        return wire.SamplingParams(
            # One is the least that can be sampled; of none asked for, it is left out of the reply.
            max_tokens=1 if self.limit == 0 else self.limit,
            seed=self.seed,
            stop=[*sorted(ends), *stops],
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or -1,
            top_p=1.0 if self.top_p is None else self.top_p,
        )

    def form(self, token: TokenOf) -> str | None:
        """The form that a reply is to have, as a grammar; None for any. Raises RequestError 400."""
        forms = [
            constraints.response_format(self.response_format) if self.response_format else None,
            None if self.guided_json is None else constraints.json_of(
                self.guided_json, "guided_json"
            ),
            None if self.guided_regex is None else constraints.regex(self.guided_regex),
            None if self.guided_choice is None else constraints.choice(self.guided_choice),
        ]  # fmt: skip
        asked = [form for form in forms if form is not None]
        if len(asked) > 1:
            raise RequestError(400, "response_format and guided_*: one of them")
        if asked and self.ignore_eos:
            raise RequestError(400, "ignore_eos: a reply in a form ends where the form does")
        return asked[0] if asked else None

    def rules(self, token: TokenOf = lambda text: None) -> LogitRules | None:
        """What changes the logits before a token is sampled; None where nothing does.

        `token` is the id of a text that is one token of the model. Raises RequestError 400.
        """
        rules = LogitRules(
            self.min_p or 0.0,
            self.min_tokens or 0,
            self.presence_penalty or 0.0,
            self.frequency_penalty or 0.0,
            self.repetition_penalty or 1.0,
            dict(self.logit_bias or {}),
            self.form(token) or "",
        )
        return None if rules == LogitRules() else rules


@dataclass(frozen=True, kw_only=True)
class ChatCompletionRequest(BaseCompletionRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model is told of, and whose calls are looked for in its reply."""
        return [] if self.tool_choice == "none" else list(self.tools or ())

    def form(self, token: TokenOf) -> str | None:
        wanted = super().form(token)
        if self.tool_choice in (None, "none", "auto"):
            return wanted
        if wanted is not None:
            raise RequestError(400, "response_format: a call of a tool has a form of its own")
        return constraints.call_of(self.tools or (), self.tool_choice, token)

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as a chat template takes them."""
        return [message.plain() for message in self.messages]


@dataclass(frozen=True, kw_only=True)
class _WithoutTemplate(BaseCompletionRequest):
    """What continues a prompt as it stands: 16 tokens by default, `logprobs` as a number."""

    logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def limit(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def top(self) -> int | None:
        return self.logprobs


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(_WithoutTemplate):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = ""
    echo: bool | None = None

    @property
    def scores_prompt(self) -> bool:
        return bool(self.echo) and self.logprobs is not None

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        if not 1 <= len(self.prompt) <= 128:
            raise RequestError(422, "prompt: from 1 to 128 of them")
        return list(self.prompt)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class GenerateParams(_WithoutTemplate):
    """The `sampling_params` of a generate request."""

    model: str = ""


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """POST /inference/v1/generate: tokens in, tokens out, as vLLM serves harnesses of RL."""

    model: str
    token_ids: list[int] = Field(min_length=1)
    sampling_params: GenerateParams = Field(default_factory=GenerateParams)
    stream: bool | None = None


def parse(kind: type[T], body: bytes) -> T:
    """The request in `body`. Raises RequestError 400 if it is malformed, or has what is not done
    or not known, all of it named."""
    request = wire.parse(kind, body)
    given = json.loads(body or b"{}")
    _check(given, kind)
    if isinstance(request, GenerateRequest):
        _check(given.get("sampling_params") or {}, GenerateParams)
        if request.stream:
            raise RequestError(400, "stream: this engine does not stream generate requests")
    if isinstance(request, BaseCompletionRequest):
        request.form(lambda text: None)  # raises what is wrong with it
    if isinstance(request, CompletionRequest) and request.stream and request.scores_prompt:
        raise RequestError(400, "echo with logprobs is not streamed: leave out 'stream'")
    if isinstance(request, BaseCompletionRequest) and request.stream and request.limit == 0:
        raise RequestError(400, "max_tokens: 0 leaves nothing to stream")
    return request


def _check(given: dict[str, Any], kind: type) -> None:
    known = {one.name for one in fields(kind)}
    refused = [
        key
        for key, value in given.items()
        if key not in known
        and key not in WITHOUT_EFFECT
        and value is not None
        and value not in _ONLY.get(key, ())
    ]
    if refused:
        raise RequestError(
            400,
            f"this engine does not do {', '.join(map(repr, refused))}: leave "
            f"{'it' if len(refused) == 1 else 'them'} out",
        )
