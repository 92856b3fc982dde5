"""Chat templates as programs: the Jinja that they are written in, and whether one is a template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from posttrain_recipes.errors import PtlError

_NAME = "name one: 'renderer: {chat_template: chatml}'"


def check(template: Any, location: str) -> None:
    """See that there is a chat template, and that it is one.

    Args:
        template: as tokenizers of transformers have it: a text, or several by name.
        location: where the tokenizer lies.

    Raises:
        PtlError: no conversation can be rendered with it.
    """
    if not template:
        raise PtlError(
            f"the tokenizer of {location} has no chat template",
            hint=f"{_NAME}; or use an instruction-tuned model",
            code="chat-template",
        )
    if why := _fault(template):
        raise PtlError(
            f"the chat template of {location} cannot be used",
            why=why,
            hint=_NAME,
            code="chat-template",
        )


def _fault(template: Any) -> str | None:
    from jinja2 import TemplateSyntaxError

    if isinstance(template, Mapping):
        if "default" not in template:
            return f"it is several ({', '.join(map(str, template))}), and none is named 'default'"
        template = template["default"]
    if not isinstance(template, str):
        return f"it is {json.dumps(template, default=str)[:60]}, not text"
    try:
        template_environment().parse(template)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    return None


def template_environment() -> Any:
    """Jinja as `transformers` sets it up, so that templates mean the same here."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    class Generation(Extension):
        """`{% generation %}`: marks what the assistant says, and changes nothing of it."""

        tags = {"generation"}

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(
                ("name:endgeneration",), drop_needle=True
            )
            return body

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    made.filters["tojson"] = lambda value, **more: json.dumps(value, ensure_ascii=False, **more)
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made
