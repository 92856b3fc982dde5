"""`ptl chat`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from posttrain_recipes import models
from posttrain_recipes.cli.options import check_address, home_option, secret_option
from posttrain_recipes.cli.target import ChatTarget, find, require_here
from posttrain_recipes.cli.terminal import exact, styled
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.options import AS_EVER
from posttrain_recipes.shown import redact
from posttrain_recipes.store import default_home

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HELP = """\
/system TEXT   say who the model is, and start over (alone: nobody)
/reset         forget what was said
/exit          leave; Ctrl-D does too. Ctrl-C stops a reply"""


@click.command()
@click.argument("target", required=False, metavar="[TARGET]")
@click.option("--prompt", "-p", help="Ask this, print the reply and end; so does piped input.")
@click.option("--system", help="A system message to begin with.")
@click.option("--temperature", default=0.7, show_default=True, type=click.FloatRange(0, 2))
@click.option("--max-tokens", default=512, show_default=True, type=click.IntRange(1))
@click.option("--seed", type=int, help="The same seed gives the same reply.")
@click.option("--base-url", help="Any OpenAI-compatible server, such as 'ptl serve' elsewhere.")
@secret_option("api-key", "OPENAI_API_KEY", "The server's key. [default: $OPENAI_API_KEY]")
@home_option
def chat(
    target: str | None,
    prompt: str | None,
    system: str | None,
    temperature: float,
    max_tokens: int,
    seed: int | None,
    base_url: str | None,
    api_key: str | None,
    home: Path | None,
) -> None:
    """Talk to a model in the terminal.

    TARGET is a run (sft_then_dpo-1), one of its stages (sft_then_dpo-1/sft), a tinker:// path, or
    a model: bundled, a directory, or a hub id. Without one it is the last run.
    """
    home = default_home(home)
    check_address(base_url, "--base-url")
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise UsageError("there is nothing to ask", hint="give --prompt TEXT, or pipe it in")
    asked: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
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
        talk = Talk(ChatClient(base_url, api_key or ""), model, asked, system)
        if not model:
            talk.model = said = talk.server.first_model()
        if prompt is not None:
            for part in talk.say(prompt):
                exact(part)
            click.echo()
        else:
            _converse(talk, said)


def _remote(target: str | None, home: Path) -> str:
    """The model's name on a server; a run's is its checkpoint's path."""
    if target is None or target.startswith("tinker://"):
        return target or ""
    try:
        found = find(target, home)
    except UsageError:
        return target  # the server knows better
    return found.model if found.model.startswith("tinker://") else target


@contextmanager
def _engine(target: ChatTarget, home: Path) -> Iterator[tuple[str, str]]:
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
                    raise PtlError(
                        str(told.get("message", told) if hasattr(told, "get") else told),
                        code="server-failed",
                    )
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


@dataclass
class Talk:
    """A conversation."""

    server: ChatClient
    model: str
    asked: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

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


def _converse(talk: Talk, said: str) -> None:
    with suppress(ImportError):  # lines can be edited, and the last ones recalled
        import readline  # noqa: F401
    styled(f"{said}   /help for commands, Ctrl-D to leave", dim=True)
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if text in ("/exit", "/quit"):
            return
        if text.startswith("/"):
            _command(talk, text)
        elif text:
            _reply(talk, text)


def _command(talk: Talk, text: str) -> None:
    word, _, rest = text.partition(" ")
    if word in ("/reset", "/system"):
        talk.messages = []
        if word == "/system":
            talk.system = rest.strip() or None
    else:
        styled(HELP, dim=True)


def _reply(talk: Talk, text: str) -> None:
    parts = talk.say(text)
    try:
        for part in parts:
            exact(part)
        click.echo()
    except KeyboardInterrupt:
        parts.close()  # type: ignore[attr-defined]
        styled(" (stopped)", dim=True)
    except PtlError as error:
        hint = "\n/reset forgets what was said" if "context window" in str(error) else ""
        styled(redact(f"{error}{hint}"), fg="red" if "NO_COLOR" not in os.environ else None)
