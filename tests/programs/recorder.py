"""An engine in this process that notes what programs ask of it: routes and the fields they fill."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tinker.proto import tinker_public_pb2 as pb

from posttrain_recipes.engine.app import build
from posttrain_recipes.engine.core.service import Service
from posttrain_recipes.engine.http.auth import Access
from tests.listening import listening

TOKEN = "tml-of-an-engine-that-takes-notes"
UNTOLD = ("client/", "telemetry", "session_heartbeat", "retrieve_future", "healthz")
"""How often the SDK asks these is up to the clock, and never up to a program."""

Asked = tuple[str, tuple[str, ...]]
"""A route, as `POST asample`, and the fields of the request that hold something."""


@dataclass
class Recorder:
    """The engine's app, which notes each request before it answers it."""

    app: Any
    asked: set[Asked] = field(default_factory=set)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self._note(scope, body)
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)

    def _note(self, scope: Any, body: bytes) -> None:
        path = scope["path"].removeprefix("/api/v1/")
        if path.startswith(UNTOLD):
            return
        found = {f"?{key}" for key, _ in parse_qsl(scope["query_string"].decode())}
        if path == "forward_backward":
            found |= set(_set_in(pb.ForwardBackwardRequest.FromString(body)))
        elif body:
            found |= set(_filled(json.loads(body)))
        self.asked.add((f"{scope['method']} {_route(path)}", tuple(sorted(found))))


def _route(path: str) -> str:
    """The path without what names one session, run, sampler or checkpoint."""
    path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}(:[a-z]+:\d+)?", "ID", path)
    return re.sub(r"(weights)/[^/]+", r"\1/NAME", path)


def _filled(value: Any, at: str = "") -> Iterator[str]:
    """The paths of all that is not null, false or empty in JSON; what users name is `*`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if at in ("user_metadata", "tags"):
                yield f"{at}.*"
            else:
                yield from _filled(inner, f"{at}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict | list):
                yield from _filled(inner, f"{at}[]")
            else:
                yield at
    elif value is not None and value is not False:
        yield at


def _set_in(message: Any, at: str = "") -> Iterator[str]:
    """The same of a protobuf message."""
    for about, value in message.ListFields():
        name = f"{at}.{about.name}".lstrip(".")
        if about.message_type is None:
            yield name
        elif about.message_type.GetOptions().map_entry:
            for key, inner in value.items():
                where = f"{name}.{key}"
                yield from _set_in(inner, where) if hasattr(inner, "ListFields") else [where]
        else:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from _set_in(inner, name)


@contextmanager
def recording(models: dict[str, str], folder: Path) -> Iterator[tuple[str, Recorder]]:
    """The address of an engine with `models` (name -> directory), and what it is asked."""
    substitutes = {"stable_reinforce": "ppo"}
    service = Service(models, folder, substitutes=substitutes)
    recorder = Recorder(build(service, Access(TOKEN)))
    with listening(recorder) as address:
        yield address, recorder


def written(asked: set[Asked]) -> list[list[Any]]:
    """As recordings have it."""
    return [[route, list(fields)] for route, fields in sorted(asked)]
