"""How chat templates of model families differ in what they are given."""

from __future__ import annotations

import json
import re
from typing import Any


def reasoning_key(template: Any) -> str:
    """What a template calls what was thought."""
    source = template if isinstance(template, str) else json.dumps(template)
    named = (
        ("reasoning_content", r"reasoning_content"),
        ("thinking", r"\.thinking\b|[\"']thinking[\"']"),
        ("reasoning", r"\.reasoning\b|[\"']reasoning[\"']"),
    )
    return next((key for key, said in named if re.search(said, source)), "reasoning_content")


def arguments_as_text(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose calls have their arguments as text of JSON."""

    def as_text(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        text = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    return [
        {**turn, "tool_calls": [as_text(call) for call in turn["tool_calls"]]}
        if "tool_calls" in turn
        else turn
        for turn in turns
    ]
