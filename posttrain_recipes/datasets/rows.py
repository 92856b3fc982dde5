"""What the fields of a row come to: messages, and from them the record of each form."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from posttrain_recipes.conversion import REPLY, final_answer
from posttrain_recipes.datasets.faults import RowError
from posttrain_recipes.datasets.numbers import NumberText, is_number
from posttrain_recipes.records import (
    ROLES,
    Conversation,
    Labelled,
    Message,
    Messages,
    Preference,
    Prompt,
    Record,
    Role,
)

Row = Mapping[str, Any]


# --- values --------------------------------------------------------------------------------------


_ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",  # ShareGPT's
    "gpt": "assistant",
}
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_SURROGATE = re.compile("[\ud800-\udfff]")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if is_number(value):
        return "a number"
    names = {bool: "a boolean", str: "text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else str(type(value)))


def is_message(value: Any) -> bool:
    """Whether `value` looks like a message of a conversation, rather than like a row."""
    return isinstance(value, Mapping) and (
        {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
    )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or isinstance(value, NumberText):
        raise RowError(f"{where} is {_kind(value)}; it must be text")
    if not value.strip():
        raise RowError(f"{where} is empty; write it, or remove the line")
    if not value.isascii() and (half := _SURROGATE.search(value)):
        raise RowError(
            f"{where} has half of a surrogate pair (U+{ord(half[0]):04X}); "
            "write the whole character"
        )
    return value


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowError(f'{where} is {_kind(value)}; a message is {{"role": ..., "content": ...}}')
    keys = {}
    for ours, sharegpt in (("role", "from"), ("content", "value")):
        if ours not in value and sharegpt not in value:
            raise RowError(f"{where} has no '{ours}'; {did_you_mean(ours, value)}")
        keys[ours] = ours if ours in value else sharegpt
    faults: list[str] = []
    name = value[keys["role"]]
    role = _ROLE_NAMES.get(name) if isinstance(name, str) else None
    if role is None:
        shown = f"'{name}'" if isinstance(name, str) else f"({_kind(name)})"
        near = nearest(str(name), ROLES)
        advice = f"did you mean '{near}'?" if near else f"the roles are {', '.join(ROLES)}"
        faults.append(f"{where}: unknown role {shown}; {advice}")
    try:
        content = _text(value[keys["content"]], f"{where}.{keys['content']}")
    except RowError as error:
        faults.extend(error.messages)
    if faults or role is None:
        raise RowError(*faults)
    return Message(role, content)


def _turns(value: Any, name: str, alone: Role | None = None) -> Messages:
    """A list of messages; text too, as one message, where `alone` says whose it is."""
    if isinstance(value, str) and alone is not None and not isinstance(value, NumberText):
        return (Message(alone, _text(value, f"'{name}'")),)
    if not isinstance(value, list | tuple):
        wanted = "a list of messages" if alone is None else "text or a list of messages"
        raise RowError(f"'{name}' is {_kind(value)}; it must be {wanted}")
    if not value:
        raise RowError(f"'{name}' has no messages; write them, or remove the line")
    messages: list[Message] = []
    faults: list[str] = []
    for index, item in enumerate(value):
        try:
            messages.append(_message(item, f"{name}[{index}]"))
        except RowError as error:
            faults.extend(error.messages)
            continue
        if index and messages[-1].role == "system":
            faults.append(f"{name}[{index}] is a system message; move it to the front")
    if faults:
        raise RowError(*faults)
    return tuple(messages)


def _ends_with_reply(messages: Messages, name: str) -> Messages:
    if not any(message.role == "assistant" for message in messages):
        raise RowError(
            f"'{name}' has no assistant message; add the reply to learn, or name the field "
            "'prompt' if there is none"
        )
    if messages[-1].role != "assistant":
        raise RowError(
            f"'{name}' ends with the {messages[-1].role}; add the assistant's reply, or remove "
            "what follows the last one"
        )
    return messages


def _asks(value: Any, name: str) -> Messages:
    messages = _turns(value, name, "user")
    if messages[-1].role == "assistant":
        raise RowError(f"'{name}' ends with the assistant; it must end where a reply is wanted")
    return messages


def _reply(value: Any, name: str, prompt: Messages) -> Messages:
    messages = _turns(value, name, "assistant")
    if messages[: len(prompt)] == prompt and len(messages) > len(prompt):
        messages = messages[len(prompt) :]  # some data repeats the prompt in front of the reply
    if messages[0].role != "assistant":
        raise RowError(
            f"'{name}' begins with the {messages[0].role}; it must be the assistant's reply, or "
            "repeat 'prompt' exactly before it"
        )
    return _ends_with_reply(messages, name)


def _whole(value: Any, name: str) -> Messages:
    """A whole conversation: messages, or text with `Human:` and `Assistant:` turns as in HH."""
    if isinstance(value, str):
        before, *parts = _HH_TURN.split(value)
        if before.strip() or not parts:
            raise RowError(
                f"'{name}' is text and there is no 'prompt'; add 'prompt', or write whole "
                "conversations as lists of messages"
            )
        value = [
            {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
            for who, said in zip(parts[::2], parts[1::2], strict=True)
        ]
    return _ends_with_reply(_turns(value, name), name)


# --- records -------------------------------------------------------------------------------------


def conversation(name: str) -> Callable[[Row, str], Record]:
    """A conversation whose turns stand under `name`."""

    def make(row: Row, source: str) -> Record:
        return Conversation(source=source, messages=_ends_with_reply(_turns(row[name], name), name))

    return make


def pair(reply: str) -> Callable[[Row, str], Record]:
    """A prompt and its reply."""

    def make(row: Row, source: str) -> Record:
        prompt = _asks(row["prompt"], "prompt")
        return Conversation(source=source, messages=prompt + _reply(row[reply], reply, prompt))

    return make


def alpaca(row: Row, source: str) -> Record:
    """An instruction, perhaps with an input, and its output."""
    asked = _text(row["instruction"], "'instruction'")
    if row.get("input"):
        asked += "\n\n" + _text(row["input"], "'input'")
    told = Message("assistant", _text(row["output"], "'output'"))
    return Conversation(source=source, messages=(Message("user", asked), told))


def prompt(name: str) -> Callable[[Row, str], Record]:
    """A prompt, perhaps with an answer; other fields are its metadata."""

    def make(row: Row, source: str) -> Record:
        messages = _asks(row[name], name)
        metadata = {key: value for key, value in row.items() if key not in (name, "answer")}
        answer = None
        if "answer" in row:
            value = row["answer"]
            if isinstance(value, float) and not math.isfinite(value):
                raise RowError(f"'answer' is {value}, which is no number; write it, or null")
            whole = str(value) if is_number(value) else _text(value, "'answer'")
            answer = final_answer(whole)
            if not answer:
                raise RowError("'answer' has nothing after '####'; write the final answer there")
            if answer != whole:
                metadata[REPLY] = whole
        return Prompt(source=source, messages=messages, answer=answer, metadata=metadata)

    return make


def preference(row: Row, source: str) -> Record:
    """A prompt with two replies."""
    prompt = _asks(row["prompt"], "prompt")
    chosen, rejected = (_reply(row[name], name, prompt) for name in ("chosen", "rejected"))
    _must_differ(chosen, rejected)
    return Preference(source=source, prompt=prompt, chosen=chosen, rejected=rejected)


def whole_preference(row: Row, source: str) -> Record:
    """Two whole conversations that part at a reply."""
    chosen, rejected = (_whole(row[name], name) for name in ("chosen", "rejected"))
    _must_differ(chosen, rejected)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt or prompt[-1].role == "assistant":
        raise RowError(
            "'chosen' and 'rejected' differ before the reply; they must be the same conversation "
            "up to an assistant message"
        )
    if chosen[0].role != "assistant" or rejected[0].role != "assistant":
        raise RowError("'chosen' and 'rejected' must part at an assistant message")
    return Preference(source=source, prompt=prompt, chosen=chosen, rejected=rejected)


def _must_differ(chosen: Messages, rejected: Messages) -> None:
    if chosen == rejected:
        raise RowError("'chosen' and 'rejected' are the same; there is nothing to prefer")


def labelled(reply: str) -> Callable[[Row, str], Record]:
    """A reply to a prompt, with a verdict."""

    def make(row: Row, source: str) -> Record:
        prompt = _asks(row["prompt"], "prompt")
        completion = _reply(row[reply], reply, prompt)
        label = row["label"]
        if not isinstance(label, bool):
            raise RowError(f"'label' is {_kind(label)}; write true (good) or false (bad)")
        return Labelled(source=source, prompt=prompt, completion=completion, label=label)

    return make


def did_you_mean(
    name: str, keys: Iterable[str], remedy: str = "rename it", otherwise: str = "add it"
) -> str:
    """What to do about a field that is missing: rename one that is spelled nearly so, or add it."""
    near = nearest(name, keys)
    return otherwise if near is None else f"did you mean '{near}'? {remedy}"


def nearest(name: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The option that is spelled nearly like `name`, whatever the case, where there is one."""
    by_lower = {str(option).lower(): str(option) for option in options}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else None
