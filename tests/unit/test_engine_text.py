"""Replies token by token: half characters, stop strings, the model's end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from posttrain_recipes.engine.openai.detokenize import IncrementalDetokenizer
from posttrain_recipes.engine.openai.requests import ChatCompletionRequest, CompletionRequest, parse
from posttrain_recipes.engine.wire import RequestError


class Bytes:
    """A tokenizer of bytes; 256 is the end."""

    eos = frozenset({256})

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def given(text: str, *stops: str, end: bool = True) -> list[str]:
    reply = IncrementalDetokenizer(Bytes(), stops)  # type: ignore[arg-type]
    parts = [reply.push(token) for token in [*text.encode(), *([256] if end else [])]]
    return [part for part in [*parts, reply.end()] if part]


@pytest.mark.parametrize("text", ["", "plain", "grüße, 你好 🙂!", "é"])
def test_the_parts_are_the_text_and_no_character_is_halved(text: str) -> None:
    assert given(text) == list(text)
    assert given(text, end=False) == list(text)


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    reply = IncrementalDetokenizer(Bytes())  # type: ignore[arg-type]
    assert [reply.push(token) for token in b"a\xf0\x9f"] == ["a", "", ""]
    assert reply.end() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stops", "want"),
    [
        ("one\n\ntwo", ["\n\n"], "one"),
        ("one\ntwo", ["\n\n"], "one\ntwo"),
        ("abcabd", ["abd"], "abc"),
        ("aXbY", ["Y", "b"], "aX"),
        ("ends with a beginning: EN", ["END"], "ends with a beginning: EN"),
        ("STOP", ["STOP"], ""),
    ],
)
def test_stop_strings_never_show(text: str, stops: list[str], want: str) -> None:
    assert "".join(given(text, *stops)) == want
    assert "".join(given(text, *stops, end=False)) == want


def test_what_may_become_a_stop_string_is_held_back() -> None:
    reply = IncrementalDetokenizer(Bytes(), ["END"])  # type: ignore[arg-type]
    assert [reply.push(token) for token in b"aENaEND!"] == ["a", "", "", "ENa", "", "", "", ""]
    assert reply.end() == ""


CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": "required"}, {"response_format": {"type": "xml"}},
        {"logit_bias": {"one": 5}}, {"frequency_penalty": 2.5},
        {"temperature": -1}, {"temperature": "hot"}, {"top_p": 0},
        {"n": 0}, {"n": 1000}, {"max_tokens": 0}, {"messages": []}, {"model": None},
        {"top_logprobs": 21},
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_done_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        parse(ChatCompletionRequest, json.dumps({**CHAT, **more}).encode())
    assert caught.value.status == 400


def test_what_asks_for_nothing_is_accepted() -> None:
    neutral = {"tools": [], "response_format": {"type": "text"}, "frequency_penalty": 0,
               "user": "u", "metadata": {"a": "b"}, "stop": None, "n": None}  # fmt: skip
    asked = parse(ChatCompletionRequest, json.dumps({**CHAT, **neutral}).encode())
    assert (asked.count, asked.limit, asked.top, asked.stops()) == (1, None, None, [])
    assert asked.params(frozenset({7})).stop == [7]


def test_messages_may_come_in_parts_of_text_alone() -> None:
    def message(*parts: dict[str, Any]) -> ChatCompletionRequest:
        body = {**CHAT, "messages": [{"role": "user", "content": parts}]}
        return parse(ChatCompletionRequest, json.dumps(body).encode())

    said = message({"type": "text", "text": "a"}, {"type": "text", "text": "b"}).conversation()
    assert said == [{"role": "user", "content": "ab"}]
    with pytest.raises(RequestError, match="image_url"):
        message({"type": "image_url", "image_url": {"url": "x"}}).conversation()


@pytest.mark.parametrize(
    ("prompt", "want"), [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]),
                         ([[1], [2]], [[1], [2]])],
)  # fmt: skip
def test_prompts_of_every_form(prompt: Any, want: Any) -> None:
    body = json.dumps({"model": "m", "prompt": prompt}).encode()
    assert parse(CompletionRequest, body).prompts() == want


def test_the_models_end_counts_beside_stop_strings() -> None:
    asked = parse(CompletionRequest, b'{"model": "m", "prompt": "a", "stop": "x"}')
    assert asked.params(frozenset({7})).stop == [7, "x"]
