"""The translator as an ASGI application: which request becomes what."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from posttrain_recipes.dialects import requests
from posttrain_recipes.dialects.translator import Translator
from posttrain_recipes.dialects.upstream import PREFIX, DeclinedError, FailedError, Upstream, detail

CONFIG = {
    "pjwt_auth_enabled": False,  # the loopback's token is no credential of the server's
    "parallel_fwdbwd_chunks": False,  # sequence numbers have to come in order
    "proto_compress_fwdbwd": False,
    "sample_use_retrieve_futures": False,
    "custom_loss_server_side": False,
    "sample_join_sampling_session": False,
}
DYNAMIC_CONFIG = {"refresh_interval_sec": 3600, "sample_cancel_enabled": False}


def build(address: str, key: str) -> Starlette:
    """The translator for the server at `address`, as an ASGI application without any guard."""
    upstream = Upstream.open(address, key)
    translator = Translator(upstream)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await translator.close()

    async def passed_on(request: Request) -> Response:
        return await _passed_on(translator, request)

    async def finish(request: Request) -> Response:
        await translator.finish(request.path_params["session"])
        return JSONResponse({})

    async def forward_backward(request: Request) -> Response:
        return JSONResponse(await translator.forward_backward(await request.body()))

    async def retrieve(request: Request) -> Response:
        body = await _json(request)
        return await translator.retrieve(
            str(body["request_id"]), request.headers.get("accept", "*/*")
        )

    async def get_info(request: Request) -> Response:
        body = await _json(request)
        name = str(body["model_id"])
        found = await upstream.post("get_info", {**body, "model_id": translator.model(name).name})
        return JSONResponse({**found, "model_id": name})

    def fixed(answer: dict[str, Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return JSONResponse(answer)

        return endpoint

    def json_route(
        handle: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return JSONResponse(await handle(await _json(request)))

        return endpoint

    def operation(route: str) -> Callable[[Request], Awaitable[Response]]:
        return json_route(lambda body: translator.operation(route, body))

    async def create_session(body: dict[str, Any]) -> dict[str, Any]:
        return await upstream.post("create_session", requests.older("create_session", body))

    posts = {
        "client/config": fixed(CONFIG),
        "client/dynamic_config": fixed(DYNAMIC_CONFIG),
        "telemetry": fixed({"status": "accepted"}),
        "create_session": json_route(create_session),
        "create_sampling_session": json_route(translator.sampling_session),
        "create_model": json_route(translator.create_model),
        "load_weights": json_route(translator.load_weights),
        "forward_backward": forward_backward,
        "optim_step": operation("optim_step"),
        "save_weights": operation("save_weights"),
        "save_weights_for_sampler": operation("save_weights_for_sampler"),
        "asample": json_route(translator.sample),
        "retrieve_future": retrieve,
        "get_info": get_info,
        "weights_info": json_route(lambda body: translator.weights_info(body["tinker_path"])),
        "sessions/{session}/finish": finish,
    }
    routes = [
        *(
            Route(f"{PREFIX}/{path}", _guarded(one), methods=["POST"])
            for path, one in posts.items()
        ),
        Route("/{path:path}", _guarded(passed_on), methods=["GET", "POST", "PUT", "DELETE"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def _passed_on(translator: Translator, request: Request) -> Response:
    """A request that both forms have, or that only the server can answer."""
    path = "/".join(
        translator.models[part].name if part in translator.models else part
        for part in request.url.path.split("/")
    )
    got = await translator.upstream.send(
        request.method,
        path,
        params=dict(request.query_params),
        content=await request.body(),
        headers={n: v for n, v in request.headers.items() if n in ("accept", "content-type")},
    )
    if got.status_code in (404, 405) and detail(got) in ("Not Found", "Method Not Allowed"):
        raise DeclinedError(
            404, f"{requests.DIALECT}, which has no {request.method} {request.url.path}"
        )
    kept = {n: v for n, v in got.headers.items() if n in ("content-type", "location", "expires")}
    return Response(got.content, got.status_code, headers=kept)


async def _json(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(await request.body())
    except ValueError:
        raise DeclinedError(422, "the request's body is no JSON") from None
    if not isinstance(found, dict):
        raise DeclinedError(422, "the request's body is no JSON object")
    return found


def _guarded(
    endpoint: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint with refusals answered as their status."""

    async def wrapped(request: Request) -> Response:
        try:
            return await endpoint(request)
        except DeclinedError as error:
            status, why = error.status, str(error)
        except FailedError as error:
            status, why = 422, str(error)
        except KeyError as error:
            status, why = 422, f"the request or the server's answer lacks {error}"
        return JSONResponse({"detail": why, "message": why}, status_code=status)

    return wrapped
