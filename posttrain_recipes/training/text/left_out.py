"""What a chat template leaves out of a conversation, or changes: no other text may be trained on.

Words are looked for in the text; and because they may stand elsewhere in it too, in a tool's
description say, a conversation of the same shape is rendered with a mark for each part.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from posttrain_recipes.records import Message, ToolCall
from posttrain_recipes.training.text.turns import MARK

_THOUGHTS = re.compile(r"(</?think>)")
"""Templates take thoughts apart from what is said, and write line breaks of their own between."""


def marked(
    messages: Sequence[Message], learned: Sequence[int], keep: bool
) -> tuple[list[Message], dict[str, str]]:
    """A conversation of the same shape with a mark for each of its parts, and what those are: words
    of a part may stand elsewhere, in a tool's description say, its mark cannot."""
    parts: dict[str, str] = {}

    def mark(what: str) -> str:
        made = f"{MARK[0]}{len(parts)}{MARK[1]}"
        parts[made] = what
        return made

    made = []
    for index, message in enumerate(messages):
        where = f"message {index + 1} ({message.role})"
        calls = [
            ToolCall(
                mark(f"the call of '{call.name}' in {where}"),
                json.dumps({"a": mark(f"the arguments of '{call.name}' in {where}")})
                if json.loads(call.arguments)
                else "{}",
                call.id,
            )
            for call in message.tool_calls
        ]
        thought = message.reasoning and (index in learned or keep)
        tools = []
        for function in (json.loads(tool).get("function", {}) for tool in message.tools):
            name = function.get("name")
            known: dict[str, Any] = {"name": mark(f"the tool '{name}'")}
            if function.get("description"):
                known["description"] = mark(f"the description of the tool '{name}'")
            known["parameters"] = {"type": "object", "properties": {}}
            tools.append(json.dumps({"type": "function", "function": known}, ensure_ascii=False))
        made.append(
            replace(
                message,
                content=mark(f"a part of {where}") if message.content.strip() else message.content,
                reasoning=mark(f"what was thought in {where}") if thought else "",
                tool_calls=tuple(calls),
                tools=tuple(tools),
            )
        )
    return made, parts


def left_out(
    messages: Sequence[Message], text: str, learned: Sequence[int], keep: bool
) -> str | None:
    """What becomes of a part of a conversation that is not in its text, in words that follow "the
    template"; None where all of it is there.

    White space at the ends does not count: many templates strip it (`stripped`). What was thought
    in turns that are not learned may be left out unless it is to be kept: that is how such models
    are used.
    """
    shown = _Shown(text)
    for index, message in enumerate(messages):
        where = f"message {index + 1} ({message.role})"
        said = message.content
        whole = index in learned or keep
        if not whole and message.role == "assistant":
            said = said.rpartition("</think>")[2].replace("<think>", "")
        has = shown.has_value if message.role == "tool" else shown.has
        if lost := next((part for part in _THOUGHTS.split(said) if not has(part)), None):
            what = "what was thought in" if "</think>" in said else "a part of"
            return f"{shown.instead(lost)} {what} {where}"
        if whole and not shown.has(message.reasoning):
            return f"{shown.instead(message.reasoning)} what was thought in {where}"
        for call in message.tool_calls:
            values = (call.name, *_texts(json.loads(call.arguments)))
            if not all(map(shown.has_value, values)):
                return f"leaves out the call of '{call.name}' in {where}"
        for tool in message.tools:
            name = str(json.loads(tool)["function"]["name"])
            if not shown.has_value(name):
                return f"leaves out the tool '{name}'"
    return None


def stripped(messages: Sequence[Message], text: str) -> bool:
    """Whether white space at the ends of a message is not in the text."""
    said = (message.content for message in messages)
    return any(one not in text and one.strip() in text for one in said)


class _Shown:
    """A text that is asked what is in it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def has(self, said: str) -> bool:
        """Whether `said` is in it as it is, but for white space at its ends."""
        return said.strip() in self.text

    def has_value(self, said: str) -> bool:
        """The same of what a tool is given or gives, which may be written as a string of JSON."""
        if self.has(said):
            return True
        escaped = json.dumps(said.strip(), ensure_ascii=False)[1:-1]
        return any(_dense(form) in self.dense for form in (said, escaped))

    def instead(self, said: str) -> str:
        """What becomes of what is not in it as it is."""
        folded = _dense(html.unescape(self.text)).casefold()
        forms = (said, json.dumps(said.strip(), ensure_ascii=False)[1:-1])
        changed = any(_dense(form).casefold() in folded for form in forms)
        return "changes" if changed else "leaves out"

    @cached_property
    def dense(self) -> str:
        """The text without white space."""
        return _dense(self.text)


def _dense(text: str) -> str:
    return "".join(text.split())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, held in value.items():
            yield str(key)
            yield from _texts(held)
    elif isinstance(value, list):
        for held in value:
            yield from _texts(held)
