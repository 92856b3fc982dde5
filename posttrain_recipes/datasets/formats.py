"""The forms that rows of data come in, and what record each of them is.

A form is told by its fields: `FORMATS` has one entry for each, the more specific first. A row
that is none of them, or whose values cannot be used, raises `RowError` with what to do about it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain_recipes.conversion import REPLY, final_answer
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


class RowError(Exception):
    """A row that cannot be used; `messages` has one sentence for each thing that is wrong."""

    def __init__(self, *messages: str) -> None:
        self.messages = messages
        super().__init__("; ".join(messages))


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
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else str(type(value)))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
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
            raise RowError(f"{where} has no '{ours}'; {_did_you_mean(ours, value)}")
        keys[ours] = ours if ours in value else sharegpt
    faults: list[str] = []
    name = value[keys["role"]]
    role = _ROLE_NAMES.get(name) if isinstance(name, str) else None
    if role is None:
        shown = f"'{name}'" if isinstance(name, str) else f"({_kind(name)})"
        near = _nearest(str(name), ROLES)
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
    if isinstance(value, str) and alone is not None:
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


def _conversation(name: str) -> Callable[[Row, str], Record]:
    def make(row: Row, source: str) -> Record:
        return Conversation(source=source, messages=_ends_with_reply(_turns(row[name], name), name))

    return make


def _pair(reply: str) -> Callable[[Row, str], Record]:
    def make(row: Row, source: str) -> Record:
        prompt = _asks(row["prompt"], "prompt")
        return Conversation(source=source, messages=prompt + _reply(row[reply], reply, prompt))

    return make


def _alpaca(row: Row, source: str) -> Record:
    asked = _text(row["instruction"], "'instruction'")
    if row.get("input"):
        asked += "\n\n" + _text(row["input"], "'input'")
    told = Message("assistant", _text(row["output"], "'output'"))
    return Conversation(source=source, messages=(Message("user", asked), told))


def _prompt(name: str) -> Callable[[Row, str], Record]:
    def make(row: Row, source: str) -> Record:
        messages = _asks(row[name], name)
        metadata = {key: value for key, value in row.items() if key not in (name, "answer")}
        answer = None
        if "answer" in row:
            value = row["answer"]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            whole = str(value) if number else _text(value, "'answer'")
            answer = final_answer(whole)
            if not answer:
                raise RowError("'answer' has nothing after '####'; write the final answer there")
            if answer != whole:
                metadata[REPLY] = whole
        return Prompt(source=source, messages=messages, answer=answer, metadata=metadata)

    return make


def _preference(row: Row, source: str) -> Record:
    prompt = _asks(row["prompt"], "prompt")
    chosen, rejected = (_reply(row[name], name, prompt) for name in ("chosen", "rejected"))
    _must_differ(chosen, rejected)
    return Preference(source=source, prompt=prompt, chosen=chosen, rejected=rejected)


def _whole_preference(row: Row, source: str) -> Record:
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


def _labelled(reply: str) -> Callable[[Row, str], Record]:
    def make(row: Row, source: str) -> Record:
        prompt = _asks(row["prompt"], "prompt")
        completion = _reply(row[reply], reply, prompt)
        label = row["label"]
        if not isinstance(label, bool):
            raise RowError(f"'label' is {_kind(label)}; write true (good) or false (bad)")
        return Labelled(source=source, prompt=prompt, completion=completion, label=label)

    return make


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """One form of row: the fields that tell it, and the record that it makes."""

    fields: tuple[str, ...]
    record: type[Record]
    make: Callable[[Row, str], Record]
    """(row, source) -> record; raises `RowError`."""
    known_as: str = ""
    optional: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its fields, as `prompt/completion`."""
        return "/".join(self.fields)


FORMATS: tuple[Format, ...] = (
    Format(("prompt", "chosen", "rejected"), Preference, _preference),
    Format(("chosen", "rejected"), Preference, _whole_preference, "HH"),
    Format(("prompt", "completion", "label"), Labelled, _labelled("completion"), "KTO"),
    Format(("prompt", "response", "label"), Labelled, _labelled("response"), "KTO"),
    Format(("messages",), Conversation, _conversation("messages")),
    Format(("conversations",), Conversation, _conversation("conversations"), "ShareGPT"),
    Format(("instruction", "output"), Conversation, _alpaca, "Alpaca", ("input",)),
    Format(("prompt", "completion"), Conversation, _pair("completion")),
    Format(("prompt", "response"), Conversation, _pair("response")),
    Format(("question", "answer"), Prompt, _prompt("question"), "GSM8K"),
    Format(("prompt", "answer"), Prompt, _prompt("prompt")),
    Format(("prompt",), Prompt, _prompt("prompt")),
)
"""Every form, the more specific before the less: the first whose fields a row has is the row's."""

FIELDS: tuple[str, ...] = tuple(
    dict.fromkeys(name for form in FORMATS for name in (*form.fields, *form.optional))
)
"""Every field that some form has; `columns` maps these."""


def recognise(row: Row) -> Format:
    """The form of a row.

    Raises:
        RowError: it is of none, or a misspelt field would make it another one.
    """
    for form in FORMATS:
        if all(name in row for name in form.fields):
            _reject_leftovers(form, row)
            return form
    raise _unknown(row)


def _reject_leftovers(form: Format, row: Row) -> None:
    """A row that falls back to a lesser form by a slip would lose data without a word."""
    for here, gone in (("chosen", "rejected"), ("rejected", "chosen")):
        if here in row and gone not in row:
            raise RowError(f"has '{here}' but no '{gone}'; {_did_you_mean(gone, row)}")
    for fuller in FORMATS:
        extra = set(fuller.fields) - set(form.fields)
        if not set(form.fields) < set(fuller.fields) or len(extra) != 1:
            continue
        (name,) = extra
        others = [key for key in row if key not in FIELDS and key.lower() != f"{name}s"]
        near = _nearest(name, others, cutoff=0.82)
        if near is not None:
            raise RowError(f"has '{near}'; did you mean '{name}'? rename it")


def _unknown(row: Row) -> RowError:
    def score(form: Format) -> tuple[float, int]:
        hits = [1.0 if n in row else 0.9 if _nearest(n, row) else 0.0 for n in form.fields]
        return (sum(hits) / len(hits), len(hits))

    best = max(FORMATS, key=score)
    if score(best)[0] > 0:
        return missing(best, row)
    names = ", ".join(f"'{key}'" for key in list(row)[:8]) or "none"
    return RowError(
        f"is in no known form (its fields: {names}); name its columns, or use "
        + ", ".join(form.name for form in FORMATS if form.known_as not in ("KTO", "HH"))
    )


def missing(form: Format, row: Row) -> RowError:
    """What to say of a row that should be of `form` and lacks some of its fields."""
    others = [key for key in row if key not in form.fields]
    otherwise = f"add it, or map one of these in columns: {', '.join(others[:8])}"
    return RowError(
        *(
            f"has no '{name}'; "
            + _did_you_mean(
                name, others, "rename it, or map it in columns", otherwise if others else "add it"
            )
            for name in form.fields
            if name not in row
        )
    )


def _did_you_mean(
    name: str, keys: Iterable[str], remedy: str = "rename it", otherwise: str = "add it"
) -> str:
    near = _nearest(name, keys)
    return otherwise if near is None else f"did you mean '{near}'? {remedy}"


def _nearest(name: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    by_lower = {str(option).lower(): str(option) for option in options}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else None


# --- a file of rows ------------------------------------------------------------------------------


@dataclass
class RowParser:
    """Rows of one file -> records; the first row that is recognised sets the form of the file."""

    name: str
    """How records name the file in their `source`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our field name -> the file's."""
    system: str | None = None
    """Put in front of records that have no system message of their own."""
    text_only: bool = False
    """The file has no types, so that a label is the word true or false."""
    form: Format | None = field(default=None, init=False)
    _first_line: int = field(default=0, init=False)
    _fields: tuple[str, ...] = field(default=(), init=False)

    def parse(self, row: Row, line: int) -> Record:
        """The record of one row; raises `RowError`."""
        row = self._renamed(row)
        form = self._form(row, line)
        record = form.make(row, f"{self.name}:{line}")
        return record if self.system is None else _with_system(record, self.system)

    def _form(self, row: Row, line: int) -> Format:
        expected = self.form
        if expected is not None and tuple(row) == self._fields:
            return expected  # the same fields are the same form
        try:
            form = recognise(row)
        except RowError:
            if expected is None or all(name in row for name in expected.fields):
                raise
            raise missing(expected, row) from None
        if expected is None:
            self.form, self._first_line = form, line
        elif form is not expected:
            if set(form.fields) < set(expected.fields):
                raise missing(expected, row)
            raise RowError(
                f"is {form.name}, but the file is {expected.name} since line {self._first_line}; "
                "keep one form in a file"
            )
        self._fields = tuple(row)
        return form

    def _renamed(self, row: Row) -> Row:
        if not self.columns and not self.text_only:
            return row
        taken = set(self.columns.values())
        renamed = {key: value for key, value in row.items() if key not in taken}
        for ours, theirs in self.columns.items():
            if theirs in row:
                renamed[ours] = row[theirs]
            elif not any(ours in form.optional for form in FORMATS):
                there = ", ".join(str(key) for key in row)
                raise RowError(
                    f"has no '{theirs}', which columns gives as '{ours}'; there is: {there}"
                )
        if self.text_only and isinstance(label := renamed.get("label"), str):
            renamed["label"] = {"true": True, "false": False}.get(label.strip().lower(), label)
        return renamed


def _with_system(record: Record, system: str) -> Record:
    front = (Message("system", system),)
    if isinstance(record, Conversation | Prompt) and record.messages[0].role != "system":
        return replace(record, messages=front + record.messages)
    if isinstance(record, Preference | Labelled) and record.prompt[0].role != "system":
        return replace(record, prompt=front + record.prompt)
    return record


def column_problems(columns: Mapping[str, str]) -> list[str]:
    """What is wrong with a `columns` mapping before any row is read."""
    problems = []
    for ours in columns:
        if ours not in FIELDS:
            near = _nearest(ours, FIELDS)
            advice = f"did you mean '{near}'?" if near else f"there is: {', '.join(FIELDS)}"
            problems.append(f"unknown field '{ours}'; {advice}")
    return problems
