"""The way to a server that is busy, costs money and loses answers. See `core/hosted.py`."""

from __future__ import annotations

import json
from collections import Counter

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posttrain_recipes.engine.http.routing import PREFIX

TURNED_AWAY = 20
"""Every so manieth request for samples is."""
PAUSED = 10
"""Every so manieth answer is waited for in a queue that is paused."""
UNPAID = 300
"""So manieth poll hears that there is no money; the SDK waits 5 s, and goes on."""
TAKEN = (
    "Checkpoint with the same name already exists. Please choose a different name to avoid "
    "overwriting."
)


class HostedMiddleware:
    """ASGI middleware that has requests meet what they meet there."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._count: Counter[str] = Counter()
        self._saved: set[tuple[str, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or have it meet something."""
        path = scope.get("path", "").removeprefix(PREFIX)
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        self._count[path] += 1
        turn = self._count[path]
        met = None
        if path == "/asample" and turn % TURNED_AWAY == 0:
            met = JSONResponse({"detail": "too many requests"}, 429)
        elif path == "/retrieve_future" and turn == UNPAID:
            met = JSONResponse({"detail": "the account has no funds"}, 402)
        elif path == "/retrieve_future" and turn % PAUSED == 0:
            state = {"queue_state": "paused_capacity", "queue_state_reason": "out of capacity"}
            met = JSONResponse({"type": "try_again", **state}, 408)
        elif path == "/save_weights":
            await self._save(scope, receive, send)
            return
        await (met or self.app)(scope, receive, send)

    async def _save(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Do it, and lose the first answer; refuse it when it is asked for again, unless it says
        `overwrite`. One that the engine refuses is answered as ever, and takes no name."""
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None

        async def again() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        if not isinstance(asked, dict):
            await self.app(scope, again, send)
            return
        key = str(asked.get("model_id")), str(asked.get("path"))
        if key in self._saved:
            taken = JSONResponse({"detail": TAKEN}, 409)
            await (self.app if asked.get("overwrite") else taken)(scope, again, send)
            return
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        self._saved.add(key)
        await self.app(scope, again, keep)
        if answer[0]["status"] == 200:
            await JSONResponse({"detail": "the answer was lost"}, 503)(scope, again, send)
            return
        self._saved.discard(key)
        for message in answer:
            await send(message)
