"""A server of the 0.25 era: the embedded engine behind a door that answers as such servers do.

What it lacks and how it says so is as SkyRL's was recorded (tests/e2e/test_skyrl.py runs on a real
one); `strict` refuses unknown fields and gaps in sequence numbers besides, as TuFT does.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinker.proto import tinker_public_pb2 as pb

from posttrain_recipes.engine import app as engine_app
from posttrain_recipes.engine.core.service import Service
from posttrain_recipes.engine.http.auth import Access
from tests.listening import listening

KEY = "tml-" + "k" * 32
PROTOBUF = "application/x-protobuf"
ROUTES = (
    "client/config|create_session|session_heartbeat|create_sampling_session|samplers/.*"
    "|create_model|unload_model|get_info|training_runs.*|forward_backward|optim_step|load_weights"
    "|save_weights|save_weights_for_sampler|asample|get_server_capabilities|retrieve_future"
    "|weights_info|healthz|telemetry"
)
"""Routes below /api/v1 that it has."""
FIELDS = {
    "create_session": "tags user_metadata sdk_version type",
    "create_model": "session_id model_seq_id base_model user_metadata lora_config type",
    "load_weights": "model_id path optimizer seq_id type",
    "optim_step": "model_id adam_params seq_id type",
    "save_weights": "model_id path seq_id type",
    "save_weights_for_sampler": "model_id path sampling_session_seq_id seq_id type",
    "asample": "num_samples prompt sampling_params base_model model_path sampling_session_id "
    "seq_id prompt_logprobs topk_prompt_logprobs type",
    "retrieve_future": "request_id",
}
"""Fields that it knows, by route."""


@dataclass
class OlderServer:
    """The door: which requests came, and what it holds."""

    engine: httpx.AsyncClient
    strict: bool = False
    slots: int = 8
    forgets: bool = False
    """Whether a model that is unloaded goes with its checkpoints, as TuFT has it."""
    gone: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    """The keys that were shown."""
    held: set[str] = field(default_factory=set)
    most: int = 0
    """The most models that were held at a time."""
    sent: dict[str, int] = field(default_factory=dict)
    """Operations of each model."""
    asked: dict[str, Any] = field(default_factory=dict)
    """Prompt lengths of samples and inputs of passes, by request."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Adam's parameters, as they came."""

    async def answer(self, request: Request) -> Response:
        """Any request."""
        self.keys.add(request.headers.get("x-api-key", ""))
        path, body = request.url.path, await request.body()
        route = path.removeprefix("/api/v1/")
        if not re.fullmatch(ROUTES, route) or route.endswith(("/ttl", "/publish")):
            return JSONResponse({"detail": "Not Found"}, 404)
        protobuf = PROTOBUF in request.headers.get("content-type", "")
        if protobuf:
            message = pb.ForwardBackwardRequest.FromString(body)
            given: dict[str, Any] = {"model_id": message.model_id, "seq_id": message.seq_id}
        else:
            given = json.loads(body) if body else {}
        if (refusal := self._refusal(route, given)) is not None:
            return refusal
        if protobuf:
            message.model_id = inner(message.model_id)
            body = message.SerializeToString()
        else:
            if route == "optim_step":
                self.steps.append(given["adam_params"])
                body = json.dumps(given).encode()
            body = inner(body.decode()).encode()
        got = await self.engine.request(
            request.method,
            inner(path),
            content=body,
            params=dict(request.query_params),
            headers={n: v for n, v in request.headers.items() if n in ("accept", "content-type")},
        )
        return self._told(route, given, got, message if protobuf else None)

    def _refusal(self, route: str, given: dict[str, Any]) -> Response | None:
        if any(":train:" in str(value) for value in given.values()):
            return JSONResponse({"detail": "Model not found"}, 404)
        if route == "load_weights" and "model_id" not in given:
            told = [{"loc": ["body", "model_id"], "msg": "Field required", "type": "missing"}]
            return JSONResponse({"detail": told}, 422)
        path = given.get("model_path")
        if path and path.split("/")[2] not in self.held:
            # The real one says so when it samples, which comes to the same.
            return JSONResponse({"detail": "Model not loaded"}, 400)
        if route == "create_model" and len(self.held) >= self.slots:
            # The real one says so when the answer is fetched, which comes to the same.
            told = f"Maximum number of LoRA adapters ({self.slots}) reached"
            return JSONResponse({"detail": told}, 400)
        model = given.get("model_id")
        if any(re.search(rf"{name}(?!\d)", f"{route} {given}") for name in self.gone):
            return JSONResponse({"detail": "Unknown model"}, 404)
        if route == "load_weights" and self.sent.get(str(model)):
            told = f"LoadWeights is not permitted with seq_id {given['seq_id']}"
            return JSONResponse({"detail": told}, 400)
        if not self.strict:
            return None
        if (known := FIELDS.get(route)) is not None and "seq_id" in given | {"seq_id": 0}:
            unknown = sorted(set(given) - set(known.split())) if "path" not in route else []
            if unknown and route != "forward_backward":
                return JSONResponse({"detail": f"Extra inputs are not permitted: {unknown}"}, 422)
        if model in self.sent and given.get("seq_id") is not None:
            expected = self.sent[str(model)] + 1
            if given["seq_id"] != expected:
                told = f"Sequence conflict: expected {expected}, got {given['seq_id']}."
                return JSONResponse({"detail": told}, 409)
        return None

    def _told(
        self, route: str, given: dict[str, Any], got: httpx.Response, message: Any
    ) -> Response:
        kind = got.headers.get("content-type", "")
        if PROTOBUF in kind:
            return Response(self._lessened(given["request_id"], got.content), media_type=kind)
        told = json.loads(outer(got.text)) if got.text else {}
        if got.status_code < 300:
            self._note(route, given, told, message)
        if route == "retrieve_future" and "error" in told:
            return JSONResponse({"detail": told["error"]}, 400)
        if route == "get_server_capabilities":
            names = [{"model_name": one["model_name"]} for one in told["supported_models"]]
            told = {"supported_models": names}
        if route == "client/config":
            told = {"pjwt_auth_enabled": False}
        told.pop("sample_sequence_ids", None) if isinstance(told, dict) else None
        return JSONResponse(told, got.status_code)

    def _note(self, route: str, given: dict[str, Any], told: dict[str, Any], message: Any) -> None:
        if route == "retrieve_future" and told.get("type") == "create_model":
            self.held.add(told["model_id"])
            self.most = max(self.most, len(self.held))
            self.sent[told["model_id"]] = 0
        elif route == "unload_model":
            self.held.discard(given["model_id"])
            if self.forgets:
                self.gone.add(given["model_id"])
        elif route == "asample":
            chunks = given["prompt"]["chunks"]
            self.asked[told["request_id"]] = sum(len(one["tokens"]) for one in chunks)
        if given.get("model_id") in self.sent and given.get("seq_id") is not None:
            self.sent[given["model_id"]] += 1

    def _lessened(self, number: str, answer: bytes) -> bytes:
        """An answer in protobuf as these servers have it."""
        if number in self.asked:
            sampled = pb.SampleResponse.FromString(answer)
            if sampled.prompt_logprobs:
                sampled.prompt_logprobs = sampled.prompt_logprobs[4:]  # the first is left out
            return bytes(sampled.SerializeToString())
        output = pb.ForwardBackwardOutput.FromString(answer)
        total = output.metrics["loss:sum"]
        output.metrics.clear()  # there is none; each token's loss is told
        for record in output.loss_fn_outputs[:1]:
            values = record.fields["logprobs"]
            losses = np.zeros(len(values.data) // 4, np.float32)
            losses[0] = total
            record.fields["elementwise_loss"].CopyFrom(values)
            record.fields["elementwise_loss"].data = losses.tobytes()
        return bytes(output.SerializeToString())


def inner(text: str) -> str:
    """Ids of models as the engine has them."""
    return re.sub(r"model_([0-9a-f-]{36})_(\d+)", r"\1:train:\2", text)


def outer(text: str) -> str:
    """Ids of models as this server has them: they say nothing of sessions."""
    return re.sub(r"([0-9a-f-]{36}):train:(\d+)", r"model_\1_\2", text)


@contextlib.contextmanager
def embedded(models: dict[str, str], folder: Path) -> Iterator[str]:
    """The address of the embedded engine, in a thread of this process; its key is `KEY`."""
    with listening(engine_app.build(Service(models, folder), Access(KEY))) as address:
        yield address


@contextlib.contextmanager
def older(engine: str, **options: Any) -> Iterator[tuple[str, OlderServer]]:
    """The address of a server of the 0.25 era before an embedded engine, and the server."""
    door = OlderServer(
        httpx.AsyncClient(base_url=engine, headers={"X-API-Key": KEY}, timeout=60), **options
    )
    methods = ["GET", "POST", "PUT", "DELETE"]
    with listening(Starlette(routes=[Route("/{path:path}", door.answer, methods=methods)])) as at:
        yield at, door
