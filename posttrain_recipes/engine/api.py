"""HTTP: routes, authentication, limits. Everything else is the service's business.

A request is parsed, handed to the service, and acknowledged; its result is fetched by
`retrieve_future`, a long poll, because the SDK polls again at once when it is told "not yet".
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from posttrain_recipes.engine import checkpoints, listings, wire
from posttrain_recipes.engine.scheduler import Pending
from posttrain_recipes.engine.service import Service
from posttrain_recipes.engine.wire import RequestError

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]
PREFIX = "/api/v1"
POLL_S = 30.0  # the SDK waits 45 s for an answer
MAX_BODY = 128 << 20
REAP_EVERY_S = 30.0

# The SDK's own limits, raised: on a loopback there is no bandwidth to spare.
CLIENT_CONFIG = {
    "pjwt_auth_enabled": False,
    "parallel_fwdbwd_chunks": True,
    "proto_compress_fwdbwd": False,
    "sample_dispatch_bytes_semaphore_size": 256 << 20,
    "inflight_response_bytes_semaphore_size": 256 << 20,
    "use_pyqwest_transport": True,
    "sample_enable_stuck_detection": False,
}


@dataclass(frozen=True)
class Access:
    """Who may ask: the token, and the host names the engine answers to."""

    token: str
    hosts: frozenset[str] = frozenset()
    any_address: bool = False  # bound to a wildcard: any numeric address is ours

    def knows(self, host: str) -> bool:
        """Whether a Host header names this engine. A web page that points a name of its own at
        127.0.0.1 (DNS rebinding) does not know ours."""
        name = host.rsplit(":", 1)[0] if host.count(":") == 1 else host
        name = name[1:].split("]")[0] if name.startswith("[") else name
        if name in {"localhost", "127.0.0.1", "::1"} | self.hosts:
            return True
        with contextlib.suppress(ValueError):
            return self.any_address and bool(ipaddress.ip_address(name))
        return False


class Guard:
    """Refuses strangers before anything is read."""

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
        if not self.access.knows(headers.get(b"host", b"").decode("latin-1")):
            return _error(403, "this engine does not answer to that Host")
        if scope["path"] in ("/healthz", f"{PREFIX}/healthz"):
            return None
        given = headers.get(b"x-api-key", b"")
        if not hmac.compare_digest(given, self.access.token.encode()):
            return _error(
                401, "wrong or missing X-API-Key: it is the token the engine started with"
            )
        return None


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"detail": message, "message": message}, status_code=status)


async def _body(request: Request) -> bytes:
    """The request's body. Raises RequestError 413 or 415."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "this engine takes bodies as they are, not compressed")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise RequestError(413, f"a request may hold {MAX_BODY} bytes: send fewer datums")
        parts.append(part)
    return b"".join(parts)


def _guarded(endpoint: Endpoint) -> Endpoint:
    """Turn a RequestError into its status, and a client that hung up into nothing."""

    async def wrapped(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RequestError as error:
            return _error(error.status, str(error))
        except ClientDisconnect:
            return Response(status_code=400)

    return wrapped


def _reply(result: Pending | dict[str, Any]) -> Response:
    if isinstance(result, Pending):
        return JSONResponse({"request_id": result.request_id, **result.note})
    return JSONResponse(result)


def _post(path: str, kind: type[T], handle: Callable[[T], Pending | dict[str, Any]]) -> Route:
    async def endpoint(request: Request) -> Response:
        return _reply(handle(wire.parse(kind, await _body(request))))

    return Route(f"{PREFIX}/{path}", _guarded(endpoint), methods=["POST"])


def _fixed(path: str, answer: dict[str, Any], method: str = "POST") -> Route:
    async def endpoint(request: Request) -> Response:
        if method == "POST":
            await _body(request)
        return JSONResponse(answer)

    return Route(path, _guarded(endpoint), methods=[method])


def _on(path: str, method: str, handle: Callable[[Request], dict[str, Any]]) -> Route:
    async def endpoint(request: Request) -> Response:
        return JSONResponse(handle(request))

    return Route(f"{PREFIX}/{path}", _guarded(endpoint), methods=[method])


def _page(request: Request, default: int) -> tuple[int, int]:
    try:
        limit = int(request.query_params.get("limit", default))
        offset = int(request.query_params.get("offset", 0))
    except ValueError:
        raise RequestError(400, "limit and offset must be whole numbers") from None
    if not (0 <= limit <= 10_000 and offset >= 0):
        raise RequestError(400, "limit must be from 0 to 10000 and offset not negative")
    return limit, offset


def build(service: Service, access: Access) -> ASGIApp:
    """The engine as an ASGI application. Its lifespan starts and stops the worker."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        reaper = asyncio.create_task(_reap(service))
        yield
        reaper.cancel()
        await service.close()

    return Guard(Starlette(routes=_routes(service), lifespan=lifespan), access)


async def _reap(service: Service) -> None:
    while True:
        await asyncio.sleep(REAP_EVERY_S)
        service.reap()


def _routes(service: Service) -> list[Route]:
    state, training, sampling = service.state, service.training, service.sampling

    async def forward_backward(request: Request) -> Response:
        # Parsed on a thread: the body may be megabytes, and the first one imports the messages.
        body = await _body(request)
        return _reply(
            training.forward_backward(await asyncio.to_thread(wire.parse_forward_backward, body))
        )

    async def retrieve(request: Request) -> Response:
        ref = wire.parse(wire.FutureRef, await _body(request))
        answer = await state.scheduler.wait(ref.request_id, POLL_S)
        if answer is None:
            return JSONResponse({"queue_state": "active"}, status_code=408)
        return Response(answer[0], media_type=answer[1])

    async def finish(request: Request) -> Response:
        await _body(request)
        return JSONResponse(service.finish_session(request.path_params["session"]))

    async def set_ttl(request: Request) -> Response:
        ttl = wire.parse(wire.Ttl, await _body(request)).ttl_seconds
        state.store.amend(_checkpoint_of(request), expires_at=checkpoints.expiry(ttl))
        return JSONResponse({})

    async def delete(request: Request) -> Response:
        await asyncio.to_thread(state.store.delete, _checkpoint_of(request))
        return JSONResponse({})

    def checkpoints_of(request: Request) -> dict[str, Any]:
        return listings.checkpoints(state, request.path_params["run"], None, 0)

    def sessions(request: Request) -> dict[str, Any]:
        limit, offset = _page(request, 20)
        return {"sessions": list(state.sessions)[::-1][offset : offset + limit]}

    one = "training_runs/{run}/checkpoints/{kind}/{name}"
    return [
        _fixed("/healthz", {"status": "ok"}, "GET"),
        _fixed(f"{PREFIX}/healthz", {"status": "ok"}, "GET"),
        _fixed(f"{PREFIX}/client/config", CLIENT_CONFIG),
        _fixed(f"{PREFIX}/client/dynamic_config", {"refresh_interval_sec": 3600}),
        _fixed(f"{PREFIX}/telemetry", {"status": "accepted"}),
        _on("get_server_capabilities", "GET", lambda r: listings.capabilities(state)),
        _post("create_session", wire.CreateSession, service.create_session),
        _post("session_heartbeat", wire.SessionRef, service.heartbeat),
        Route(f"{PREFIX}/sessions/{{session}}/finish", _guarded(finish), methods=["POST"]),
        _on("sessions", "GET", sessions),
        _on("sessions/{session}", "GET", lambda r: service.get_session(r.path_params["session"])),
        _post("create_model", wire.CreateModel, training.create_model),
        _post("unload_model", wire.ModelRef, training.unload_model),
        _post("get_info", wire.ModelRef, training.get_info),
        Route(f"{PREFIX}/forward_backward", _guarded(forward_backward), methods=["POST"]),
        _post("optim_step", wire.OptimStep, training.optim_step),
        _post("save_weights", wire.SaveWeights, training.save_weights),
        _post("save_weights_for_sampler", wire.SaveWeights, training.save_weights_for_sampler),
        _post("load_weights", wire.LoadWeights, training.load_weights),
        _post("create_sampling_session", wire.CreateSampler, sampling.create_sampling_session),
        _post(
            "join_sampling_session",
            wire.SamplerRef,
            lambda ref: sampling.join_sampling_session(ref.sampling_session_id),
        ),
        _on(
            "samplers/{sampler}",
            "GET",
            lambda r: sampling.get_sampler(r.path_params["sampler"]),
        ),
        _post("asample", wire.Sample, sampling.sample),
        Route(f"{PREFIX}/retrieve_future", _guarded(retrieve), methods=["POST"]),
        _post("weights_info", wire.PathRef, lambda ref: listings.weights_info(state, ref)),
        _on("training_runs", "GET", lambda r: listings.training_runs(state, *_page(r, 20))),
        _on(
            "training_runs/{run}",
            "GET",
            lambda r: listings.training_run(state, r.path_params["run"]),
        ),
        _on("training_runs/{run}/checkpoints", "GET", checkpoints_of),
        _on(
            "checkpoints",
            "GET",
            lambda r: listings.checkpoints(state, None, *_page(r, 100)),
        ),
        Route(f"{PREFIX}/{one}", _guarded(delete), methods=["DELETE"]),
        Route(f"{PREFIX}/{one}/ttl", _guarded(set_ttl), methods=["PUT"]),
        *(
            Route(f"{PREFIX}/{path}", _refuse(path), methods=["GET", "POST", "PUT", "DELETE"])
            for path in _ELSEWHERE
        ),
    ]


_ELSEWHERE = {
    "save_weights_external": "use save_weights_for_sampler: it writes PEFT's format to the "
    "engine's --data-dir",
    "copy_weights": "load the checkpoint by its path: this engine has one owner",
    "create_custom_loss": "use forward_backward_custom, which runs the loss on your side",
    "sessions/search": "list the sessions instead",
    "training_runs/{run}/checkpoints/{kind}/{name}/publish": "there is nobody to publish to",
}


def _refuse(path: str) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return _error(422, f"this engine does not serve {path}: {_ELSEWHERE[path]}")

    return endpoint


def _checkpoint_of(request: Request) -> checkpoints.Path_:
    parts = request.path_params
    return checkpoints.parse_path(f"tinker://{parts['run']}/{parts['kind']}/{parts['name']}")
