"""The engine as an ASGI application: the routes of Tinker's protocol over the service.

A request is parsed, handed to the service, and acknowledged; its result is fetched by
`retrieve_future`, a long poll, because the SDK polls again at once when it is told "not yet".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.core import queries
from posttrain_recipes.engine.core.futures import Pending
from posttrain_recipes.engine.core.metrics import MetricsMiddleware
from posttrain_recipes.engine.core.service import Finish, Service
from posttrain_recipes.engine.core.transfers import SIGNED, CopyWeights, SaveExternal, Signer
from posttrain_recipes.engine.http.auth import Access, AuthMiddleware, error
from posttrain_recipes.engine.http.hosted import HostedMiddleware
from posttrain_recipes.engine.http.routing import (
    PREFIX,
    body_of,
    content,
    fixed,
    get,
    guarded,
    ordered,
    page,
    post,
    refuse,
    reply,
    route,
)
from posttrain_recipes.engine.openai import routes as openai
from posttrain_recipes.engine.storage import checkpoints
from posttrain_recipes.engine.wire import RequestError

if TYPE_CHECKING:
    from posttrain_recipes.engine.train.custom_loss import LossGraph

T = TypeVar("T")
POLL_S = 30.0  # the SDK waits 45 s for an answer
REAP_EVERY_S = 30.0
SWEEP_EVERY = 20  # reapings between two times that what has expired is deleted

# The SDK's own limits, raised: on a loopback there is no bandwidth to spare.
CLIENT_CONFIG = {
    "pjwt_auth_enabled": False,
    "parallel_fwdbwd_chunks": True,
    "proto_compress_fwdbwd": False,
    "custom_loss_server_side": True,
    "sample_dispatch_bytes_semaphore_size": 256 << 20,
    "inflight_response_bytes_semaphore_size": 256 << 20,
    "use_pyqwest_transport": True,
    "sample_enable_stuck_detection": False,
    "sample_join_sampling_session": True,
}
DYNAMIC_CONFIG = {"refresh_interval_sec": 3600, "sample_cancel_enabled": True}

ELSEWHERE = {
    "auth/token": "its key is the token it started with",
    "auth/apikey/me": "its key is the token it started with; export TINKER_API_KEY",
    "sessions/{session}/project": "it has no projects: give sessions a display_name or "
    "user_metadata",
    "sessions/{session}/trace_export": "its /metrics tell how long operations take",
    "billing/usage/events": "nothing is billed",
    "billing/usage/checkpoints/current": "nothing is billed; checkpoints are listed with their "
    "size",
    "audit": "it has one owner; its log names every request",
}


@dataclass(frozen=True)
class SamplerTarget:
    """The sampler whose completions are polled, and which copy of its client polls."""

    sampling_session_id: str
    type: str = "sampling_session"
    cloned_sampler_id: int = 0


@dataclass(frozen=True)
class RetrieveFutures:
    """A poll for the requests of a sampling session that were answered since `prev_cursor`."""

    target: SamplerTarget
    prev_cursor: int = 0
    timeout: float | None = None
    retrieved_request_ids: list[str] = Field(default_factory=list)


def build(service: Service, access: Access) -> ASGIApp:
    """The engine as an ASGI application. Its lifespan starts and stops the worker."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        reaper = asyncio.create_task(_reap(service))
        yield
        reaper.cancel()
        await service.close()

    async def unknown(request: Request, failure: Exception) -> Response:
        status = failure.status_code if isinstance(failure, HTTPException) else 500
        message = f"this engine has no route {request.method} {request.url.path}"
        return error(status, message, request.url.path)

    routes = [
        *_service(service),
        *_training(service),
        *_sampling(service),
        *_checkpoints(service, access),
        *openai.routes(service),
        *(refuse(*item) for item in ELSEWHERE.items()),
    ]
    handlers: Any = {404: unknown, 405: unknown}
    app: ASGIApp = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    if service.state.double is not None:
        app = HostedMiddleware(app)
    return MetricsMiddleware(AuthMiddleware(app, access), service.metrics)


async def _reap(service: Service) -> None:
    count = 0
    while True:
        if count % SWEEP_EVERY == 0:
            await asyncio.to_thread(service.state.store.sweep)
        count += 1
        start = time.monotonic()
        await asyncio.sleep(REAP_EVERY_S)
        if time.monotonic() - start < 2 * REAP_EVERY_S:  # else this process was stopped meanwhile,
            service.reap()  # and could not receive heartbeats


def _service(service: Service) -> list[Route]:
    state = service.state

    async def finish(request: Request) -> Response:
        how = wire.parse(Finish, await body_of(request))
        return JSONResponse(service.finish_session(request.path_params["session"], how))

    async def retrieve(request: Request) -> Response:
        ref = wire.parse(wire.FutureRef, await body_of(request))
        answer = await state.scheduler.wait(ref.request_id, POLL_S)
        if answer is None:
            return JSONResponse({"queue_state": "active"}, status_code=408)
        return Response(answer[0], media_type=answer[1])

    def cancel(ref: wire.FutureRef) -> dict[str, Any]:
        state.scheduler.cancel(state.scheduler.futures.get(ref.request_id))
        return {}

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(
            service.metrics.text(state), media_type="text/plain; version=0.0.4"
        )  # fmt: skip

    return [
        Route("/metrics", metrics, methods=["GET"]),
        fixed("/healthz", {"status": "ok"}, "GET"),
        fixed(f"{PREFIX}/healthz", {"status": "ok"}, "GET"),
        fixed(f"{PREFIX}/client/config", CLIENT_CONFIG),
        fixed(f"{PREFIX}/client/dynamic_config", DYNAMIC_CONFIG),
        fixed(f"{PREFIX}/telemetry", {"status": "accepted"}),
        get("get_server_capabilities", lambda r: queries.capabilities(state)),
        post("create_session", wire.CreateSession, service.create_session),
        post("session_heartbeat", wire.SessionRef, service.heartbeat),
        route("sessions/{session}/finish", "POST", finish),
        post("sessions/search", queries.SearchSessions,
             lambda query: queries.search_sessions(state, query)),
        get("sessions", lambda r: queries.sessions(state, *page(r, 20))),
        get("sessions/{session}", lambda r: service.get_session(r.path_params["session"])),
        route("retrieve_future", "POST", retrieve),
        post("cancel_future", wire.FutureRef, cancel),
    ]  # fmt: skip


def _training(service: Service) -> list[Route]:
    training = service.training

    def forward_backward(parsed: wire.ForwardBackward) -> Pending:
        pending = training.forward_backward(parsed)
        pending.kind = "forward" if parsed.forward_only else "forward_backward"
        pending.tokens = 0 if parsed.forward_only else sum(d.tokens.size for d in parsed.data)
        return pending

    def operation(
        path: str,
        kind: type[T],
        handle: Callable[[T], Pending],
        identity: Callable[[bytes], bytes] = bytes,
    ) -> Route:
        return ordered(path, partial(wire.parse, kind), handle, service.refused, identity=identity)

    async def create_custom_loss(request: Request) -> Response:
        # On a thread as well: checking a graph needs torch, which may still be loading.
        body = await body_of(request)
        wanted = wire.parse(wire.CreateCustomLoss, body)

        def check() -> LossGraph:
            from posttrain_recipes.engine.train.custom_loss import LossGraph

            return LossGraph(wanted)

        loss = training.add_custom_loss(wanted, await asyncio.to_thread(check))
        return reply(loss, "create_custom_loss", content("create_custom_loss", body))

    return [
        post("create_model", wire.CreateModel, training.create_model),
        post("unload_model", wire.TrainingModelRef, training.unload_model),
        post("get_info", wire.TrainingModelRef, training.get_info),
        # Parsed on a thread: a body may be megabytes, and the first one imports the messages.
        ordered("forward_backward", wire.parse_forward_backward, forward_backward,
                service.refused, on_thread=True),
        route("create_custom_loss", "POST", create_custom_loss),
        operation("optim_step", wire.OptimStep, training.optim_step),
        operation("save_weights", wire.SaveWeights, training.save_weights),
        operation("save_weights_for_sampler", wire.SaveWeights,
                  training.save_weights_for_sampler, _without_sampler_number),
        operation("save_weights_external", SaveExternal, service.transfers.save_external),
        operation("load_weights", wire.LoadWeights, training.load_weights),
    ]  # fmt: skip


def _without_sampler_number(body: bytes) -> bytes:
    """The SDK numbers a sampler anew where it sends the request again."""
    given = json.loads(body)
    given.pop("sampling_session_seq_id", None)
    return json.dumps(given, sort_keys=True).encode()


def _sampling(service: Service) -> list[Route]:
    sampling, futures = service.sampling, service.state.scheduler.futures

    async def retrieve_many(request: Request) -> Response:
        asked = wire.parse(RetrieveFutures, await body_of(request))
        target = asked.target
        service.state.sampler(target.sampling_session_id)
        channel = (target.sampling_session_id, target.cloned_sampler_id)
        futures.acknowledge(channel, asked.retrieved_request_ids)
        patience = POLL_S if asked.timeout is None else max(0.0, min(asked.timeout, POLL_S))
        found, cursor = await futures.completions(channel, asked.prev_cursor, patience)
        told = [
            {"state": "failed", "request_id": p.request_id}
            if p.failed
            else {"state": "finished", "request_id": p.request_id,
                  "response_payload_uncompressed_size": p.size}
            for p in found
        ]  # fmt: skip
        return JSONResponse({"completions": told, "cursor": cursor})

    return [
        post("create_sampling_session", wire.CreateSampler, sampling.create_sampling_session),
        post("join_sampling_session", wire.SamplerRef,
             lambda ref: sampling.join_sampling_session(ref.sampling_session_id)),
        get("samplers/{sampler}", lambda r: sampling.get_sampler(r.path_params["sampler"])),
        post("asample", wire.SampleRequest, sampling.sample),
        route("retrieve_futures", "POST", retrieve_many),
    ]  # fmt: skip


def _checkpoints(service: Service, access: Access) -> list[Route]:
    state, transfers, signer = service.state, service.transfers, Signer(access.token)

    async def set_ttl(request: Request) -> Response:
        ttl = wire.parse(wire.Ttl, await body_of(request)).ttl_seconds
        return await amend(request, expires_at=checkpoints.expiry(ttl))

    async def publish(request: Request) -> Response:
        return await amend(request, public=True)

    async def unpublish(request: Request) -> Response:
        return await amend(request, public=False)

    async def amend(request: Request, **changes: Any) -> Response:
        await asyncio.to_thread(state.store.amend, _checkpoint_of(request), **changes)
        return JSONResponse({})

    async def delete(request: Request) -> Response:
        await asyncio.to_thread(state.store.delete, _checkpoint_of(request))
        return JSONResponse({})

    async def copy(request: Request) -> Response:
        asked = wire.parse(CopyWeights, await body_of(request))
        key = request.headers.get("x-idempotency-key")
        return JSONResponse(await asyncio.to_thread(transfers.copy, asked, key))

    async def weights_info(request: Request) -> Response:
        ref = wire.parse(wire.PathRef, await body_of(request))
        return JSONResponse(await asyncio.to_thread(queries.weights_info, state, ref))

    async def urls(request: Request) -> Response:
        origin = f"{request.url.scheme}://{request.headers['host']}"
        path = _checkpoint_of(request)
        return JSONResponse(await asyncio.to_thread(transfers.urls, path, origin, signer))

    async def file(request: Request) -> Response:
        if not signer.signed(request.url.path, request.query_params, time.time()):
            raise RequestError(403, "this address has expired: ask for another")
        return FileResponse(transfers.file(**request.path_params))

    checkpoint = "training_runs/{run}/checkpoints/{kind}/{name}"
    return [
        route("weights_info", "POST", weights_info),
        get("training_runs", lambda r: queries.training_runs(state, *page(r, 20))),
        get("training_runs/{run}", lambda r: queries.training_run(state, r.path_params["run"])),
        get("training_runs/{run}/checkpoints",
            lambda r: queries.checkpoints(state, r.path_params["run"], None, 0)),
        get("checkpoints", lambda r: queries.checkpoints(state, None, *page(r, 100))),
        route(checkpoint, "DELETE", delete),
        route(f"{checkpoint}/ttl", "PUT", set_ttl),
        route(f"{checkpoint}/publish", "POST", publish),
        route(f"{checkpoint}/publish", "DELETE", unpublish),
        route(f"{checkpoint}/external_weights_urls", "GET", urls),
        route("copy_weights", "POST", copy),
        Route(f"{SIGNED}{{run}}/{{name}}/{{file}}", guarded(file), methods=["GET"]),
    ]  # fmt: skip


def _checkpoint_of(request: Request) -> checkpoints.CheckpointPath:
    parts = request.path_params
    return checkpoints.parse_path(f"tinker://{parts['run']}/{parts['kind']}/{parts['name']}")
