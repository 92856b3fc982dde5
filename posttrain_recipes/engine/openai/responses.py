"""OpenAI's response objects: a whole response, or the chunks of a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.openai.detokenize import IncrementalDetokenizer, ThreadSafeTokenizer
from posttrain_recipes.engine.openai.requests import BaseCompletionRequest

TokenEvent = tuple[int, int, float, Any]  # choice, token, logprob, top-k (ids, logprobs) or None


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
            topk_sample_logprobs=self.request.top or 0,
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
        text = self.tokenizer.decode([token], special=True)
        # Part of a character has no text of its own, and its bytes are not given.
        known = list(text.encode()) if "\ufffd" not in text else None
        return {"token": text, "logprob": logprob, "bytes": known}

    def choice(
        self, index: int, detokenizer: IncrementalDetokenizer, finish: str
    ) -> dict[str, Any]:
        content = self.full_text(index, detokenizer)
        entries = {"content": self.entries.get(index, [])} if self.request.top is not None else None
        return {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": entries,
            "finish_reason": finish,
        }

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
        others = {self.tokenizer.decode([i], special=True): p for i, p in self._alternatives(top)}
        return {
            "token": self.tokenizer.decode([token], special=True),
            "logprob": logprob,
            "top": others,
            "offset": detokenizer.length,
        }

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
        entries = (
            self._columns(self.entries.get(index, [])) if self.request.top is not None else None
        )
        return {
            "index": index,
            "text": self.full_text(index, detokenizer),
            "logprobs": entries,
            "finish_reason": finish,
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
