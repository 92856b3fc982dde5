"""Replies in a form that is asked for, on OpenAI's routes: whatever a model would rather say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import torch

from posttrain_recipes import models
from posttrain_recipes.engine import launch
from posttrain_recipes.engine.generate import grammar
from posttrain_recipes.engine.model.base import BaseModel
from posttrain_recipes.engine.openai import constraints
from posttrain_recipes.engine.openai.detokenize import ThreadSafeTokenizer
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
ENDLESS = {"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]}
"""Is read, and found out as the reply is written."""
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
        ({"response_format": {}}, "type None is not done"),
        ({"tools": [{"function": "x"}], "tool_choice": "required"}, "a function with a name"),
        ({"response_format": schema_of(ENDLESS)}, "could not be kept to"),
        ({"extra_body": {"guided_regex": "((a{1000}){1000}){1000}"}}, "could not be kept to"),
        ({"extra_body": {"guided_json": {"allOf": [{"$ref": "#"}]}}}, "could not be kept to"),
        ({"extra_body": {"repetition_penalty": 1e-38}}, "repetition_penalty"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_refused(client: openai.OpenAI, more: Any, says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(says)):
        ask(client, model=TOOLED, **more)


def test_a_form_that_turns_out_impossible_ends_its_own_request(client: openai.OpenAI) -> None:
    """And no other of the batch: those say what they say alone."""
    free = [c.message.content for c in ask(client).choices]

    def asked(number: int) -> list[str] | None:
        if number % 2:
            return [c.message.content for c in ask(client).choices]
        try:
            ask(client, response_format=schema_of(ENDLESS))
        except openai.BadRequestError:
            return None
        raise AssertionError("a reply that does not fit was given")

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(asked, range(8)))
    assert told == [None, free] * 4


def test_a_stream_of_a_form_that_turns_out_impossible_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="could not be kept to"):
        list(ask(client, response_format=schema_of(ENDLESS), stream=True))


@pytest.mark.parametrize(
    ("pattern", "text"), [("a/b", "a/b"), (r"a\/b", "a/b"), (r"[\/]b", "/b"), (r"\\/", "\\/")]
)
def test_slashes_of_a_pattern(client: openai.OpenAI, pattern: str, text: str) -> None:
    assert set(said(ask(client, extra_body={"guided_regex": pattern}))) == {text}


def test_many_choices(client: openai.OpenAI) -> None:
    options = [str(number) for number in range(10_000)]
    chosen = said(ask(client, extra_body={"guided_choice": options}, temperature=2))
    assert set(chosen) <= set(options)
    assert len(set(chosen)) > 1


def test_arguments_whose_schema_has_definitions(client: openai.OpenAI) -> None:
    whom = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"],
            "additionalProperties": False}  # fmt: skip
    schema = {
        "type": "object",
        "properties": {"who": {"$ref": "#/$defs/Whom"}},
        "required": ["who"],
        "additionalProperties": False,
        "$defs": {"Whom": whom},
    }
    tool = {"type": "function", "function": {"name": "grüße", "parameters": schema}}
    answer = ask(client, model=TOOLED, tools=[tool], tool_choice="required", temperature=2)
    for one in answer.choices:
        (call,) = one.message.tool_calls
        assert call.function.name == "grüße"
        jsonschema.validate(json.loads(call.function.arguments), schema)


@pytest.fixture
def other(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Any]:
    """The bundled model with another tokenizer."""

    def made(change: Callable[[dict[str, Any]], None]) -> Any:
        shutil.copytree(models.resolve(NANO), tmp_path / "other")
        path = tmp_path / "other" / "tokenizer.json"
        written = json.loads(path.read_text())
        change(written)
        path.write_text(json.dumps(written))
        return BaseModel("other", str(tmp_path / "other"), torch.device("cpu"))

    return made


def written(base: Any, text: str, form: str) -> bool:
    """Whether a text may be written in a form, by the tokens that the tokenizer makes of it."""
    place = grammar.Grammar.of(base, form)
    for token in [*base.tokenizer.encode(text, add_special_tokens=False), *base.eos_ids()]:
        row = torch.zeros(base.vocab)
        place.only(row)
        if not torch.isfinite(row[token]):
            return False
        place.take(token)
    return True


def test_a_tokenizer_that_decodes_in_a_chain_as_conversions_from_gguf_write_it(other: Any) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        chain = [{"type": "ByteFallback"}, {"type": "Fuse"}, tokenizer["decoder"]]
        tokenizer["decoder"] = {"type": "Sequence", "decoders": chain}

    form = constraints.json_of({"type": "object"}, "response_format")
    assert written(other(change), '{"a": "é b"}', form)


def test_a_tokenizer_with_more_tokens_than_the_model(other: Any) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        last = max(tokenizer["model"]["vocab"].values())
        like = tokenizer["added_tokens"][0]
        at = range(last + 1, last + 4)
        tokenizer["added_tokens"] += [
            {**like, "id": one, "content": mark}
            for one, mark in zip(at, ("<more>", "<tool_call>", "</tool_call>"), strict=True)
        ]

    base = other(change)
    assert len(base.tokenizer) > base.vocab
    assert written(base, '{"a": 1}', constraints.json_of({"type": "object"}, "response_format"))
    token = ThreadSafeTokenizer(base).token
    assert token("<tool_call>") is None
    assert token("a") is not None


def test_a_tokenizer_that_is_understood_otherwise_is_refused(other: Any) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        replace = {"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": "z"}
        chain = [{"type": "ByteFallback"}, {"type": "Fuse"}, replace]
        tokenizer["decoder"] = {"type": "Sequence", "decoders": chain}

    with pytest.raises(RequestError, match="does not understand how this one decodes"):
        grammar.Grammar.of(other(change), "start: /a/")


def test_a_mark_that_is_one_token_is_that_token() -> None:
    text = constraints.call_of([ADD], "required", {"<tool_call>": 7}.get)
    assert text.startswith('start: <[7]> "\\n" ("')
    assert text.rstrip().endswith('"</tool_call>"')


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"posttrain-recipes\[structured\]"):
        grammar.Grammar.of(None, "start: /a/")  # type: ignore[arg-type]
