"""Every field of a row is honoured, refused by its name, or named as one that is not used."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain_recipes.conversion import as_row, convert
from posttrain_recipes.datasets import options
from posttrain_recipes.datasets.checking import check_file
from posttrain_recipes.datasets.faults import RowError
from posttrain_recipes.datasets.formats import FORMATS, RowParser
from posttrain_recipes.datasets.jsonl import Jsonl
from posttrain_recipes.datasets.messages import FRAME, UNDERSTOOD
from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import Conversation, Labelled, Message, Preference, Prompt
from posttrain_recipes.records import Record, ToolCall, tools_of

ASK = {"role": "user", "content": "What is the weather?"}
SAID = {"role": "assistant", "content": "Fine."}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"function": {"name": "weather", "arguments": '{"day": 3, "at": 0.5}'}, "id": "c1"}


def parsed(row: Any) -> Any:
    return RowParser("f").parse(row, 1)


def messages(row: Any) -> tuple[Message, ...]:
    record = parsed(row)
    if isinstance(record, Preference):
        return record.prompt + record.chosen
    if isinstance(record, Labelled):
        return record.prompt + record.completion
    return record.messages  # type: ignore[no-any-return]


def refused(row: Any) -> str:
    with pytest.raises(RowError) as caught:
        parsed(row)
    return str(caught.value)


def row_of(fields: tuple[str, ...]) -> dict[str, Any]:
    """A row of a form."""
    values: dict[str, Any] = {
        "messages": [ASK, SAID],
        "conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Oh."}],
        "label": True,
    }
    if "chosen" in fields:
        asked = {"messages": [ASK], "conversations": [ASK]}
        whole = [] if set(fields) - {"chosen", "rejected"} else [ASK]
        for name, text in (("chosen", "Good."), ("rejected", "Bad.")):
            asked[name] = [*whole, {"role": "assistant", "content": text}]
        values |= asked
    return {name: values.get(name, f"some {name}") for name in fields}


FORMS = [pytest.param(form, id=form.name) for form in FORMATS]


# --- what a verdict says -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["label", "kto_tag"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, SAID]},
        {"conversations": [ASK, SAID]},
        {"instruction": ASK["content"], "output": "Fine."},
        {"prompt": ASK["content"], "completion": "Fine."},
    ],
    ids=lambda row: "/".join(row),
)
def test_a_thumbs_down_is_no_example(row: Any, name: str) -> None:
    assert parsed({**row, name: False}) == Labelled(
        prompt=(Message(**ASK),), completion=(Message(**SAID),), label=False, source="f:1"
    )
    assert "'label' is text" in refused({**row, name: "good"})


# --- the frame of a prompt -----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_system_history_and_tools_are_part_of_the_prompt(form: Any) -> None:
    row = row_of(form.fields)
    bare = messages(row)
    framed = {
        "system": "Be brief.",
        "history": [["Who?", "Me."]],
        "tools": json.dumps([TOOL["function"]]),
    }
    found = messages({**row, **framed})
    assert [m.content for m in found[:3]] == ["Be brief.", "Who?", "Me."]
    assert [m.content for m in found[3:]] == [m.content for m in bare]
    assert tools_of(found) == [TOOL]
    # Written and read again, it is the same record.
    again = parsed(json.loads(json.dumps(as_row(parsed({**row, **framed})))))
    assert as_row(again) == as_row(parsed({**row, **framed}))


def test_a_system_message_is_said_once() -> None:
    row = {"messages": [{"role": "system", "content": "a"}, ASK, SAID], "system": "b"}
    assert "keep one of them" in refused(row)


def test_preferences_over_a_conversation() -> None:
    row = {
        "conversations": [{"from": "human", "value": "Hi."}],
        "chosen": [{"from": "gpt", "value": "Oh."}],
        "rejected": [{"from": "gpt", "value": "Ah."}],
    }
    assert parsed(row).prompt == (Message("user", "Hi."),)


# --- tools and reasoning -------------------------------------------------------------------------

ARGUMENTS = '{"day": 3, "at": 0.5}'


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{**CALL, "type": "function", "index": 0}]},
        {"role": "assistant", "content": "", "tool_calls": [{**CALL["function"], "id": "c1"}]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c1", "function": {"name": "weather", "arguments": json.loads(ARGUMENTS)}}
            ],
        },
    ],
)
def test_a_call_of_a_tool_is_kept(turn: Any) -> None:
    answer = {"role": "tool", "content": "", "tool_call_id": "c1", "name": "weather"}
    found = messages({"messages": [ASK, turn, answer, SAID]})
    assert found[1].tool_calls == (ToolCall("weather", ARGUMENTS, "c1"),)
    assert found[1].as_dict()["tool_calls"][0]["function"]["arguments"] == {"day": 3, "at": 0.5}
    assert (found[2].tool_call_id, found[2].name) == ("c1", "weather")


@pytest.mark.parametrize("role", ["function_call", "assistant"])
def test_older_forms_of_a_call(role: str) -> None:
    said = json.dumps({"name": "weather", "arguments": {"day": 3}})
    turn: Any = {"from": role, "value": said}
    if role == "assistant":
        turn = {"role": role, "content": None, "function_call": json.loads(said)}
    observed = {"from": "observation", "value": "sun"}
    found = messages({"conversations": [ASK, turn, observed, SAID]})
    assert found[1].tool_calls == (ToolCall("weather", '{"day": 3}'),)
    assert found[2] == Message("tool", "sun")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_what_was_thought_is_kept_apart(key: str) -> None:
    assert messages({"messages": [ASK, {**SAID, key: "sun?"}]})[1].reasoning == "sun?"


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({**SAID, "tool_calls": [{"function": {"arguments": "{}"}}]}, "has no 'name'"),
        ({**SAID, "tool_calls": [{"name": "a", "arguments": "{"}]}, "are no JSON"),
        ({**SAID, "tool_calls": [{"name": "a", "arguments": "[]"}]}, "must be a JSON object"),
        ({**SAID, "tool_calls": [{"name": "a", "strict": True}]}, "has 'strict'"),
        ({**SAID, "tool_calls": "a"}, "must be a list of calls"),
        ({**SAID, "reasoning": "a", "thinking": "b"}, "which differ"),
        ({**SAID, "tool_call_id": "c1"}, "only a tool's answer"),
        ({**SAID, "weight": -0.5}, "from 0 to 1,000"),
        ({**SAID, "train": "no"}, "must be true or false"),
        ({**SAID, "weight": 0, "train": True}, "which differ"),
        ({**SAID, "images": ["a.png"]}, "has 'images'"),
        ({**SAID, "audio": {"id": "x"}}, "has 'audio'"),
        ({**SAID, "content": [{"type": "image_url", "image_url": {}}]}, "only text"),
        ({**SAID, "content": [{"type": "input_audio"}]}, "only text"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_by_its_name(turn: Any, said: str) -> None:
    assert said in refused({"messages": [ASK, turn]})


@pytest.mark.parametrize(
    ("role", "key"),
    [
        (role, key)
        for role in ("user", "system", "tool")
        for key in ("tool_calls", "reasoning_content", "weight", "train")
        if role != "tool" or key not in ("weight", "train")  # what a tool answered may be learned
    ],
)
def test_only_the_assistant_calls_thinks_and_is_learned(role: str, key: str) -> None:
    values = {"tool_calls": [CALL], "reasoning_content": "a", "weight": 1, "train": True}
    turn = {"role": role, "content": "a", key: values[key]}
    head = [turn] if role == "system" else [ASK, turn]
    assert "assistant" in refused({"messages": [*head, ASK, SAID]})


def test_a_weight_of_0_or_1_is_a_mask() -> None:
    row = {"messages": [{**ASK, "train": False}, {**SAID, "weight": 0}, ASK, {**SAID, "train": 1}]}
    row["messages"][-1]["train"] = True
    assert [m.weight for m in messages(row)] == [None, 0.0, None, 1.0]
    assert [m.weight for m in messages(json.loads(json.dumps(as_row(parsed(row)))))] == [
        *(None, 0.0, None, 1.0)
    ]


@pytest.mark.parametrize("form", [form for form in FORMATS if form.record is not Conversation])
def test_a_weight_where_a_reply_is_learned_whole_is_refused(form: Any) -> None:
    row = row_of(form.fields)
    if form.record is Prompt or "instruction" in form.fields:
        return
    lists = [name for name, value in row.items() if isinstance(value, list)]
    if not lists:
        row["prompt"], lists = [ASK, SAID, ASK], ["prompt"]
        row["prompt"][1] = dict(SAID)
    target = row[lists[-1]][-1 if lists[-1] != "prompt" else 1]
    asked = lists[-1] == "prompt"
    target["weight"] = 1 if asked else 0
    try:
        assert ("is to be learned" if asked else "not to be learned") in refused(row)
        target["weight"] = 0 if asked else 1  # as it is anyway
        assert all(message.weight is None for message in messages(row))
    finally:
        target.pop("weight")


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"role": "assistant", "tool_calls": [CALL], "function_call": CALL}, "in two fields"),
        (
            {"from": "function_call", "value": '{"name": "a"}', "tool_calls": [CALL]},
            "in two fields",
        ),
        ({**SAID, "tool_calls": [{"name": "a", "arguments": {"b": 1}, "parameters": {"c": 2}}]},
         "has 'arguments' and 'parameters'"),
        ({**SAID, "tool_calls": [{"id": "x", "function": {"name": "a", "id": "y"}}]}, "has 'id'"),
    ],
)  # fmt: skip
def test_what_is_said_twice_is_refused(turn: Any, said: str) -> None:
    assert said in refused({"messages": [ASK, turn]})


def test_what_a_prompts_messages_have_beside_is_named() -> None:
    parser = RowParser("f")
    parts = [{"type": "text", "text": "Hi.", "cache_control": {"type": "x"}}]
    parser.parse({"prompt": [{"role": "user", "content": parts, "foo": 1}], "answer": "5"}, 1)
    assert set(parser.unused) == {"prompt[].foo", "prompt[].content[].cache_control"}


def test_tools_are_not_said_to_be_unused() -> None:
    for tools in ([TOOL], [TOOL["function"]]):
        parser = RowParser("f")
        parser.parse({"messages": [ASK, SAID], "tools": tools}, 1)
        assert not parser.unused


def test_who_imitates_a_prompts_answer_is_told_what_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "a", "answer": "b", "level": 3}) + "\n")
    for wants, told in ((Prompt, False), (Conversation, True)):
        options._tell_unused.cache_clear()
        caplog.clear()
        dataset = Jsonl(Jsonl.Config(path=str(path)))
        dataset.bind(lambda stage: tmp_path, wants)
        with caplog.at_level(logging.WARNING):
            list(dataset.load())
        assert ("not used: level" in caplog.text) == told


# --- made by a stage, read by the next -----------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        {"response": "WRONG"},
        {"completion": "WRONG", "label": True},
        {"prompt": "WRONG"},
        {"messages": [ASK, SAID]},
        {"chosen": "a", "rejected": "b"},
    ],
    ids=lambda metadata: "/".join(metadata),
)
def test_what_was_made_is_read_as_what_it_is(metadata: dict[str, Any]) -> None:
    made = Prompt(messages=(Message("user", "2+3="),), answer="5", metadata=metadata)
    row = json.loads(json.dumps(as_row(made)))
    read = RowParser("f", record=Prompt).parse(row, 1)
    assert isinstance(read, Prompt)
    assert (read.messages, read.answer, read.metadata) == (made.messages, "5", metadata)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([SAID], "is a reply alone"),
        ([ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}], "ends with a call"),
    ],
)
def test_what_is_no_prompt_with_an_answer_is_refused(turns: Any, said: str) -> None:
    with pytest.raises(UsageError, match=f"f:1: {said}"):
        convert(parsed({"messages": turns}), Prompt)


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "now?"}]
    row = {"messages": [{"role": "user", "content": parts}, SAID]}
    assert messages(row)[0].content == "What now?"


# --- the promise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("media", ["images", "image", "audios", "videos", "image_url", "audio"])
def test_images_and_sound_are_refused(form: Any, media: str) -> None:
    assert media in refused({**row_of(form.fields), media: ["<bytes>"]})
    assert parsed({**row_of(form.fields), media: []})


def outcome(parser: RowParser, row: Any) -> tuple[Record | None, str]:
    """The record of a row, or what is said of it."""
    try:
        return parser.parse(row, 1), ""
    except RowError as error:
        return None, str(error)


VALUES = st.one_of(
    st.booleans(),
    st.integers(-3, 3),
    st.text("ab", min_size=1, max_size=3),
    st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=2),
)
NAMES = st.one_of(
    st.text("abcdefgh_", min_size=1, max_size=8),
    st.sampled_from(
        sorted(
            {*(name for form in FORMATS for name in form.fields), *FRAME, "weight", "kto_tag"}
            | UNDERSTOOD
        )
    ),
)


@pytest.mark.parametrize("form", FORMS)
@given(name=NAMES, value=VALUES)
def test_a_further_field_changes_the_record_or_is_named(form: Any, name: str, value: Any) -> None:
    row = row_of(form.fields)
    if name in row:
        return
    parser = RowParser("f")
    record, said = outcome(parser, {**row, name: value})
    if record is None:
        assert parser.form not in (None, form) or name in said or "label" in said
    else:
        assert record != parsed(row) or name in parser.unused


@pytest.mark.parametrize("form", [form for form in FORMATS if form.record is not Prompt])
@given(name=NAMES, value=VALUES, place=st.integers(0, 1))
def test_a_further_field_of_a_message_too(form: Any, name: str, value: Any, place: int) -> None:
    row = row_of(form.fields)
    lists = [key for key, held in row.items() if isinstance(held, list)]
    if not lists:
        return
    field = lists[-1]
    where = min(place, len(row[field]) - 1)
    if name in row[field][where] or {"content": "value", "role": "from"}.get(name) in row[field][0]:
        return
    parser = RowParser("f")
    turn = {**row[field][where], name: value}
    changed = {**row, field: [*row[field][:where], turn, *row[field][where + 1 :]]}
    record, said = outcome(parser, changed)
    if record is None:
        assert name in said or "call" in said
        return
    noted = f"{field}[].{name}" in parser.unused
    # A mask on what is not learned, or is learned whole, anyway changes nothing, as it says.
    masked = turn.get("role", turn.get("from")) in ("user", "human") and name in ("weight", "train")
    whole = name in ("weight", "train") and form.record is not Conversation
    assert record != parsed(row) or noted or masked or whole


def test_fields_that_are_not_used_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    row = {"messages": [ASK, {**SAID, "stamp": 3}], "id": 7, "notes": None}
    path.write_text(json.dumps(row) + "\n")
    options._tell_unused.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            list(Jsonl(Jsonl.Config(path=str(path))).load())
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.endswith("these fields are not used: messages[].stamp, id")
    assert check_file(path).unused == {"messages[].stamp": 1, "id": 1}
