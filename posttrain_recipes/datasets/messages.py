"""Messages as data writes them: roles, text, what was thought, calls of tools, and weights.

What a message holds is kept, or refused by its name; `UNDERSTOOD` has the keys that are read here.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from posttrain_recipes.datasets.faults import RowError
from posttrain_recipes.datasets.numbers import NumberText, is_number
from posttrain_recipes.records import ROLES, Message, Messages, Role, ToolCall

Row = Mapping[str, Any]

FRAME = ("system", "history", "tools")
"""Fields that every form of row may have beside its own: they are part of the prompt."""
_ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "developer": "system",  # OpenAI's newer name
    "human": "user",  # ShareGPT's
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",  # OpenAI's older name
    "function_response": "tool",
}
_SHAREGPT = (("role", "from"), ("content", "value"))
_CALLS = ("tool_calls", "function_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")
UNDERSTOOD = frozenset(
    {
        *("role", "from", "content", "value", "name", "tool_call_id", "weight", "train"),
        *(*_CALLS, *_REASONING),
    }
)
"""Keys of a message that mean something here."""
_MEDIA = re.compile(r"(input_)?(image|audio|video|file|document)s?(_url|_urls|_file|_path|_data)?")
_SURROGATE = re.compile("[\ud800-\udfff]")


# --- values --------------------------------------------------------------------------------------


def kind(value: Any) -> str:
    """What a value of a row is, in words."""
    if value is None:
        return "null"
    if is_number(value):
        return "a number"
    names = {bool: "a boolean", str: "text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else str(type(value)))


def is_given(value: Any) -> bool:
    """Whether there is anything in a field: tables of other libraries fill the rest with null."""
    return value is not None and value != "" and value != [] and value != {}


def is_text(value: Any) -> bool:
    """Whether a value is text, and no number that is too long to calculate with."""
    return isinstance(value, str) and not isinstance(value, NumberText)


def is_message(value: Any) -> bool:
    """Whether `value` looks like a message of a conversation, rather than like a row."""
    return isinstance(value, Mapping) and (
        ("role" in value and "content" in value) or ("from" in value and "value" in value)
    )


def text(value: Any, where: str, *, empty: bool = False) -> str:
    """A value that has to be text, and not empty unless it may be. Raises `RowError`."""
    if not is_text(value):
        raise RowError(f"{where} is {kind(value)}; it must be text")
    if not empty and not value.strip():
        raise RowError(f"{where} is empty; write it, or remove the line")
    if not value.isascii() and (half := _SURROGATE.search(value)):
        raise RowError(
            f"{where} has half of a surrogate pair (U+{ord(half[0]):04X}); "
            "write the whole character"
        )
    return str(value)


def refuse_media(row: Row, where: str = "") -> None:
    """Raise `RowError` where a row, or a message, holds images, sound or the like."""
    for key, value in row.items():
        if is_given(value) and isinstance(key, str) and _MEDIA.fullmatch(key.lower()):
            raise RowError(
                f"{where}has '{key}'; only text can be trained on: remove the field, or the line"
            )


def json_text(value: Any, where: str) -> str:
    """A JSON value as text, with its numbers as numbers. Raises `RowError`."""
    if isinstance(value, NumberText):
        raise RowError(f"{where} has a number that is too large: {value[:20]}...")
    if isinstance(value, Mapping):
        inside = (f"{json.dumps(k)}: {json_text(v, where)}" for k, v in value.items())
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(json_text(v, where) for v in value)}]"
    return str(value) if is_number(value) else json.dumps(value, ensure_ascii=False)


# --- one message ---------------------------------------------------------------------------------


def message(value: Any, where: str) -> Message:
    """A message of a conversation. Raises `RowError` with all that is wrong with it."""
    if not isinstance(value, Mapping):
        raise RowError(f'{where} is {kind(value)}; a message is {{"role": ..., "content": ...}}')
    made = [value[key] for key in _CALLS if is_given(value.get(key))]
    calls = made[0] if made else None
    keys = {}
    for ours, sharegpt in _SHAREGPT:
        if ours not in value and sharegpt not in value:
            if ours == "content" and calls is not None:
                continue
            raise RowError(f"{where} has no '{ours}'; {did_you_mean(ours, value)}")
        keys[ours] = ours if ours in value else sharegpt
    faults: list[str] = []
    role, said = value[keys["role"]], keys.get("content", "content")
    parts: dict[str, Any] = {"role": _role(role, where, faults), "content": ""}

    def read(name: str, found: Any) -> None:
        try:
            parts[name] = found()
        except RowError as error:
            faults.extend(error.messages)

    refuse_media(value, f"{where} ")
    if len(made) > 1 or (made and role == "function_call"):
        faults.append(f"{where} calls tools in two fields; keep one of them")
    if role == "function_call" and is_text(value.get(said)):
        read("tool_calls", lambda: _calls(_parsed(value[said], where), where))
    else:
        empty = calls is not None or parts["role"] == "tool"
        read("content", lambda: _content(value.get(said), f"{where}.{said}", empty))
        if calls is not None:
            one = [calls] if isinstance(calls, Mapping) else calls
            read("tool_calls", lambda: _calls(one, f"{where}.tool_calls"))
    read("reasoning", lambda: _reasoning(value, where))
    read("weight", lambda: _weight(value, parts["role"], where))
    if parts["role"] == "tool":
        for name in ("name", "tool_call_id"):
            if is_given(value.get(name)):
                read(name, lambda name=name: text(value[name], f"{where}.{name}"))
    elif is_given(value.get("tool_call_id")):
        faults.append(f"{where} has 'tool_call_id', which only a tool's answer has")
    if parts["role"] not in ("assistant", None):
        for key in (*_CALLS, *_REASONING):
            if is_given(value.get(key)):
                faults.append(f"{where} has '{key}', which only the assistant's messages have")
    if faults:
        raise RowError(*faults)
    return Message(**parts)


def _plain(value: Any) -> tuple[str, str] | None:
    """A name of a role and its text and nothing else, as most messages are; None for another."""
    if type(value) is dict and len(value) == 2:
        name, said = value.get("role"), value.get("content")
        if name is None:
            name, said = value.get("from"), value.get("value")
        if type(name) is str and type(said) is str:
            return name, said
    return None


def _at_once(value: Any) -> Message | None:
    """A plain message with nothing wrong; None for another, which `message` reads."""
    name, said = _plain(value) or ("", "")
    role = _ROLE_NAMES.get(name)
    if role is None or name == "function_call" or not said or said.isspace():
        return None
    return None if not said.isascii() and _SURROGATE.search(said) else Message(role, said)


def _role(name: Any, where: str, faults: list[str]) -> Role | None:
    role = _ROLE_NAMES.get(name) if isinstance(name, str) else None
    if role is None:
        shown = f"'{name}'" if isinstance(name, str) else f"({kind(name)})"
        near = nearest(str(name), ROLES)
        advice = f"did you mean '{near}'?" if near else f"the roles are {', '.join(ROLES)}"
        faults.append(f"{where}: unknown role {shown}; {advice}")
    return role


def _content(value: Any, where: str, empty: bool) -> str:
    if value is None and empty:
        return ""
    if not isinstance(value, list | tuple):
        return text(value, where, empty=empty)
    told = []
    for index, part in enumerate(value):
        form = part.get("type") if isinstance(part, Mapping) else None
        if form not in ("text", "input_text", "output_text"):
            what = f"of type '{form}'" if isinstance(form, str) else kind(part)
            raise RowError(f"{where}[{index}] is {what}; only text can be trained on")
        told.append(text(part.get("text"), f"{where}[{index}].text", empty=True))
    return text("".join(told), where, empty=empty)


def _parsed(value: str, where: str) -> list[Any]:
    try:
        found = json.loads(value)
    except ValueError:
        raise RowError(f"{where} calls a tool, and its text is no JSON: {value[:40]}") from None
    return found if isinstance(found, list) else [found]


def _calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    if not isinstance(value, list | tuple):
        raise RowError(f"{where} is {kind(value)}; it must be a list of calls")
    return tuple(_call(one, f"{where}[{index}]") for index, one in enumerate(value))


def _call(value: Any, where: str) -> ToolCall:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping):
        raise RowError(f'{where} is no call; write {{"name": ..., "arguments": {{...}}}}')
    if not (name := function.get("name")):
        raise RowError(f"{where} has no 'name'; {did_you_mean('name', function)}")
    others = [*(k for k in function if k not in ("name", "arguments", "parameters", "id", "type"))]
    if function is not value:
        others += [k for k in value if k not in ("function", "id", "type", "index")]
    if is_given(function.get("arguments")) and is_given(function.get("parameters")):
        raise RowError(f"{where} has 'arguments' and 'parameters'; keep one of them")
    if function is not value and is_given(function.get("id")):
        others.append("id")
    if others:
        raise RowError(f"{where} has '{others[0]}', which a call of a tool has not; remove it")
    given = function.get("arguments", function.get("parameters"))
    if given is None or given == "":
        given = {}
    if is_text(given):
        try:
            given = json.loads(given)
        except ValueError:
            raise RowError(f"{where}: its arguments are no JSON: {given[:40]}") from None
    if not isinstance(given, Mapping):
        raise RowError(f"{where}: its arguments are {kind(given)}; they must be a JSON object")
    known = value.get("id") or ""
    return ToolCall(
        text(name, f"{where}.name"),
        json_text(given, where),
        text(known, f"{where}.id", empty=True),
    )


def _reasoning(value: Row, where: str) -> str:
    given = {key: value[key] for key in _REASONING if is_given(value.get(key))}
    if len(set(map(str, given.values()))) > 1:
        raise RowError(f"{where} has {' and '.join(given)}, which differ; keep one of them")
    return next((text(found, f"{where}.{key}") for key, found in given.items()), "")


def _weight(value: Row, role: Role | None, where: str) -> float | None:
    given: dict[str, Any] = {
        key: value[key] for key in ("weight", "train") if is_given(value.get(key))
    }
    if not given:
        return None
    for key, found in given.items():
        wanted = "true or false" if key == "train" else "a number from 0 to 1,000"
        fits = isinstance(found, bool) if key == "train" else _is_factor(found)
        if not fits:
            raise RowError(f"{where}.{key} is {found!r}; it must be {wanted}")
    weights = {float(found) for found in given.values()}
    if len(weights) > 1:
        raise RowError(f"{where} has 'weight' and 'train', which differ; keep one of them")
    weight = weights.pop()
    if role in ("assistant", "tool"):
        return weight
    if weight:
        raise RowError(
            f"{where} is to be learned ('{next(iter(given))}'), and is the {role}'s; only what "
            "the assistant says is learned, and what tools answer"
        )
    return None


def _is_factor(value: Any) -> bool:
    return is_number(value) and not isinstance(value, NumberText) and 0 <= value <= 1000


# --- a conversation ------------------------------------------------------------------------------


def turns(value: Any, name: str, alone: Role | None = None) -> Messages:
    """A list of messages; text too, as one message, where `alone` says whose it is."""
    if is_text(value) and alone is not None:
        return (Message(alone, text(value, f"'{name}'")),)
    if not isinstance(value, list | tuple):
        wanted = "a list of messages" if alone is None else "text or a list of messages"
        raise RowError(f"'{name}' is {kind(value)}; it must be {wanted}")
    if not value:
        raise RowError(f"'{name}' has no messages; write them, or remove the line")
    made: list[Message] = []
    faults: list[str] = []
    for index, item in enumerate(value):
        try:
            made.append(_at_once(item) or message(item, f"{name}[{index}]"))
        except RowError as error:
            faults.extend(error.messages)
            continue
        if index and made[-1].role == "system":
            faults.append(f"{name}[{index}] is a system message; move it to the front")
    if faults:
        raise RowError(*faults)
    return tuple(made)


def framed(row: Row, messages: Messages) -> Messages:
    """A conversation with what the row says of it beside its turns: system, history and tools."""
    if is_given(row.get("history")):
        head = 1 if messages[0].role == "system" else 0
        messages = (*messages[:head], *_history(row["history"]), *messages[head:])
    if is_given(row.get("system")):
        if messages[0].role == "system":
            raise RowError("has 'system' and a system message; keep one of them")
        messages = (Message("system", text(row["system"], "'system'")), *messages)
    if is_given(row.get("tools")):
        messages = (replace(messages[0], tools=_tools(row["tools"])), *messages[1:])
    return messages


def _history(value: Any) -> Iterable[Message]:
    if not isinstance(value, list | tuple):
        raise RowError(f"'history' is {kind(value)}; it must be a list of [question, answer]")
    if all(map(is_message, value)):
        yield from turns(value, "history")
        return
    for index, pair in enumerate(value):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"history[{index}] is no [question, answer]")
        yield Message("user", text(pair[0], f"history[{index}][0]"))
        yield Message("assistant", text(pair[1], f"history[{index}][1]"))


def _tools(value: Any) -> tuple[str, ...]:
    if is_text(value):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError(f"'tools' is text that is no JSON: {value[:40]}") from None
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError(f"'tools' is {kind(value)}; it must be a list of objects")
    made = []
    for index, tool in enumerate(value):
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not function.get("name"):
            raise RowError(f"tools[{index}] has no 'name'")
        # The form that chat templates read; LLaMA-Factory writes the inner part alone.
        whole = tool if "function" in tool else {"type": "function", "function": tool}
        made.append(json_text(whole, f"tools[{index}]"))
    return tuple(made)


def unused(messages: Sequence[Any]) -> Iterable[str]:
    """Keys of messages that nothing is made of."""
    for one in messages:
        if _plain(one) is not None or not isinstance(one, Mapping):
            continue
        parts = one.get("content", one.get("value"))
        if not one.keys() <= UNDERSTOOD:
            yield from (str(key) for key in one.keys() - UNDERSTOOD if is_given(one[key]))
        role = one.get("role", one.get("from"))
        if is_given(one.get("name")) and not (isinstance(role, str) and role in _TOOL_ROLES):
            yield "name"
        yield from (theirs for ours, theirs in _SHAREGPT if ours in one and theirs in one)
        for part in parts if isinstance(parts, list | tuple) else ():
            if isinstance(part, Mapping):
                yield from (
                    f"content[].{key}"
                    for key, held in part.items()
                    if key not in ("type", "text") and is_given(held)
                )


_TOOL_ROLES = {name for name, role in _ROLE_NAMES.items() if role == "tool"}


# --- names that are nearly right -----------------------------------------------------------------


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
