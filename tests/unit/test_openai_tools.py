"""Calls of tools in replies, and tools in prompts, on the OpenAI routes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.engine.openai.detokenize import IncrementalDetokenizer, ThreadSafeTokenizer
from posttrain_recipes.engine.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerateRequest,
    parse,
)
from posttrain_recipes.engine.openai.responses import ChatFormat
from posttrain_recipes.engine.openai.tools import ToolSplitter
from posttrain_recipes.engine.wire import RequestError
from tests.device import base_model
from tests.engine_model import build

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "\u00e9"}}\n</tool_call>'
TEMPLATE = (
    "{% if tools %}TOOLS {% for t in tools %}{{ t.function.name }}{% endfor %}"
    ";{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments.a }}]"
    "{% endfor %}{% if m.tool_call_id %}(of {{ m.tool_call_id }}){% endif %};{% endfor %}"
)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("said", "text", "names"),
    [
        ("It is 3.", "It is 3.", []),
        (CALL, "", ["add"]),
        (f"Let me see.\n{CALL}{CALL}", "Let me see.\n", ["add", "add"]),
        ("a < b <tool", "a < b <tool", []),
        ("<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", []),
        (CALL.removesuffix("</tool_call>"), "", ["add"]),  # cut before its end
        (
            '<tool_call>{"arguments": {}}</tool_call>',
            '<tool_call>{"arguments": {}}</tool_call>',
            [],
        ),
    ],
)
def test_calls_are_told_apart_from_text_however_they_come(
    said: str, text: str, names: list[str], size: int
) -> None:
    splitter = ToolSplitter()
    given = "".join(splitter.push(said[i : i + size]) for i in range(0, len(said), size))
    rest, calls = splitter.end()
    assert given + rest == text
    assert [call["function"]["name"] for call in calls] == names
    for call in calls:
        assert json.loads(call["function"]["arguments"]) == {"a": 1, "b": "\u00e9"}
    assert len({call["id"] for call in calls}) == len(calls)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ThreadSafeTokenizer:
    return ThreadSafeTokenizer(base_model(build(tmp_path_factory.mktemp("m"))), TEMPLATE)


def request(**more: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "1 + 2?"}], **more}
    return parse(ChatCompletionRequest, json.dumps(body).encode())


def prompt(tokenizer: ThreadSafeTokenizer, asked: ChatCompletionRequest) -> str:
    ids = tokenizer.chat(asked.conversation(), asked.chat_template_kwargs, asked.offered)
    return tokenizer.decode(ids, special=True)


def test_the_model_is_told_of_tools_and_of_what_they_said(tokenizer: ThreadSafeTokenizer) -> None:
    history = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "c1", "type": "function",
                         "function": {"name": "add", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]  # fmt: skip
    read = prompt(tokenizer, request(messages=history, tools=[TOOL]))
    assert read == "TOOLS add;user: 1 + 2?;assistant: [add 1];tool: 3(of c1);"
    assert "TOOLS" not in prompt(tokenizer, request(tools=[TOOL], tool_choice="none"))


def test_a_template_without_tools_is_told_of(
    tokenizer: ThreadSafeTokenizer, tmp_path: Path
) -> None:
    plain = ThreadSafeTokenizer(
        base_model(build(tmp_path)), "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(RequestError, match="'tools': the chat template") as caught:
        prompt(plain, request(tools=[TOOL]))
    assert caught.value.status == 400
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    with pytest.raises(RequestError, match="'tool_calls'"):
        prompt(plain, request(messages=[called]))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"function": {"name": "f", "arguments": "{no"}}, "arguments of 'f' are no JSON"),
        ({"function": {}}, "needs a function with a name"),
    ],
)
def test_a_history_of_calls_that_are_none_is_refused(
    tokenizer: ThreadSafeTokenizer, call: dict[str, Any], says: str
) -> None:
    asked = request(messages=[{"role": "assistant", "tool_calls": [call]}])
    with pytest.raises(RequestError, match=says):
        prompt(tokenizer, asked)


@pytest.mark.parametrize(
    ("said", "content", "finish"),
    [
        (CALL, None, "tool_calls"),
        (f"Well. {CALL}", "Well.", "tool_calls"),
        ("Three.", "Three.", "stop"),
    ],
)
def test_a_reply_with_a_call_has_openais_form(
    tokenizer: ThreadSafeTokenizer, said: str, content: str | None, finish: str
) -> None:
    ids = tokenizer.encode(said)
    form = ChatFormat(request(tools=[TOOL]), tokenizer)
    written = IncrementalDetokenizer(tokenizer)
    for token in ids:
        form.add_token([written], (0, token, -1.0, None))
    choice = form.choice(0, written, "stop")
    assert (choice["message"]["content"], choice["finish_reason"]) == (content, finish)
    calls = choice["message"].get("tool_calls", [])
    assert [call["function"]["name"] for call in calls] == ["add"] * (finish == "tool_calls")

    form, written = (
        ChatFormat(request(tools=[TOOL], stream=True), tokenizer),
        (IncrementalDetokenizer(tokenizer)),
    )
    chunks = [form.chunk_for([written], (0, token, -1.0, None)) for token in ids]
    told = [chunk for chunk in chunks if chunk] + list(form.closing(0, written, "stop"))
    text = "".join(chunk["delta"].get("content") or "" for chunk in told)
    assert text.strip() == (content or "")
    streamed = [call for chunk in told for call in chunk["delta"].get("tool_calls", [])]
    assert [call["index"] for call in streamed] == list(range(len(calls)))
    assert [call["function"] for call in streamed] == [call["function"] for call in calls]
    assert told[-1]["finish_reason"] == finish


@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest, GenerateRequest])
def test_what_is_not_known_is_refused_by_name_and_all_at_once(kind: type) -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user"}], "prompt": "a",
                            "token_ids": [1], "user": "me", "min_pp": 1, "beam": True}  # fmt: skip
    for own in {"messages", "prompt", "token_ids"} - {
        f.name for f in kind.__dataclass_fields__.values()
    }:
        del body[own]
    with pytest.raises(
        RequestError, match="does not do 'min_pp', 'beam': leave them out"
    ) as caught:
        parse(kind, json.dumps(body).encode())
    assert caught.value.status == 400
    del body["min_pp"], body["beam"]
    parse(kind, json.dumps({**body, "suffix": None}).encode())


def test_what_generate_does_not_know_of_sampling_is_refused() -> None:
    body = {"model": "m", "token_ids": [1], "sampling_params": {"min_p": 0.1, "typical_p": 0.5}}
    with pytest.raises(RequestError, match="does not do 'typical_p': leave it out"):
        parse(GenerateRequest, json.dumps(body).encode())


@pytest.mark.parametrize(
    "more",
    [{"frequency_penalty": 0}, {"tool_choice": "auto"}, {"response_format": {"type": "text"}},
     {"user": "me"}, {"tools": []}],
)  # fmt: skip
def test_what_has_no_effect_is_taken(more: dict[str, Any]) -> None:
    assert request(**more).rules() is None
