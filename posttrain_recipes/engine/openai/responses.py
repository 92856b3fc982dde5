"""What OpenAI's answers look like: whole, or as the parts of a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.openai.detokenize import Reply, Text
from posttrain_recipes.engine.openai.requests import Asked

Heard = tuple[int, int, float, Any]  # choice, token, logprob, top-k (ids, logprobs) or None


class Form(ABC):
    """A kind of completion. Keeps what is known of each choice's tokens beside its reply."""

    prefix: str
    whole_object: str
    part_object: str

    def __init__(self, asked: Asked, text: Text) -> None:
        self.asked, self.text = asked, text
        self.told: dict[int, list[dict[str, Any]]] = {}  # choice -> log-probabilities
        self.texts: dict[int, list[str]] = {}

    def sample(
        self, prompt: list[int], heard: Callable[[int, int, float, Any], None]
    ) -> wire.Sample:
        """The request for samples that continue `prompt`."""
        return wire.Sample(
            sampling_session_id="",
            seq_id=0,
            prompt=wire.Prompt([wire.Chunk(tokens=prompt)]),
            sampling_params=self.asked.params(self.text.eos),
            num_samples=self.asked.count,
            topk_sample_logprobs=self.asked.top or 0,
            heard=heard,
        )

    def hear(self, replies: Sequence[Reply], heard: Heard) -> None:
        """Take a token into the whole."""
        index, token, logprob, top = heard
        if self.asked.top is not None:
            self.told.setdefault(index, []).append(
                self.logprob(replies[index], token, logprob, top)
            )
        self.texts.setdefault(index, []).append(replies[index].push(token))

    def part(self, replies: Sequence[Reply], heard: Heard) -> dict[str, Any] | None:
        """The part of a stream that a token makes, if it makes one."""
        index, token, logprob, top = heard
        told = (
            None
            if self.asked.top is None
            else [self.logprob(replies[index], token, logprob, top)]
        )  # fmt: skip
        new = replies[index].push(token)
        return self.piece(index, new, told) if new or told else None

    def whole(self, index: int, reply: Reply) -> str:
        """All of a reply's text."""
        return "".join(self.texts.get(index, ())) + reply.end()

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first part of a choice's stream."""
        return None

    @abstractmethod
    def logprob(self, reply: Reply, token: int, logprob: float, top: Any) -> dict[str, Any]:
        """A token's log-probability as it is told."""

    @abstractmethod
    def choice(self, index: int, reply: Reply, finish: str) -> dict[str, Any]:
        """A choice as a whole."""

    @abstractmethod
    def piece(
        self, index: int, new: str, told: list[Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        """A part of a choice."""

    def _alternatives(self, top: Any) -> list[tuple[int, float]]:
        return list(zip(*top, strict=True)) if top is not None else []


class Chat(Form):
    """Chat completions."""

    prefix, whole_object, part_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any] | None:
        return {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }

    def logprob(self, reply: Reply, token: int, logprob: float, top: Any) -> dict[str, Any]:
        others = [self._token(*item) for item in self._alternatives(top)]
        return {**self._token(token, logprob), "top_logprobs": others}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.text.decode([token], special=True)
        # Half of a character has no text of its own, and its bytes are not told.
        known = list(text.encode()) if "\ufffd" not in text else None
        return {"token": text, "logprob": logprob, "bytes": known}

    def choice(self, index: int, reply: Reply, finish: str) -> dict[str, Any]:
        content = self.whole(index, reply)
        told = {"content": self.told.get(index, [])} if self.asked.top is not None else None
        return {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": told,
            "finish_reason": finish,
        }

    def piece(
        self, index: int, new: str, told: list[Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "delta": {} if finish else {"content": new},
            "logprobs": {"content": told} if told else None,
            "finish_reason": finish,
        }


class Completion(Form):
    """Completions of plain text."""

    prefix, whole_object, part_object = "cmpl", "text_completion", "text_completion"

    def logprob(self, reply: Reply, token: int, logprob: float, top: Any) -> dict[str, Any]:
        others = {self.text.decode([i], special=True): p for i, p in self._alternatives(top)}
        return {
            "token": self.text.decode([token], special=True),
            "logprob": logprob,
            "top": others,
            "offset": reply.length,
        }

    def _columns(self, told: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "tokens": [item["token"] for item in told],
            "token_logprobs": [item["logprob"] for item in told],
            "top_logprobs": [item["top"] for item in told],
            "text_offset": [item["offset"] for item in told],
        }

    def choice(self, index: int, reply: Reply, finish: str) -> dict[str, Any]:
        told = self._columns(self.told.get(index, [])) if self.asked.top is not None else None
        return {
            "index": index,
            "text": self.whole(index, reply),
            "logprobs": told,
            "finish_reason": finish,
        }

    def piece(
        self, index: int, new: str, told: list[Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": new,
            "logprobs": self._columns(told) if told else None,
            "finish_reason": finish,
        }
