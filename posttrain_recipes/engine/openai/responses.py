"""OpenAI's response objects: a whole response, or the chunks of a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.openai.detokenize import IncrementalDetokenizer, ThreadSafeTokenizer
from posttrain_recipes.engine.openai.requests import (
    BaseCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
)
from posttrain_recipes.engine.openai.tools import ToolSplitter

TokenEvent = tuple[int, int, float, Any]  # choice, token, logprob, top-k (ids, logprobs) or None


@dataclass
class ScoredPrompt:
    """A prompt's tokens, its text as it was given, and its scores once they are there."""

    ids: list[int]
    text: str
    logprobs: Any = None  # (tokens,), NaN for the first
    top: Any = None  # a TopK, (tokens, K)


class ResponseFormat(ABC):
    """The response objects of one kind of completion. Collects each choice's text and logprobs."""

    prefix: str
    response_object: str
    chunk_object: str

    def __init__(self, request: BaseCompletionRequest, tokenizer: ThreadSafeTokenizer) -> None:
        self.request, self.tokenizer = request, tokenizer
        self.entries: dict[
            int, list[dict[str, Any]]
        ] = {}  # choice -> its tokens' log-probabilities
        self.pieces: dict[int, list[str]] = {}
        self.prompts: list[ScoredPrompt] = []

    def sample(
        self, prompt: list[int], on_token: Callable[[int, int, float, Any], None]
    ) -> wire.SampleRequest:
        """The engine's request for samples that continue `prompt`."""
        return wire.SampleRequest(
            sampling_session_id="",
            seq_id=0,
            prompt=wire.ModelInput([wire.Chunk(tokens=prompt)]),
            sampling_params=self.request.params(self.tokenizer.eos),
            num_samples=self.request.count,
            prompt_logprobs=self.request.scores_prompt or None,
            topk_prompt_logprobs=(self.request.top or 0) if self.request.scores_prompt else 0,
            topk_sample_logprobs=self.request.top or 0,
            rules=self.request.rules(self.tokenizer.token),
            on_token=on_token,
        )

    def add_token(self, detokenizers: Sequence[IncrementalDetokenizer], event: TokenEvent) -> None:
        """Add a token to its choice, for a response that is sent as a whole."""
        index, token, logprob, top = event
        if self.request.top is not None:
            self.entries.setdefault(index, []).append(
                self.logprob(detokenizers[index], token, logprob, top)
            )
        self.pieces.setdefault(index, []).append(detokenizers[index].push(token))

    def chunk_for(
        self, detokenizers: Sequence[IncrementalDetokenizer], event: TokenEvent
    ) -> dict[str, Any] | None:
        """The chunk to stream for a token; None where it yields no text yet."""
        index, token, logprob, top = event
        entries = (
            None
            if self.request.top is None
            else [self.logprob(detokenizers[index], token, logprob, top)]
        )  # fmt: skip
        new = detokenizers[index].push(token)
        return self.chunk(index, new, entries) if new or entries else None

    def full_text(self, index: int, detokenizer: IncrementalDetokenizer) -> str:
        """The text of a choice."""
        return "".join(self.pieces.get(index, ())) + detokenizer.end()

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice's stream, before its text; None if there is none."""
        return None

    def closing(
        self, index: int, detokenizer: IncrementalDetokenizer, finish: str
    ) -> Iterator[dict[str, Any]]:
        """The last chunks of a choice's stream: what text is left, and why it ended."""
        if rest := detokenizer.end():
            yield self.chunk(index, rest)
        yield self.chunk(index, "", finish=finish)

    def prompt_of(self, index: int) -> ScoredPrompt:
        """The prompt that a choice continues."""
        return self.prompts[index // self.request.count]

    def named(self, token: int) -> str:
        """A token as log-probabilities name it."""
        if self.request.return_tokens_as_token_ids:
            return f"token_id:{token}"
        return self.tokenizer.decode([token], special=True)

    def whole(self) -> dict[str, Any]:
        """What a whole response has beside its choices."""
        return {}

    @abstractmethod
    def logprob(
        self, detokenizer: IncrementalDetokenizer, token: int, logprob: float, top: Any
    ) -> dict[str, Any]:
        """A token's log-probability, with its alternatives, as the response has it."""

    @abstractmethod
    def choice(
        self, index: int, detokenizer: IncrementalDetokenizer, finish: str
    ) -> dict[str, Any]:
        """A choice of a whole response."""

    @abstractmethod
    def chunk(
        self, index: int, new: str, entries: list[Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        """A choice of a stream's chunk: `new` text, or why the choice ended."""

    def _alternatives(self, top: Any) -> list[tuple[int, float]]:
        return list(zip(*top, strict=True)) if top is not None else []


class ChatFormat(ResponseFormat):
    """Chat completions."""

    prefix, response_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"
    tools = False
    """Whether calls of tools are looked for in replies."""

    def __init__(self, request: ChatCompletionRequest, tokenizer: ThreadSafeTokenizer) -> None:
        super().__init__(request, tokenizer)
        self.tools = bool(request.offered)
        self._splitters: dict[int, ToolSplitter] = {}

    def opening(self, index: int) -> dict[str, Any] | None:
        return {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }

    def logprob(
        self, detokenizer: IncrementalDetokenizer, token: int, logprob: float, top: Any
    ) -> dict[str, Any]:
        others = [self._token(*item) for item in self._alternatives(top)]
        return {**self._token(token, logprob), "top_logprobs": others}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.named(token)
        # Part of a character has no text of its own, and its bytes are not given.
        known = list(text.encode()) if "\ufffd" not in text else None
        return {"token": text, "logprob": logprob, "bytes": known}

    def choice(
        self, index: int, detokenizer: IncrementalDetokenizer, finish: str
    ) -> dict[str, Any]:
        content: str | None = self.full_text(index, detokenizer)
        entries = {"content": self.entries.get(index, [])} if self.request.top is not None else None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.tools:
            splitter = ToolSplitter()
            before = splitter.push(content or "")
            rest, calls = splitter.end()
            message["content"] = before + rest
            if calls:
                message |= {"content": before.strip() or None, "tool_calls": calls}
                finish = "tool_calls"
        own = {"token_ids": detokenizer.tokens} if self.request.return_token_ids else {}
        return {
            "index": index,
            "message": message,
            "logprobs": entries,
            "finish_reason": finish,
            **own,
        }

    def whole(self) -> dict[str, Any]:
        return {"prompt_token_ids": self.prompts[0].ids} if self.request.return_token_ids else {}

    def chunk_for(
        self, detokenizers: Sequence[IncrementalDetokenizer], event: TokenEvent
    ) -> dict[str, Any] | None:
        made = super().chunk_for(detokenizers, event)
        if made is None or not self.tools:
            return made
        new = self._splitter(event[0]).push(made["delta"]["content"])
        made["delta"]["content"] = new
        return made if new or made["logprobs"] else None

    def closing(
        self, index: int, detokenizer: IncrementalDetokenizer, finish: str
    ) -> Iterator[dict[str, Any]]:
        if not self.tools:
            yield from super().closing(index, detokenizer, finish)
            return
        splitter = self._splitter(index)
        text = splitter.push(detokenizer.end())
        rest, calls = splitter.end()
        if text + rest:
            yield self.chunk(index, text + rest)
        if calls:
            numbered = [{"index": at, **call} for at, call in enumerate(calls)]
            yield {**self.chunk(index, ""), "delta": {"tool_calls": numbered}}
        yield self.chunk(index, "", finish="tool_calls" if calls else finish)

    def _splitter(self, index: int) -> ToolSplitter:
        return self._splitters.setdefault(index, ToolSplitter())

    def chunk(
        self, index: int, new: str, entries: list[Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "delta": {} if finish else {"content": new},
            "logprobs": {"content": entries} if entries else None,
            "finish_reason": finish,
        }


class CompletionFormat(ResponseFormat):
    """Completions of plain text."""

    prefix, response_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def logprob(
        self, detokenizer: IncrementalDetokenizer, token: int, logprob: float, top: Any
    ) -> dict[str, Any]:
        return self._entry(token, logprob, top, detokenizer.length)

    def _entry(self, token: int, logprob: float | None, top: Any, offset: int) -> dict[str, Any]:
        others: dict[str, float] = {}
        for other, value in self._alternatives(top):  # the likeliest of those that look alike
            others.setdefault(self.named(other), value)
        if logprob is not None and (self.request.top or 0) > 0:
            others[self.named(token)] = logprob  # its own, to the bit, and in any case
        return {
            "token": self.named(token),
            "logprob": logprob,
            "top": others if logprob is not None else None,
            "offset": offset,
        }

    def _of_prompt(self, prompt: ScoredPrompt) -> list[dict[str, Any]]:
        """The entries of a prompt's tokens: the first has no log-probability."""
        entries, offset = [], 0
        for place, token in enumerate(prompt.ids):
            value = float(prompt.logprobs[place])
            top = None
            if prompt.top is not None and place:
                top = (prompt.top.ids[place].tolist(), prompt.top.logprobs[place].tolist())
            entries.append(self._entry(token, value if place else None, top, offset))
            offset += len(self.tokenizer.decode([token], special=True))
        return entries

    @property
    def echo(self) -> bool:
        """Whether the prompt comes before its completion."""
        return isinstance(self.request, CompletionRequest) and bool(self.request.echo)

    def opening(self, index: int) -> dict[str, Any] | None:
        return self.chunk(index, self.prompt_of(index).text) if self.echo else None

    def _columns(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "tokens": [item["token"] for item in entries],
            "token_logprobs": [item["logprob"] for item in entries],
            "top_logprobs": [item["top"] for item in entries],
            "text_offset": [item["offset"] for item in entries],
        }

    def choice(
        self, index: int, detokenizer: IncrementalDetokenizer, finish: str
    ) -> dict[str, Any]:
        prompt, text = self.prompt_of(index), self.full_text(index, detokenizer)
        entries, tokens = self.entries.get(index, []), detokenizer.tokens
        if self.request.limit == 0:  # the one that had to be sampled
            text, entries, tokens, finish = "", [], [], "length"
        if self.echo:
            shift = len(prompt.text)
            entries = [{**entry, "offset": entry["offset"] + shift} for entry in entries]
            text = prompt.text + text
        if self.request.scores_prompt:
            entries = self._of_prompt(prompt) + entries
        ids = (
            {"prompt_token_ids": prompt.ids, "token_ids": tokens}
            if self.request.return_token_ids
            else {}
        )
        return {
            "index": index,
            "text": text,
            "logprobs": self._columns(entries) if self.request.top is not None else None,
            "finish_reason": finish,
            **ids,
        }

    def chunk(
        self, index: int, new: str, entries: list[Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": new,
            "logprobs": self._columns(entries) if entries else None,
            "finish_reason": finish,
        }


class GenerateFormat(CompletionFormat):
    """Tokens in, tokens out: choices have ids, and log-probabilities that name tokens by them."""

    prefix, response_object = "gen", "generate"

    def choice(
        self, index: int, detokenizer: IncrementalDetokenizer, finish: str
    ) -> dict[str, Any]:
        entries = self.entries.get(index, [])
        told = None
        if self.request.top is not None:
            told = {
                "content": [
                    {
                        "token": entry["token"],
                        "logprob": entry["logprob"],
                        "top_logprobs": [
                            {"token": name, "logprob": value}
                            for name, value in entry["top"].items()
                        ],
                    }
                    for entry in entries
                ]
            }
        return {
            "index": index,
            "token_ids": detokenizer.tokens,
            "logprobs": told,
            "finish_reason": finish,
        }

    def named(self, token: int) -> str:
        return f"token_id:{token}"
