"""A translator in a thread of this process: its port, its token, and its end."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from posttrain_recipes.errors import PtlError

START_S = 30.0
STOP_S = 15.0
"""How long the end is waited for; adapters that nobody finished are given back by then."""


@dataclass(frozen=True)
class Loopback:
    """Where a translator listens, and the token that it asks for."""

    base_url: str
    api_key: str = field(repr=False)


@contextmanager
def translated(address: str, key: str) -> Iterator[Loopback]:
    """A translator of the dialect 0.25 for the server at `address`, as long as the context lasts.

    It answers on the loopback interface alone, to whoever shows its token, which nobody else is
    told, and to no other Host, as the embedded engine does. `key` goes to the server alone.

    Raises:
        PtlError: it did not start.
    """
    import uvicorn

    from posttrain_recipes.dialects.routes import build
    from posttrain_recipes.engine.http.auth import Access, AuthMiddleware

    token = f"tml-{secrets.token_hex(24)}"
    app = AuthMiddleware(build(address, key), Access(token))
    # Nothing is logged: requests hold prompts, and what goes wrong is in the answer.
    config = uvicorn.Config(
        app, log_config=None, log_level="critical", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    door = socket.create_server(("127.0.0.1", 0))
    port = door.getsockname()[1]
    thread = threading.Thread(
        target=server.run, args=([door],), name="dialect-translator", daemon=True
    )
    thread.start()
    try:
        _wait_until_started(server, thread)
        yield Loopback(f"http://127.0.0.1:{port}", token)
    finally:
        server.should_exit = True
        thread.join(STOP_S)
        door.close()


def _wait_until_started(server: object, thread: threading.Thread) -> None:
    pause, waited = threading.Event(), 0.0
    while not server.started:  # type: ignore[attr-defined]
        if not thread.is_alive() or waited > START_S:
            raise PtlError(
                "the translator for the server's dialect did not start",
                hint="'dialect: current' does without it, if the server speaks that",
                code="engine-unreachable",
            )
        pause.wait(0.01)
        waited += 0.01
