"""The translator of the dialect 0.25: what becomes of requests on their way, and of answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response

from posttrain_recipes.dialects import passes, requests
from posttrain_recipes.dialects.upstream import (
    POLL_S,
    PREFIX,
    DeclinedError,
    FailedError,
    Upstream,
    detail,
)

T = TypeVar("T")
LEAVE_S = 10.0
"""How long adapters that are given back are waited for."""
KEPT = 64
"""Answered requests of which something is remembered."""
UNUSED = 1_000_000
"""A number of a model that no client comes to."""
LOADED = "loaded"
"""What request ids begin with that are the translator's own."""


@dataclass
class ServerModel:
    """A model as the server knows it, and the numbers of the operations that it was sent."""

    name: str
    sent: int = 0
    numbers: dict[int, int] = field(default_factory=dict)
    """The client's sequence numbers -> those that the server gets: without gaps, and after the
    loading that the server counts and the client does not."""
    owes: bool = False
    """Whether it has a gradient that no step has used: a server may leave that to whoever gets the
    adapter's place next."""
    saved: bool = False
    """Whether checkpoints of it were saved."""
    states: dict[str, Any] = field(default_factory=dict)
    """Names of states that were saved -> the client's number of that request."""

    def number(self, asked: int) -> int:
        """The number of an operation, the same where it is sent again."""
        if asked not in self.numbers:
            self.sent += 1
            self.numbers[asked] = self.sent
        return self.numbers[asked]

    def take_back(self, asked: int) -> None:
        """The server did not accept the operation: its number is the next one's."""
        if self.numbers.get(asked) == self.sent:
            del self.numbers[asked]
            self.sent -= 1


@dataclass
class SampleAsked:
    """Of a request for samples what its answer is completed by."""

    length: int
    last: int | None


class Awaited(dict[str, T]):
    """What answers are completed by, by request: of those that came, the last few stay, as an
    answer that was lost on its way is asked for again."""

    def __init__(self) -> None:
        super().__init__()
        self._answered: deque[str] = deque()

    def answered(self, number: str) -> None:
        """The answer to a request was given."""
        self._answered.append(number)
        if len(self._answered) > KEPT:
            self.pop(self._answered.popleft(), None)


@dataclass
class Translator:
    """What has to be remembered from request to request. It lives in one event loop."""

    upstream: Upstream
    models: dict[str, ServerModel] = field(default_factory=dict)
    """By the client's ids, which are the server's own but for models made from a checkpoint."""
    held: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """The server's models of each session that is not finished."""
    creating: dict[str, str] = field(default_factory=dict)
    """The sessions of models that are being made, by request."""
    keeps: bool | None = None
    """Whether the server keeps the checkpoints of a model that is given back; None: not known."""
    revived: int = 0
    """Models that were loaded again to be sampled from."""
    asked_for: dict[str, Any] = field(default_factory=dict)
    """How the last model was asked for."""
    begun: dict[tuple[str, Any], asyncio.Task[dict[str, Any]]] = field(default_factory=dict)
    """What makes a model, by session and number, so that one sent again makes no second."""
    passes: Awaited[passes.PassAsked] = field(default_factory=lambda: Awaited())
    samples: Awaited[SampleAsked] = field(default_factory=lambda: Awaited())

    # --- models ----------------------------------------------------------------------------------

    def model(self, name: str) -> ServerModel:
        """The server's model that a client calls `name`."""
        return self.models.setdefault(name, ServerModel(name))

    async def create_model(self, body: dict[str, Any]) -> dict[str, Any]:
        """Have a model made, once for each number in a session."""
        key = (str(body["session_id"]), body.get("model_seq_id"))
        made = requests.older("create_model", body)

        async def create() -> dict[str, Any]:
            self.asked_for = made
            answer = await self.upstream.post("create_model", made)
            self.creating[str(answer["request_id"])] = key[0]
            return {"request_id": str(answer["request_id"])}

        return await self._once(key, create)

    async def load_weights(self, body: dict[str, Any]) -> dict[str, Any]:
        """Load a checkpoint: into a new model, or as the first operation of one."""
        if body.get("session_id") is None:
            return await self.operation("load_weights", body)
        session, number = str(body["session_id"]), body["model_seq_id"]
        made = requests.older("load_weights", body)
        key = (session, number)
        if key not in self.begun or _has_failed(self.begun[key]):
            # Asked here, so that a checkpoint that is gone is told as the SDK expects it.
            info = await self.upstream.post("weights_info", {"tinker_path": made["path"]})
            self.begun[key] = asyncio.create_task(self._make_of(session, number, made, info))
        return {"request_id": f"{LOADED}:{session}:train:{number}"}

    async def _make_of(
        self, session: str, number: int, body: dict[str, Any], info: dict[str, Any]
    ) -> dict[str, Any]:
        made = await self._model_of(session, number, body, info)
        self.models[f"{session}:train:{number}"] = made
        return {"type": "load_weights", "path": body["path"]}

    async def _model_of(
        self, session: str, number: int, body: dict[str, Any], info: dict[str, Any]
    ) -> ServerModel:
        """A model of the checkpoint's rank, and then its weights as its first operation."""
        lora = {"rank": info["lora_rank"], **requests.ADAPTED}
        wanted = {
            "session_id": session,
            "model_seq_id": number,
            "base_model": body.get("base_model") or info["base_model"],
            "lora_config": lora,
            "type": "create_model",
        }
        self.asked_for = wanted
        asked = await self.upstream.post("create_model", wanted)
        name = str((await self.upstream.result(str(asked["request_id"])))["model_id"])
        self.held[session].append(name)
        try:
            loading = await self.upstream.post(
                "load_weights",
                {
                    "model_id": name,
                    "path": body["path"],
                    "optimizer": body["optimizer"],
                    "seq_id": 1,
                    "type": "load_weights",
                },
            )
            await self.upstream.result(str(loading["request_id"]))
        except BaseException:
            self.held[session].remove(name)
            await self._unload([name])
            raise
        return ServerModel(name, sent=1)

    async def sampling_session(self, body: dict[str, Any]) -> dict[str, Any]:
        """Open a sampler, of weights that the server has loaded."""
        path, session = body.get("model_path"), str(body["session_id"])
        found = requests.sampled(path) if path else None
        if found and not any(found[0] in names for names in self.held.values()):
            key = (session, path)
            loaded = await self._once(key, lambda: self._loaded_again(session, *found))
            body = {**body, "model_path": loaded.get("path") or path}
        return await self.upstream.post("create_sampling_session", body)

    async def _loaded_again(self, session: str, model: str, name: str) -> dict[str, Any]:
        """The path of a sampler of weights whose model is not loaded any more, where a state of the
        same name was saved beside them: servers sample from loaded models alone."""
        path = f"tinker://{model}/weights/{name}"
        try:
            info = await self.upstream.post("weights_info", {"tinker_path": path})
        except DeclinedError:
            return {}
        self.revived += 1
        body = {"path": path, "optimizer": False}
        made = await self._model_of(session, UNUSED + self.revived, body, info)
        saved = await self.upstream.post(
            "save_weights_for_sampler",
            {"model_id": made.name, "path": name, "seq_id": 2, "type": "save_weights_for_sampler"},
        )
        return _full_path(await self.upstream.result(str(saved["request_id"])))

    async def _once(
        self, key: tuple[str, Any], make: Callable[[], Coroutine[Any, Any, dict[str, Any]]]
    ) -> dict[str, Any]:
        if key not in self.begun or _has_failed(self.begun[key]):
            self.begun[key] = asyncio.create_task(make())
        return await asyncio.shield(self.begun[key])

    async def finish(self, session: str) -> None:
        """Give back the adapters of a session; servers would keep them for minutes."""
        for key in [key for key in self.begun if key[0] == session]:
            del self.begun[key]
        await self._give_back(self.held.pop(session, []))

    async def _give_back(self, names: list[str]) -> None:
        """Unload models, but for those whose checkpoints would go with them: such a server gives
        their place to others by itself, when it has not heard of the session for some time."""
        known = {model.name: model for model in self.models.values()}
        saved = [name for name in names if name in known and known[name].saved]
        await self._unload([name for name in names if name not in saved])
        if saved and self.keeps is None:
            with contextlib.suppress(DeclinedError, FailedError, KeyError, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._see_what_is_kept()
        if self.keeps:
            await self._unload(saved)

    async def _see_what_is_kept(self) -> None:
        """Make a model and give it back, to see whether the server still knows of it."""
        wanted = {**self.asked_for, "model_seq_id": UNUSED}
        asked = await self.upstream.post("create_model", wanted)
        name = str((await self.upstream.result(str(asked["request_id"])))["model_id"])
        await self._unload([name])
        got = await self.upstream.send("GET", f"{PREFIX}/training_runs/{name}")
        self.keeps = got.status_code == 200

    async def _unload(self, names: list[str]) -> None:
        known = {model.name: model for model in self.models.values()}

        async def unload(name: str) -> None:
            if name in known and known[name].owes:
                with contextlib.suppress(DeclinedError, FailedError):
                    await self._drop_gradient(known[name])
            asked = {"model_id": name, "type": "unload_model"}
            answer = await self.upstream.post("unload_model", asked)
            await self.upstream.result(str(answer["request_id"]))

        # Whether it worked matters to nobody who could do anything about it.
        with contextlib.suppress(TimeoutError, DeclinedError, FailedError):
            async with asyncio.timeout(LEAVE_S):
                await asyncio.gather(*(unload(name) for name in names), return_exceptions=True)

    async def _drop_gradient(self, model: ServerModel) -> None:
        """A step of length 0 uses up what a server would leave to the next adapter."""
        model.sent += 1
        answer = await self.upstream.post(
            "optim_step",
            {
                "model_id": model.name,
                "adam_params": {"learning_rate": 0.0},
                "seq_id": model.sent,
                "type": "optim_step",
            },
        )
        await self.upstream.result(str(answer["request_id"]))

    async def close(self) -> None:
        """Give back what sessions hold that were not finished, and end."""
        for session in list(self.held):
            await self.finish(session)
        await self.upstream.http.aclose()

    # --- operations ------------------------------------------------------------------------------

    async def operation(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send an operation of a model, with the server's name and number."""
        model, number = self.model(str(body["model_id"])), body.get("seq_id")
        if (
            route == "save_weights"
            and model.states.setdefault(str(body.get("path")), number) == number
        ):
            body = {**body, "overwrite": False}  # there is nothing of the name to save over
        made = requests.older(route, body)
        made["model_id"] = model.name
        if number is not None:
            made["seq_id"] = model.number(number)
        try:
            answer = await self.upstream.post(route, made)
            model.owes = model.owes and route != "optim_step"
            # Without a name it is for a sampler of this session alone.
            model.saved = model.saved or (route.startswith("save_weights") and "path" in made)
            return answer
        except DeclinedError as error:
            if number is not None and error.status < 500:
                model.take_back(number)
            raise

    async def forward_backward(self, body: bytes) -> dict[str, Any]:
        """Send a pass, and remember what its loss is computed from."""
        message = passes.read(body)
        given = passes.asked(message)
        model, number = self.model(message.model_id), message.seq_id
        message.model_id, message.seq_id = model.name, model.number(number)
        got = await self.upstream.send(
            "POST",
            f"{PREFIX}/forward_backward",
            content=message.SerializeToString(),
            headers={"Content-Type": passes.CONTENT_TYPE},
        )
        if got.status_code >= 400:
            if got.status_code < 500:
                model.take_back(number)
            raise DeclinedError(got.status_code, detail(got))
        model.owes = model.owes or not message.forward_only
        answer: dict[str, Any] = got.json()
        self.passes[str(answer["request_id"])] = given
        return answer

    async def sample(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request for samples, and name the sequences that will come."""
        last = body.pop("prompt_logprobs_last_n", None)
        answer = await self.upstream.post("asample", requests.older("asample", body))
        number = str(answer["request_id"])
        self.samples[number] = SampleAsked(requests.prompt_length(body), last)
        if not answer.get("sample_sequence_ids"):
            count = int(body.get("num_samples", 1))
            answer["sample_sequence_ids"] = [f"{number}:{i}" for i in range(count)]
        return answer

    # --- answers ---------------------------------------------------------------------------------

    async def retrieve(self, number: str, accept: str) -> Response:
        """The answer to an earlier request: a failure is one too, and not an error of HTTP."""
        try:
            if number.startswith(f"{LOADED}:"):
                return await self._loaded(number)
            got = await self.upstream.poll(number, accept)
            if got is None:
                return _pending(number)
            if got.status_code >= 400:
                raise DeclinedError(got.status_code, detail(got))
            kind = got.headers.get("content-type", "")
            if passes.CONTENT_TYPE in kind:
                return Response(self._completed(number, got.content), media_type=kind)
            answer = got.json()
            _require_numbers(answer)
            if session := self.creating.pop(number, None):
                self.held[session].append(str(answer["model_id"]))
            return JSONResponse(_full_path(answer))
        except FailedError as error:
            return JSONResponse({"error": str(error), "category": "unknown"})

    async def _loaded(self, number: str) -> Response:
        _, session, _, order = number.split(":")
        task = next(
            (t for (s, n), t in self.begun.items() if (s, str(n)) == (session, order)), None
        )
        if task is None:
            raise DeclinedError(410, f"the request {number} is not known")
        done, _ = await asyncio.wait([task], timeout=POLL_S)
        if not done:
            return _pending(number)
        try:
            return JSONResponse(task.result())
        except DeclinedError as error:
            raise FailedError(str(error)) from None

    def _completed(self, number: str, answer: bytes) -> bytes:
        if number in self.passes:
            answer = passes.with_loss(answer, self.passes[number])
            self.passes.answered(number)
        elif number in self.samples:
            known = self.samples[number]
            answer = passes.with_first(answer, known.length, known.last)
            self.samples.answered(number)
        return answer

    async def weights_info(self, path: str) -> dict[str, Any]:
        """What a checkpoint holds; servers tell it of those to train from alone."""
        found = requests.sampled(path)
        if found is None:
            return await self.upstream.post("weights_info", {"tinker_path": path})
        model, name = found
        run = f"{PREFIX}/training_runs/{model}"
        told, listed = (
            await self.upstream.send("GET", run),
            await self.upstream.send("GET", f"{run}/checkpoints"),
        )
        for got in (told, listed):
            if got.status_code >= 400:
                raise DeclinedError(got.status_code, detail(got))
        kept = {one["tinker_path"] for one in listed.json()["checkpoints"]}
        if f"tinker://{model}/sampler_weights/{name}" not in kept:
            raise DeclinedError(404, f"there is no checkpoint {path}")
        about = told.json()
        return {
            "base_model": about["base_model"],
            "is_lora": True,
            "lora_rank": about.get("lora_rank"),
        }


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _pending(number: str) -> Response:
    told = {"type": "try_again", "request_id": number, "queue_state": "active"}
    return JSONResponse(told, status_code=408)


def _require_numbers(answer: dict[str, Any]) -> None:
    """Raise `FailedError` where a step has a metric that is no number, which JSON cannot say."""
    metrics = answer.get("metrics")
    for name, value in metrics.items() if isinstance(metrics, dict) else ():
        if value is None:
            raise FailedError(
                f"the server's step has no number for {name}: the gradient, or what it was "
                "computed from, is not finite"
            )


def _full_path(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with the whole path of weights to sample from: servers leave out a part of it."""
    found = requests.sampled(answer.get("path") or "")
    if found is None or answer.get("type") != "save_weights_for_sampler":
        return answer
    return {**answer, "path": f"tinker://{found[0]}/sampler_weights/{found[1]}"}
