"""Helpers that routes are built from: bounded bodies, errors as statuses, paging."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.core.futures import Pending
from posttrain_recipes.engine.http.auth import error
from posttrain_recipes.engine.wire import RequestError

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]
PREFIX = "/api/v1"
MAX_BODY = 128 << 20
FINAL = (400, 404, 409, 422, 507)  # statuses after which a client does not retry


async def body_of(request: Request) -> bytes:
    """The request's body. Raises RequestError 413 or 415."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "this engine takes bodies as they are, not compressed")
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdecimal() else 0
    parts = []
    if size <= MAX_BODY:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > MAX_BODY:
                break
            parts.append(part)
    if size > MAX_BODY:
        raise RequestError(413, f"a request may hold {MAX_BODY} bytes: send fewer datums")
    return b"".join(parts)


def guarded(endpoint: Endpoint) -> Endpoint:
    """The endpoint with RequestErrors answered as their status, and disconnects ignored."""

    async def wrapped(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RequestError as failure:
            return error(failure.status, str(failure), request.url.path)
        except ClientDisconnect:
            return Response(status_code=400)

    return wrapped


def route(path: str, method: str, endpoint: Endpoint) -> Route:
    """A route below the API's prefix."""
    return Route(f"{PREFIX}/{path}", guarded(endpoint), methods=[method])


def content(kind: str, body: bytes) -> bytes:
    """A digest of a request of this kind, by which it is known when it is sent again."""
    digest = hashlib.blake2b(kind.encode() + b"\0", digest_size=16)
    digest.update(body)
    return digest.digest()


def reply(result: Pending | dict[str, Any], kind: str, asked: bytes) -> Response:
    """The acknowledgement of a request of this kind, or the answer where it is there at once.

    Args:
        asked: the request's `content`.

    Raises:
        RequestError: 409, another request was accepted in its place.
    """
    if isinstance(result, Pending):
        result.must_be(asked)
        result.kind = result.kind or kind
        return JSONResponse({"request_id": result.request_id, **result.note})
    return JSONResponse(result)


def post(path: str, kind: type[T], handle: Callable[[T], Pending | dict[str, Any]]) -> Route:
    """POST `path`, with a JSON body of this kind."""

    async def endpoint(request: Request) -> Response:
        body = await body_of(request)
        return reply(handle(wire.parse(kind, body)), path, content(path, body))

    return route(path, "POST", endpoint)


def ordered(
    path: str,
    parse: Callable[[bytes], T],
    handle: Callable[[T], Pending],
    refused: Callable[[bytes], None],
    on_thread: bool = False,
    identity: Callable[[bytes], bytes] = bytes,
) -> Route:
    """POST `path`, one of a model's operations.

    Args:
        refused: is handed the body of one that is at fault, and will not come again, so that those
            after it do not wait for it.
        identity: what of a body is the same where the client sends the operation again.
    """

    def read(body: bytes) -> tuple[T, bytes]:
        return parse(body), content(path, identity(body))

    async def endpoint(request: Request) -> Response:
        body = await body_of(request)
        try:
            # A body may be megabytes: whoever else asks does not wait until it is read.
            parsed, asked = await asyncio.to_thread(read, body) if on_thread else read(body)
            return reply(handle(parsed), path, asked)
        except RequestError as failure:
            if failure.status in FINAL:
                refused(body)
            raise

    return route(path, "POST", endpoint)


def fixed(path: str, answer: dict[str, Any], method: str = "POST") -> Route:
    """A route that always answers the same. `path` is the whole one."""

    async def endpoint(request: Request) -> Response:
        if method == "POST":
            await body_of(request)
        return JSONResponse(answer)

    return Route(path, guarded(endpoint), methods=[method])


def get(path: str, handle: Callable[[Request], dict[str, Any]]) -> Route:
    """GET `path`."""

    async def endpoint(request: Request) -> Response:
        return JSONResponse(handle(request))

    return route(path, "GET", endpoint)


def refuse(path: str, what_to_do: str) -> Route:
    """A route of the protocol that this engine does not support, for any method."""

    async def endpoint(request: Request) -> Response:
        raise RequestError(422, f"this engine does not serve {path}: {what_to_do}")

    return Route(
        f"{PREFIX}/{path}", guarded(endpoint), methods=["GET", "POST", "PUT", "DELETE", "PATCH"]
    )


def page(request: Request, default: int) -> tuple[int, int]:
    """The limit and offset asked for. Raises RequestError 400."""
    try:
        limit = int(request.query_params.get("limit", default))
        offset = int(request.query_params.get("offset", 0))
    except ValueError:
        raise RequestError(400, "limit and offset must be whole numbers") from None
    if not (0 <= limit <= 10_000 and offset >= 0):
        raise RequestError(400, "limit must be from 0 to 10000 and offset not negative")
    return limit, offset
