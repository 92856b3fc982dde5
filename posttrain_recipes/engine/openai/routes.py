"""OpenAI's chat completions, completions and models, for any program that speaks them.

`model` is a base model's name or a checkpoint's `tinker://` path. Requests join the batches of all
others for the same weights.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from posttrain_recipes.engine.core.futures import Pending
from posttrain_recipes.engine.core.registry import Weights
from posttrain_recipes.engine.core.service import Service
from posttrain_recipes.engine.http.routing import body_of, guarded
from posttrain_recipes.engine.openai.detokenize import Reply, Text
from posttrain_recipes.engine.openai.requests import ChatAsked, CompletionAsked, parse
from posttrain_recipes.engine.openai.responses import Chat, Completion, Form
from posttrain_recipes.engine.wire import RequestError

WEIGHTS_KEPT = 8  # of checkpoints that no sampler holds
LISTED = 1000
LOOK_EVERY_S = 1.0  # whether the client is still there


def routes(service: Service) -> list[Route]:
    """The routes below /v1."""
    door = _Door(service)
    return [
        Route("/v1/models", guarded(door.models), methods=["GET"]),
        Route("/v1/models/{model:path}", guarded(door.model), methods=["GET"]),
        Route("/v1/chat/completions", guarded(door.chat), methods=["POST"]),
        Route("/v1/completions", guarded(door.completion), methods=["POST"]),
    ]


@dataclass
class _Work:
    """A request at work: one pending for each prompt, and what comes of their tokens."""

    form: Form
    prompts: list[list[int]]
    pending: list[Pending] = field(default_factory=list)
    # (choice, token, logprob, top-k); None: all is answered
    heard: asyncio.Queue[tuple[int, int, float, Any] | None] = field(default_factory=asyncio.Queue)


class _Door:
    def __init__(self, service: Service) -> None:
        self.service, self.state = service, service.state
        self._texts: dict[str, asyncio.Future[Text]] = {}
        self._weights: OrderedDict[str, Weights] = OrderedDict()

    # Models ----------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """The base models, and the checkpoints that can be sampled from."""
        saved = await asyncio.to_thread(self.state.store.checkpoints)
        found = [_model(name, 0) for name in self.state.names]
        for record, _ in [item for item in saved if "/sampler_weights/" in item[0].path][:LISTED]:
            found.append(_model(record.path, int(datetime.fromisoformat(record.time).timestamp())))
        return JSONResponse({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["model"]
        if name.startswith("tinker:/"):
            name = f"tinker://{name.removeprefix('tinker:').lstrip('/')}"
        self.service.sampling.weights(name)
        return JSONResponse(_model(name, 0))

    async def _resolve(self, name: str) -> tuple[Weights, Text]:
        weights = await asyncio.to_thread(self.service.sampling.weights, name)
        self._weights[name] = weights
        self._weights.move_to_end(name)
        if len(self._weights) > WEIGHTS_KEPT:
            self._weights.popitem(last=False)
        base = weights.base_model
        if base not in self._texts:
            self._texts[base] = asyncio.ensure_future(self._load(base))
        try:
            return weights, await asyncio.shield(self._texts[base])
        except RequestError:
            self._texts.pop(base, None)
            raise

    async def _load(self, base: str) -> Text:
        pending = self.state.scheduler.ask(work=lambda: Text(self.state.backend.base(base)))
        await pending.done.wait()
        text: Text = _result(pending)
        return text

    # Requests --------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = parse(ChatAsked, await body_of(request))
        weights, text = await self._resolve(asked.model)
        prompt = await asyncio.to_thread(text.chat, asked.conversation())
        return await self._answer(request, weights, _Work(Chat(asked, text), [prompt]))

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions."""
        asked = parse(CompletionAsked, await body_of(request))
        weights, text = await self._resolve(asked.model)
        prompts = [
            await asyncio.to_thread(text.encode, prompt) if isinstance(prompt, str) else prompt
            for prompt in asked.prompts()
        ]
        return await self._answer(request, weights, _Work(Completion(asked, text), prompts))

    async def _answer(self, request: Request, weights: Weights, work: _Work) -> Response:
        loop, count = asyncio.get_running_loop(), work.form.asked.count

        def listener(first: int) -> Any:
            def heard(index: int, token: int, logprob: float, top: Any) -> None:
                event = (first + index, token, logprob, top)
                loop.call_soon_threadsafe(work.heard.put_nowait, event)

            return heard

        try:
            for number, prompt in enumerate(work.prompts):
                sample = work.form.sample(prompt, listener(number * count))
                pending = self.state.scheduler.ask(self.service.sampling.batch(weights, sample))
                pending.kind = "sample"
                work.pending.append(pending)
            if work.form.asked.stream:
                return await self._stream(work)
            while not all(p.done.is_set() for p in work.pending):
                waiting = [asyncio.ensure_future(p.done.wait()) for p in work.pending]
                _, left = await asyncio.wait(waiting, timeout=LOOK_EVERY_S)
                for task in left:
                    task.cancel()
                if left and await request.is_disconnected():
                    self._abandon(work)
                    return Response(status_code=499)
        except BaseException:
            self._abandon(work)
            raise
        replies = self._replies(work)
        while not work.heard.empty():
            if (event := work.heard.get_nowait()) is not None:
                work.form.hear(replies, event)
        return JSONResponse(self._whole(work, replies))

    def _abandon(self, work: _Work) -> None:
        for pending in work.pending:
            self.state.scheduler.cancel(pending)

    def _replies(self, work: _Work) -> list[Reply]:
        form = work.form
        count = form.asked.count * len(work.prompts)
        return [Reply(form.text, form.asked.stops()) for _ in range(count)]

    def _whole(self, work: _Work, replies: list[Reply]) -> dict[str, Any]:
        results = [_result(pending) for pending in work.pending]
        stopped = [sequence.stopped for result in results for sequence in result.sequences]
        choices = [
            work.form.choice(index, reply, "stop" if stop else "length")
            for index, (reply, stop) in enumerate(zip(replies, stopped, strict=True))
        ]
        return {**_head(work.form), "choices": choices, "usage": _usage(work, replies)}

    async def _stream(self, work: _Work) -> Response:
        async def last() -> None:
            for pending in work.pending:
                await pending.done.wait()
            work.heard.put_nowait(None)

        ending = asyncio.ensure_future(last())
        first = await work.heard.get()
        if first is None:  # refused, or nothing to say: an error is one, not a stream
            for pending in work.pending:
                _result(pending)
        return StreamingResponse(
            self._events(work, first, ending),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )

    async def _events(
        self, work: _Work, first: tuple[int, int, float, Any] | None, ending: asyncio.Future[None]
    ) -> AsyncIterator[str]:
        head, form, replies = _head(work.form, part=True), work.form, self._replies(work)

        def event(*choices: dict[str, Any], **more: Any) -> str:
            return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n"

        try:
            for index in range(len(replies)):
                if (opening := form.opening(index)) is not None:
                    yield event(opening)
            heard = first
            while heard is not None:
                if (part := form.part(replies, heard)) is not None:
                    yield event(part)
                heard = await work.heard.get()
            results = [_result(pending) for pending in work.pending]
            stopped = [sequence.stopped for result in results for sequence in result.sequences]
            for index, (reply, stop) in enumerate(zip(replies, stopped, strict=True)):
                if rest := reply.end():
                    yield event(form.piece(index, rest))
                yield event(form.piece(index, "", finish="stop" if stop else "length"))
            if form.asked.wants_usage:
                yield event(usage=_usage(work, replies))
            yield "data: [DONE]\n\n"
        except RequestError as failure:
            body = {"error": {"message": str(failure), "type": "server_error"}}
            yield f"data: {json.dumps(body)}\n\n"
        finally:  # also when the client has hung up
            ending.cancel()
            self._abandon(work)


def _result(pending: Pending) -> Any:
    if isinstance(pending.answer, RequestError):
        raise pending.answer
    if isinstance(pending.answer, Exception):
        raise RequestError(500, f"{type(pending.answer).__name__}: {pending.answer}")
    return pending.answer


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "local"}


def _head(form: Form, part: bool = False) -> dict[str, Any]:
    return {
        "id": f"{form.prefix}-{uuid.uuid4().hex[:24]}",
        "object": form.part_object if part else form.whole_object,
        "created": int(time.time()),
        "model": form.asked.model,
    }


def _usage(work: _Work, replies: Sequence[Reply]) -> dict[str, int]:
    prompt = sum(map(len, work.prompts))
    completion = sum(len(reply.tokens) for reply in replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
