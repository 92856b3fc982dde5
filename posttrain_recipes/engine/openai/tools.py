"""Calls of tools in a reply, as models write them that learned Hermes's form (Qwen, SmolLM and many
more): `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(re.escape(OPEN) + r"\s*(.*?)\s*(?:" + re.escape(CLOSE) + r"|\Z)", re.DOTALL)


@dataclass
class ToolSplitter:
    """Lets a reply's text through up to the first call, and keeps what follows for `end`."""

    _held: str = ""

    def push(self, new: str) -> str:
        """Add text. Returns what is certainly no part of a call."""
        self._held += new
        at = self._held.find(OPEN)
        if at < 0:
            keep = next(
                (n for n in range(min(len(OPEN) - 1, len(self._held)), 0, -1)
                 if self._held.endswith(OPEN[:n])), 0,
            )  # fmt: skip
            at = len(self._held) - keep
        given, self._held = self._held[:at], self._held[at:]
        return given

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls: one of them where the other is empty."""
        calls = parse(self._held)
        return ("", calls) if calls else (self._held, [])


def parse(text: str) -> list[dict[str, Any]]:
    """The calls in a text, as OpenAI's `tool_calls`; none where one of them cannot be read: it is
    then text, for the caller to see what the model wrote."""
    calls = []
    for match in _CALL.finditer(text):
        try:
            said = json.loads(match[1])
        except ValueError:
            return []
        if not isinstance(said, dict) or not isinstance(said.get("name"), str):
            return []
        arguments = said.get("arguments", said.get("parameters", {}))
        calls.append(
            {
                "id": f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {
                    "name": said["name"],
                    "arguments": arguments
                    if isinstance(arguments, str)
                    else json.dumps(arguments, ensure_ascii=False),
                },
            }
        )
    return calls
