"""Serves the page of one run on the loopback, to whoever has its token."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain_recipes.errors import PtlError
from posttrain_recipes.watch.feed import RunFeed
from posttrain_recipes.watchlog import clean

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC = Path(__file__).parent / "static"
KINDS = {
    "page.html": "text/html",
    "page.css": "text/css",
    "parts.js": "text/javascript",
    "stages.js": "text/javascript",
    "page.js": "text/javascript",
}
POLL_S = 0.4
"""Between two looks at the files."""
BEAT_S = 15.0
"""Of silence, after which a comment keeps the connection."""
HOSTS = ("localhost", "127.0.0.1")
HEADERS = {
    # All that the page is made of comes from here, and nothing that it shows can run.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def listening(port: int = 0) -> socket.socket:
    """A socket on the loopback; port 0 is a free one.

    Raises:
        PtlError: the port is taken.
    """
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(("127.0.0.1", port))
        made.listen(16)
    except OSError as error:
        made.close()
        raise PtlError(
            f"cannot listen on 127.0.0.1:{port}",
            why=error.strerror,
            hint="name another --port, or none: a free one is taken then",
        ) from None
    return made


def new_token() -> str:
    """What a page has to show."""
    return secrets.token_urlsafe(24)


def address(sock: socket.socket, token: str) -> str:
    """What to open in a browser."""
    return f"http://127.0.0.1:{sock.getsockname()[1]}/?key={token}"


class WatchGuard:
    """ASGI middleware: only who is asked by a loopback name, with the token, is answered.

    The token comes once, in the page's address, and then in a cookie of this port alone. A web page
    whose name resolves to 127.0.0.1 sends that name, and is refused.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self.app, self.token = app, token
        self.cookie = f"ptl_watch_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            return
        request = Request(scope)
        given = request.query_params.get("key", "") if scope["path"] == "/" else ""
        shown = given or request.cookies.get(self.cookie, "")
        headers = dict(HEADERS)
        if request.headers.get("host", "").rpartition(":")[0] not in HOSTS:
            refused = "this page does not answer to that Host"
        elif not hmac.compare_digest(shown.encode(), self.token.encode()):
            refused = "open the address that 'ptl watch' printed: the token in it is the key"
        else:
            refused = ""
        if given and not refused:
            headers["Set-Cookie"] = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in headers.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        app = PlainTextResponse(refused, 403) if refused else self.app
        await app(scope, receive, with_headers)


def app(home: Path, run: str, token: str, port: int, ended: Callable[[], bool]) -> Starlette:
    """The page of a run.

    Args:
        ended: whether the server is about to end: pages are told, and do not connect again.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import FileResponse, StreamingResponse
    from starlette.routing import Route

    def static(name: str) -> Route:
        async def file(request: Request) -> Response:
            return FileResponse(STATIC / name, media_type=KINDS[name])

        return Route("/" if name == "page.html" else f"/{name}", file)

    async def events(request: Request) -> Response:
        feed = RunFeed.resumed(home, run, request.headers.get("last-event-id", ""))
        return StreamingResponse(_events(feed, ended), media_type="text/event-stream")

    return Starlette(
        routes=[*map(static, KINDS), Route("/events", events)],
        middleware=[Middleware(WatchGuard, token=token, port=port)],
    )


async def _events(feed: RunFeed, ended: Callable[[], bool]) -> AsyncIterator[str]:
    """What a feed tells, as Server-Sent Events."""
    yield "retry: 1000\n\n"
    silent = 0.0
    while True:
        last = ended()  # what was written until now is told
        polled = iter(feed.poll())
        while (told := await asyncio.to_thread(next, polled, None)) is not None:
            name, data = told
            silent = 0.0
            yield _event(name, data, feed.cursor_text)
        if last:
            yield _event("end", {"run": feed.run}, feed.cursor_text)
            return
        if silent == 0.0:
            yield _event("ready", {}, feed.cursor_text)
        await asyncio.sleep(POLL_S)
        silent += POLL_S
        if silent >= BEAT_S:
            silent = POLL_S
            yield ": still here\n\n"


def _event(name: str, data: object, cursor: str) -> str:
    try:
        text = json.dumps(data, allow_nan=False)
    except ValueError:  # a file that others wrote may have numbers that no browser reads
        text = json.dumps(clean(data), allow_nan=False)
    return f"event: {name}\nid: {cursor}\ndata: {text}\n\n"


def server(home: Path, run: str, token: str, sock: socket.socket) -> uvicorn.Server:
    """A server for `sock`; `run(sockets=[sock])` serves until its `should_exit`, or a signal."""
    import uvicorn

    def ended() -> bool:
        return made.should_exit

    page = app(home, run, token, sock.getsockname()[1], ended)
    config = uvicorn.Config(
        page,
        log_level="error",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
        server_header=False,
    )
    made = uvicorn.Server(config)
    return made
