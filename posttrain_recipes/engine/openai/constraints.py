"""Forms that a reply is to have, as requests say them, as grammars in the form of Lark.

OpenAI's `response_format` and `tool_choice`; vLLM's `guided_json`, `guided_regex`, `guided_choice`.
JSON is written on one line, as `json.dumps` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain_recipes.engine.openai.tools import CLOSE, OPEN
from posttrain_recipes.engine.wire import RequestError

_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def json_of(schema: Any, name: str) -> str:
    """JSON that fits a schema. Raises RequestError 400 where it is none."""
    return f"start: {_json(schema, name)}\n"


def regex(pattern: str) -> str:
    """Text that matches a regular expression as a whole."""
    return f"start: /{pattern.replace('/', chr(92) + '/')}/\n"


def choice(options: Sequence[str]) -> str:
    """One of some texts. Raises RequestError 400 for none."""
    if not options or not all(isinstance(one, str) and one for one in options):
        raise RequestError(400, "guided_choice: a list of texts, none of them empty")
    return f"start: {' | '.join(map(json.dumps, options))}\n"


def response_format(asked: Mapping[str, Any]) -> str | None:
    """What `response_format` asks for; None for any text. Raises RequestError 400."""
    kind = asked.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return json_of({"type": "object"}, "response_format")
    if kind == "json_schema":
        told = asked.get("json_schema")
        if not isinstance(told, Mapping) or "schema" not in told:
            raise RequestError(400, "response_format: json_schema needs a 'schema'")
        return json_of(told["schema"], "response_format")
    raise RequestError(
        400, f"response_format: type {kind!r} is not done: text, json_object or json_schema"
    )


def call_of(
    tools: Sequence[Mapping[str, Any]], asked: Any, token: Callable[[str], int | None]
) -> str:
    """A call of one of the tools, as `tool_choice` asks for it: 'required', or one by its name.

    Args:
        token: the id of a text that is one token of the model; None where it is several.

    Raises:
        RequestError: 400 where there is no such tool.
    """
    offered = [tool.get("function", tool) for tool in tools]
    if asked != "required":
        function = asked.get("function") if isinstance(asked, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        offered = [one for one in offered if one.get("name") == name]
        if not offered:
            raise RequestError(
                400, "tool_choice: 'none', 'auto', 'required', or "
                '{"type": "function", "function": {"name": NAME}} of a tool that is offered'
            )  # fmt: skip
    if not offered:
        raise RequestError(400, "tool_choice: required needs 'tools'")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": one.get("name")},
                "arguments": one.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for one in offered
    ]
    body = " | ".join(_json(call, "tools") for call in calls)
    begin, end = (_literal(mark, token) for mark in (OPEN, CLOSE))
    return f'start: {begin} "\\n" ({body}) "\\n" {end}\n'


def _literal(mark: str, token: Callable[[str], int | None]) -> str:
    known = token(mark)
    return json.dumps(mark) if known is None else f"<[{known}]>"


def _json(schema: Any, name: str) -> str:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError:
            raise RequestError(400, f"{name}: the schema is no JSON") from None
    if not isinstance(schema, Mapping):
        raise RequestError(400, f"{name}: a JSON schema is an object")
    return f"%json {json.dumps({**schema, 'x-guidance': _ONE_LINE})}"
