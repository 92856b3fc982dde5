"""Talk to a model over OpenAI's chat completions: to one of an engine that is started for it, or of
any server."""

from __future__ import annotations

import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from posttrain_recipes import models
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.inference.target import Target, find, require_here
from posttrain_recipes.options import AS_EVER, check_address

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@contextmanager
def _engine(target: Target, home: Path) -> Iterator[tuple[str, str]]:
    """An engine that serves the target: its address and token."""
    from posttrain_recipes.engine import launch

    with ExitStack() as stack:
        # Where nothing was ever run, talking to a model leaves nothing behind; where nothing can be
        # written, it reads.
        data = log = home / "engine"
        if not os.access(data, os.W_OK):
            log = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not data.is_dir():
            data = log
        template = None
        if target.renderer.chat_template is not None:  # the stage was trained with it
            template = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "chat.jinja"
            template.write_text(target.renderer.chat_template, encoding="utf-8")
        engine = launch.start(
            {target.base: models.resolve(target.base)},
            data,
            log / "chat.log",
            chat_template=template,
        )
        stack.enter_context(engine)
        yield engine.base_url, engine.api_key


@dataclass
class ChatClient:
    """A client of an OpenAI-compatible server. Raises PtlError with the server's message."""

    base_url: str
    api_key: str = field(repr=False)

    def __post_init__(self) -> None:
        place = urlsplit(self.base_url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise UsageError(f"--base-url {self.base_url} is no http address")
        self.base_url = self.base_url.rstrip("/") + ("" if place.path.strip("/") else "/v1")
        # Straight to this machine: the proxy that the environment names cannot reach it.
        direct = place.hostname in LOOPBACK
        handlers = [urllib.request.ProxyHandler({})] if direct else []
        self._opener = urllib.request.build_opener(*handlers)

    def first_model(self) -> str:
        """The name of the first model that the server offers."""
        with self._open("models") as answer, _understood(self.base_url):
            offered = [str(model["id"]) for model in json.load(answer).get("data", [])]
        if not offered:
            raise PtlError(
                f"{self.base_url} offers no model", hint="name one", code="server-failed"
            )
        return offered[0]

    def stream(self, body: dict[str, Any]) -> Iterator[str]:
        """The parts of a reply."""
        request = {**body, "stream": True}
        with self._open("chat/completions", request) as answer, _understood(self.base_url):
            for line in answer:
                data = line.decode("utf-8").removeprefix("data:").strip()
                if not line.startswith(b"data:") or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    told = event["error"]
                    said = str(told.get("message", told) if hasattr(told, "get") else told)
                    raise PtlError(said, code="server-failed")
                for choice in event.get("choices", ()):
                    if part := choice.get("delta", {}).get("content"):
                        yield str(part)

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base_url}/{path}", data, headers)
        try:
            return self._opener.open(request)
        except urllib.error.HTTPError as error:
            raise PtlError(_message(error), hint=_hint(error.code), code="server-failed") from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise PtlError(
                f"{self.base_url} cannot be reached", why=str(reason), code="server-failed"
            ) from None


@contextmanager
def _understood(base_url: str) -> Iterator[None]:
    """Raises PtlError for an answer that is not what OpenAI's API says, or breaks off."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, HTTPException) as error:
        raise PtlError(
            f"{base_url} gives an answer that is not understood",
            why=f"{type(error).__name__} while it was read",
            hint="is it a server of OpenAI's chat completions? its address ends in /v1",
            code="server-failed",
        ) from None
    except OSError as error:
        raise PtlError(
            f"{base_url} broke off its answer", why=str(error), code="server-failed"
        ) from None


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError, HTTPException):
        return f"the server answers {error.code} {error.reason}"


def _hint(status: int) -> str | None:
    return "give --api-key, or set OPENAI_API_KEY" if status == 401 else None


class Talk:
    """A conversation, which ends with its `with` block or by `close`.

    `talk("What is 2+2?")` is the whole reply, `talk.say(...)` yields its parts as they come.
    `talk.messages` is what was said, without the system message, which is `talk.system`.
    """

    def __init__(
        self,
        server: ChatClient,
        model: str,
        asked: Mapping[str, Any],
        system: str | None = None,
        said: str = "",
    ) -> None:
        self.server = server
        self.model = model
        self.said = said or model
        """What a person calls the model."""
        self.asked = dict(asked)
        """What goes with every request: temperature, max_tokens, seed."""
        self.system = system
        self.messages: list[dict[str, str]] = []
        self._open = ExitStack()

    def say(self, text: str) -> Iterator[str]:
        """Yield the parts of the reply. The conversation keeps the reply as far as it came; if
        nothing came, not the question either."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*self.messages, {"role": "user", "content": text}]
        body = {"model": self.model, "messages": [*first, *messages], **self.asked}
        received: list[str] = []
        try:
            for part in self.server.stream({k: v for k, v in body.items() if v is not None}):
                received.append(part)
                yield part
        finally:
            if received:
                reply = {"role": "assistant", "content": "".join(received)}
                self.messages = [*messages, reply]

    def __call__(self, text: str) -> str:
        """The reply. Raises PtlError with the server's message."""
        return "".join(self.say(text))

    def __repr__(self) -> str:
        # Without the key.
        return f"Talk({self.said}: {len(self.messages)} messages, at {self.server.base_url})"

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = []

    def close(self) -> None:
        """End the engine that was started for it. Safe to call again."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def begin(
    target: str | None,
    home: Path,
    *,
    system: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    **asked: Any,
) -> Talk:
    """A conversation with a target, on an engine of its own or on the server at `base_url`.

    Args:
        target: as `find` has it; on a server also any name that it knows, or None for its first.
        asked: temperature, max_tokens, seed.

    Raises:
        UsageError: there is no such target, or no such address.
        PtlError: the engine did not start, or the server cannot be reached.
    """
    check_address(base_url, "base_url")
    with ExitStack() as stack:
        if base_url is None:
            found = find(target, home)
            require_here(found, home)
            base_url, api_key = stack.enter_context(_engine(found, home))
            if found.renderer != AS_EVER:
                asked["chat_template_kwargs"] = found.renderer.variables
            model, said = found.model, found.said
        else:
            model = said = _remote(target, home)
        talk = Talk(ChatClient(base_url, api_key or ""), model, asked, system, said)
        if not model:
            talk.model = talk.said = talk.server.first_model()
        talk._open = stack.pop_all()
    return talk


def _remote(target: str | None, home: Path) -> str:
    """The model's name on a server; a run's is its checkpoint's path."""
    if target is None or target.startswith("tinker://"):
        return target or ""
    try:
        found = find(target, home)
    except UsageError:
        return target  # the server knows better
    return found.model if found.model.startswith("tinker://") else target
