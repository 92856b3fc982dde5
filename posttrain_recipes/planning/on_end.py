"""`on_end:`, whom a run tells how it ended: a command, or a webhook."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from posttrain_recipes.language.nodes import Key
from posttrain_recipes.language.recipe import environment_names, expand_environment

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie")
_FORMS = "either 'command: [PROGRAM, ...]' or 'webhook: https://...'"
_SECRET_PART = re.compile(r"(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{20,}")
"""A part of an address that nobody made up: that of a chat's webhook lets anybody write there."""


@dataclass(frozen=True)
class OnEnd:
    """Whom to tell. Texts stand as they are written: `${env:NAME}` is not expanded in them."""

    command: tuple[str, ...] = ()
    """A program and its arguments."""
    webhook: str = field(default="", repr=False)
    """An address that the result is sent to."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 30.0
    """Seconds that it may take."""

    @property
    def label(self) -> str:
        """What messages call it: the program, or the host; an address may be a secret."""
        if self.command:
            return f"the command {self.command[0]}"
        if environment_names(self.webhook):
            return f"the webhook {self.webhook}"
        return f"the webhook at {urlsplit(self.webhook).hostname}"

    def expanded(self) -> OnEnd:
        """The same with the values of environment variables. What comes back is never shown.

        Raises:
            UsageError: a variable that is not set.
        """
        return OnEnd(
            tuple(expand_environment(list(self.command))),
            expand_environment(self.webhook),
            expand_environment(dict(self.headers)),
            self.timeout,
        )


def asked(value: Any) -> OnEnd | None:
    """What a recipe's `on_end:` means; None where it has none, or none that can be read."""
    if not isinstance(value, dict) or not ("command" in value) ^ ("webhook" in value):
        return None
    return OnEnd(
        tuple(value.get("command", ())),
        value.get("webhook", ""),
        dict(value.get("headers", {})),
        float(value.get("timeout", OnEnd.timeout)),
    )


def wrong_address(address: str) -> str | None:
    """Why nothing is sent to an address, without the address; None where it will do."""
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        return "is no address of the web; it reads https://HOST/PATH"
    if parts.scheme == "http" and host not in LOOPBACK:
        return "would send the result, and its headers, readable by all between; use https://"
    return None


def check(value: Any, fault: Callable[[Key, str], None]) -> None:
    """Note what is wrong with `on_end:` beyond its form."""
    for below, why in _faults(value):
        fault(("on_end", *below), why)


def _faults(value: Any) -> Iterator[tuple[Key, str]]:
    if value is True:
        yield (), f"is false, or {_FORMS}"
    if not isinstance(value, dict):
        return
    if not ("command" in value) ^ ("webhook" in value):
        yield (), f"has {_FORMS}"
        return
    if "headers" in value and "webhook" not in value:
        yield ("headers",), "belongs to a 'webhook:'; a command reads the environment"
    webhook = value.get("webhook")
    if isinstance(webhook, str) and not environment_names(webhook):
        if why := wrong_address(webhook):
            yield ("webhook",), why
        elif _SECRET_PART.search(urlsplit(webhook).path):
            yield (
                ("webhook",),
                "looks as if whoever knows it may write there, and would stand in files and logs; "
                "write ${env:NAME} and export NAME",
            )
    headers = value.get("headers")
    for name, text in headers.items() if isinstance(headers, dict) else ():
        secret = str(name).lower() in _SECRET_HEADERS
        if secret and isinstance(text, str) and not environment_names(text):
            yield (
                ("headers", name),
                "looks like a secret in plain text; write ${env:NAME} and export NAME",
            )
        if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", str(name)):
            yield ("headers", name), "is no name of a header"
