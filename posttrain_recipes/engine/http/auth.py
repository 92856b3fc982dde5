"""Authentication: the API token, and the Host headers that the engine accepts."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from posttrain_recipes.engine.core.transfers import SIGNED

HEALTH = ("/healthz", "/api/v1/healthz")


@dataclass(frozen=True)
class Access:
    """What a request must have to be served: the token, and an accepted host name."""

    token: str
    hosts: frozenset[str] = frozenset()
    any_address: bool = False  # bound to a wildcard: any numeric address is accepted

    def allows_host(self, host: str) -> bool:
        """Whether a Host header names this engine. Protects against DNS rebinding: a web page whose
        own host name resolves to 127.0.0.1 sends that name."""
        name = host.rsplit(":", 1)[0] if host.count(":") == 1 else host
        name = name[1:].split("]")[0] if name.startswith("[") else name
        if name in {"localhost", "127.0.0.1", "::1"} | self.hosts:
            return True
        with contextlib.suppress(ValueError):
            return self.any_address and bool(ipaddress.ip_address(name))
        return False

    def has_token(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the request shows the token, as X-API-Key or as Authorization: Bearer."""
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = headers.get(b"x-api-key") or (bearer if scheme.lower() == b"bearer" else b"")
        return hmac.compare_digest(given.strip(), self.token.encode())


class AuthMiddleware:
    """ASGI middleware that refuses requests without access before their body is read."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a refusal."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        path = scope["path"]
        if not self.access.allows_host(headers.get(b"host", b"").decode("latin-1")):
            return error(403, "this engine does not answer to that Host", path)
        if path in HEALTH or path.startswith(SIGNED):  # the route checks the signature
            return None
        if not self.access.has_token(headers):
            return error(
                401,
                "wrong or missing X-API-Key (or Authorization: Bearer): it is the token the "
                "engine started with",
                path,
            )
        return None


_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          429: "rate_limit_error"}  # fmt: skip


def error(status: int, message: str, path: str = "", code: str | None = None) -> JSONResponse:
    """An error as the clients of the route expect it: OpenAI's form below /v1."""
    if path.startswith("/v1/"):
        status = 400 if status in (410, 422) else status
        if code is None and status == 404:
            code = "model_not_found"
        if code is None and "context window" in message:
            code = "context_length_exceeded"
        kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        return JSONResponse(body, status_code=status)
    return JSONResponse({"detail": message, "message": message}, status_code=status)
