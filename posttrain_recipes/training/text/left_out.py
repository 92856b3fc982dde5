"""What a chat template leaves out of a conversation: nothing may be trained on without it.

Words are looked for in the text; and because they may stand elsewhere in it too, in a tool's
description say, a conversation of the same shape is rendered with a mark for each part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from posttrain_recipes.records import Message, ToolCall
from posttrain_recipes.training.text.turns import MARK


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
    """What of a conversation is not in its text, in words; None where all of it is.

    White space does not count: many templates strip it. What was thought in turns that are not
    learned may be left out unless it is to be kept: that is how such models are used.
    """
    shown = _Shown(text)
    for index, message in enumerate(messages):
        where = f"message {index + 1} ({message.role})"
        said = message.content
        whole = index in learned or keep
        if not whole and message.role == "assistant":
            said = said.rpartition("</think>")[2].replace("<think>", "")
        if not shown.has(said):
            return f"{'what was thought in' if '</think>' in said else 'a part of'} {where}"
        if whole and not shown.has(message.reasoning):
            return f"what was thought in {where}"
        for call in message.tool_calls:
            values = (call.name, *_texts(json.loads(call.arguments)))
            if not all(map(shown.has, values)):
                return f"the call of '{call.name}' in {where}"
        for tool in message.tools:
            name = str(json.loads(tool)["function"]["name"])
            if not shown.has(name):
                return f"the tool '{name}'"
    return None


class _Shown:
    """A text that is asked what is in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._dense: str | None = None

    def has(self, said: str) -> bool:
        """Whether `said` is in it, as it is or as a string of JSON, but for white space."""
        if said in self.text or said.strip() in self.text:
            return True
        if self._dense is None:
            self._dense = "".join(self.text.split())
        escaped = json.dumps(said.strip(), ensure_ascii=False)[1:-1]
        return any("".join(form.split()) in self._dense for form in (said, escaped))


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
