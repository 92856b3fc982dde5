"""Replies in a form that is asked for, on OpenAI's routes: whatever a model would rather say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from posttrain_recipes import models
from posttrain_recipes.engine import launch
from posttrain_recipes.engine.generate import grammar
from posttrain_recipes.engine.openai import constraints
from posttrain_recipes.engine.wire import RequestError
from tests.unit.test_openai_tools import TEMPLATE

NANO, TOOLED = "ptl/nano", "tooled"
SCHEMA = {
    "type": "object",
    "properties": {
        "sum": {"type": "integer", "minimum": 0, "maximum": 99},
        "sure": {"enum": ["yes", "no"]},
        "steps": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 9},
            "maxItems": 2,
        },
    },
    "required": ["sum", "sure", "steps"],
    "additionalProperties": False,
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
STOP = {"type": "function", "function": {"name": "stop", "parameters": {
    "type": "object", "properties": {}, "additionalProperties": False}}}  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    data, tooled = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("m") / "tooled"
    shutil.copytree(models.resolve(NANO), tooled)
    (tooled / "chat_template.jinja").write_text(TEMPLATE)
    served = {NANO: models.resolve(NANO), TOOLED: str(tooled)}
    with (
        launch.start(served, data, data / "engine.log") as engine,
        openai.OpenAI(
            base_url=f"{engine.base_url}/v1", api_key=engine.api_key, max_retries=0
        ) as client,
    ):
        yield client


def ask(client: openai.OpenAI, **more: Any) -> Any:
    asked: Any = {"model": NANO, "messages": [{"role": "user", "content": "What is 12 + 7?"}],
                  "max_tokens": 120, "seed": 3, "n": 8, **more}  # fmt: skip
    return client.chat.completions.create(**asked)


def said(answer: Any) -> list[str]:
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    return [choice.message.content for choice in answer.choices]


def schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_json_fits_its_schema(client: openai.OpenAI, temperature: float) -> None:
    told = said(ask(client, response_format=schema_of(SCHEMA), temperature=temperature))
    for text in told:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert (len(set(told)) == 1) is (temperature == 0)


def test_vllms_words_and_openais_ask_for_the_same(client: openai.OpenAI) -> None:
    one = said(ask(client, response_format=schema_of(SCHEMA)))
    assert said(ask(client, extra_body={"guided_json": SCHEMA})) == one
    assert said(ask(client, extra_body={"guided_json": json.dumps(SCHEMA)})) == one


def test_a_choice_and_a_pattern(client: openai.OpenAI) -> None:
    options = ["certainly", 'he said "no"', "é"]
    chosen = said(ask(client, extra_body={"guided_choice": options}, temperature=2))
    assert set(chosen) <= set(options)
    assert len(set(chosen)) > 1
    for text in said(ask(client, extra_body={"guided_regex": "[a-c]{3}/[0-9]"}, temperature=2)):
        assert re.fullmatch("[a-c]{3}/[0-9]", text)


def test_a_stream_and_a_prompt_without_template_have_the_form_too(client: openai.OpenAI) -> None:
    whole = said(ask(client, response_format=schema_of(SCHEMA), n=1))
    chunks = ask(client, response_format=schema_of(SCHEMA), n=1, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole[0]
    plain = client.completions.create(
        model=NANO, prompt="12 + 7 =", extra_body={"guided_choice": ["left", "right"]}
    )
    assert plain.choices[0].text in ("left", "right")


def test_any_object(client: openai.OpenAI) -> None:
    answer = ask(client, response_format={"type": "json_object"}, temperature=2, max_tokens=400)
    ended = [one.message.content for one in answer.choices if one.finish_reason == "stop"]
    assert all(isinstance(json.loads(text), dict) for text in ended)


def test_others_in_the_batch_say_what_they_would_alone(client: openai.OpenAI) -> None:
    free = [c.message.content for c in ask(client).choices]
    both = client.completions.create(
        model=NANO, prompt=["1", "2"], extra_body={"guided_choice": ["left"]}
    )
    assert [choice.text for choice in both.choices] == ["left", "left"]
    assert [c.message.content for c in ask(client).choices] == free


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"add", "stop"}),
        ({"type": "function", "function": {"name": "add"}}, {"add"}),
    ],
)
def test_a_tool_is_called_where_it_has_to_be(
    client: openai.OpenAI, choice: Any, names: set[str]
) -> None:
    answer = ask(client, model=TOOLED, tools=[ADD, STOP], tool_choice=choice, temperature=2)
    called = set()
    for one in answer.choices:
        assert one.finish_reason == "tool_calls"
        (call,) = one.message.tool_calls
        called.add(call.function.name)
        arguments = json.loads(call.function.arguments)
        if call.function.name == "add":
            jsonschema.validate(arguments, ADD["function"]["parameters"])
        else:
            assert arguments == {}
    assert called == names


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
         "of a tool that is offered"),
        ({"response_format": {"type": "json_schema"}}, "json_schema needs a 'schema'"),
        ({"response_format": schema_of({"$ref": "http://example.org/x"})}, "http://example.org/x"),
        ({"extra_body": {"guided_choice": []}}, "none of them empty"),
        ({"extra_body": {"guided_choice": ["a"], "guided_regex": "b"}}, "one of them"),
        ({"extra_body": {"guided_choice": ["a"], "min_tokens": 3}}, "ends where the form does"),
        ({"extra_body": {"guided_choice": ["a"], "ignore_eos": True}}, "ends where the form does"),
        ({"extra_body": {"guided_choice": ["a" * 300_000]}}, "200,000 characters"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_refused(client: openai.OpenAI, more: Any, says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(says)):
        ask(client, model=TOOLED, **more)


def test_a_mark_that_is_one_token_is_that_token() -> None:
    text = constraints.call_of([ADD], "required", {"<tool_call>": 7}.get)
    assert text.startswith('start: <[7]> "\\n" (%json {')
    assert text.rstrip().endswith('"</tool_call>"')


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"posttrain-recipes\[structured\]"):
        grammar.Grammar.of(None, "start: /a/")  # type: ignore[arg-type]
