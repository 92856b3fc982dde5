"""Routes of the OpenAI-compatible API: models, chat/completions and completions; vLLM's generate.

`model` is a base model's name or a checkpoint's `tinker://` path. Requests join the batches of all
others for the same weights.
"""

from __future__ import annotations

import asyncio
import dataclasses
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
from posttrain_recipes.engine.core.registry import SamplerWeights
from posttrain_recipes.engine.core.service import Service
from posttrain_recipes.engine.http.routing import body_of, guarded
from posttrain_recipes.engine.openai.detokenize import IncrementalDetokenizer, ThreadSafeTokenizer
from posttrain_recipes.engine.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerateRequest,
    parse,
)
from posttrain_recipes.engine.openai.responses import (
    ChatFormat,
    CompletionFormat,
    GenerateFormat,
    ResponseFormat,
    ScoredPrompt,
    TokenEvent,
)
from posttrain_recipes.engine.wire import RequestError

PREFIXES = ("/v1", "/oai/api/v1")
"""The second is where hosted Tinker has them."""
WEIGHTS_KEPT = 8  # checkpoints kept loaded though no sampler holds them
LISTED = 1000  # checkpoints in the list of models, at most
DISCONNECT_POLL_S = 1.0  # between two looks whether the client is still connected


def routes(service: Service) -> list[Route]:
    """The routes below `PREFIXES`, and vLLM's for tokens."""
    handlers = _OpenAIRoutes(service)
    return [
        *(
            route
            for prefix in PREFIXES
            for route in (
                Route(f"{prefix}/models", guarded(handlers.models), methods=["GET"]),
                Route(f"{prefix}/models/{{model:path}}", guarded(handlers.model), methods=["GET"]),
                Route(f"{prefix}/chat/completions", guarded(handlers.chat), methods=["POST"]),
                Route(f"{prefix}/completions", guarded(handlers.completion), methods=["POST"]),
            )
        ),
        Route("/inference/v1/generate", guarded(handlers.generate), methods=["POST"]),
    ]


@dataclass
class _RunningRequest:
    """A request in progress: a pending sample request for each prompt, and the tokens so far."""

    format: ResponseFormat
    pending: list[Pending] = field(default_factory=list)
    tokens: asyncio.Queue[TokenEvent | None] = field(default_factory=asyncio.Queue)  # None: the end


class _OpenAIRoutes:
    def __init__(self, service: Service) -> None:
        self.service, self.state = service, service.state
        self._tokenizers: dict[str, asyncio.Future[ThreadSafeTokenizer]] = {}
        self._weights: OrderedDict[str, SamplerWeights] = OrderedDict()

    # Models ----------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """The base models, and the checkpoints that can be sampled from."""
        saved = await asyncio.to_thread(self.state.store.checkpoints)
        found = [_model(name, 0) for name in self.state.names]
        for record, _ in [item for item in saved if "/sampler_weights/" in item[0].path][:LISTED]:
            found.append(_model(record.path, int(datetime.fromisoformat(record.time).timestamp())))
        return JSONResponse({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        """One base model or checkpoint, by its name."""
        name = request.path_params["model"]
        if name.startswith("tinker:/"):
            name = f"tinker://{name.removeprefix('tinker:').lstrip('/')}"
        self.service.sampling.weights(name)
        return JSONResponse(_model(name, 0))

    async def _resolve(self, name: str) -> tuple[SamplerWeights, ThreadSafeTokenizer]:
        weights = await asyncio.to_thread(self.service.sampling.weights, name)
        self._weights[name] = weights
        self._weights.move_to_end(name)
        if len(self._weights) > WEIGHTS_KEPT:
            self._weights.popitem(last=False)
        base = weights.base_model
        if base not in self._tokenizers:
            self._tokenizers[base] = asyncio.ensure_future(self._load(base))
        try:
            return weights, await asyncio.shield(self._tokenizers[base])
        except RequestError:
            self._tokenizers.pop(base, None)
            raise

    async def _load(self, base: str) -> ThreadSafeTokenizer:
        pending = self.state.scheduler.submit_local(
            work=lambda: ThreadSafeTokenizer(
                self.state.base_models.get(base), self.service.chat_template
            )
        )
        await pending.done.wait()
        tokenizer: ThreadSafeTokenizer = _result(pending)
        return tokenizer

    # Requests --------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        completion_request = parse(ChatCompletionRequest, await body_of(request))
        weights, tokenizer = await self._resolve(completion_request.model)
        prompt = await asyncio.to_thread(
            tokenizer.chat,
            completion_request.conversation(),
            completion_request.chat_template_kwargs,
            completion_request.offered,
        )
        form = ChatFormat(completion_request, tokenizer)
        form.prompts = [ScoredPrompt(prompt, "")]
        return await self._answer(request, weights, _RunningRequest(form))

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions."""
        completion_request = parse(CompletionRequest, await body_of(request))
        weights, tokenizer = await self._resolve(completion_request.model)
        form = CompletionFormat(completion_request, tokenizer)
        for given in completion_request.prompts():
            if isinstance(given, str):
                form.prompts.append(
                    ScoredPrompt(await asyncio.to_thread(tokenizer.encode, given), given)
                )
            else:
                text = await asyncio.to_thread(tokenizer.decode, given, True) if form.echo else ""
                form.prompts.append(ScoredPrompt(given, text))
        return await self._answer(request, weights, _RunningRequest(form))

    async def generate(self, request: Request) -> Response:
        """POST /inference/v1/generate."""
        asked = parse(GenerateRequest, await body_of(request))
        weights, tokenizer = await self._resolve(asked.model)
        params = dataclasses.replace(asked.sampling_params, model=asked.model)
        form = GenerateFormat(params, tokenizer)
        form.prompts = [ScoredPrompt(asked.token_ids, "")]
        return await self._answer(request, weights, _RunningRequest(form))

    async def _answer(
        self, request: Request, weights: SamplerWeights, work: _RunningRequest
    ) -> Response:
        loop, count = asyncio.get_running_loop(), work.format.request.count

        def listener(first: int) -> Any:
            def on_token(index: int, token: int, logprob: float, top: Any) -> None:
                event = (first + index, token, logprob, top)
                loop.call_soon_threadsafe(work.tokens.put_nowait, event)

            return on_token

        try:
            for number, prompt in enumerate(work.format.prompts):
                sample = work.format.sample(prompt.ids, listener(number * count))
                pending = self.state.scheduler.submit_local(
                    self.service.sampling.batch(weights, sample)
                )
                pending.kind = "sample"
                work.pending.append(pending)
            if work.format.request.stream:
                return await self._stream(work)
            while not all(p.done.is_set() for p in work.pending):
                waiting = [asyncio.ensure_future(p.done.wait()) for p in work.pending]
                _, left = await asyncio.wait(waiting, timeout=DISCONNECT_POLL_S)
                for task in left:
                    task.cancel()
                if left and await request.is_disconnected():
                    self._abandon(work)
                    return Response(status_code=499)
        except BaseException:
            self._abandon(work)
            raise
        detokenizers = self._detokenizers(work)
        while not work.tokens.empty():
            if (event := work.tokens.get_nowait()) is not None:
                work.format.add_token(detokenizers, event)
        return JSONResponse(self._full_response(work, detokenizers))

    def _abandon(self, work: _RunningRequest) -> None:
        for pending in work.pending:
            self.state.scheduler.cancel(pending)

    def _detokenizers(self, work: _RunningRequest) -> list[IncrementalDetokenizer]:
        fmt = work.format
        count = fmt.request.count * len(fmt.prompts)
        ends = frozenset(fmt.request.stop_token_ids or ())
        return [
            IncrementalDetokenizer(fmt.tokenizer, fmt.request.stops(), ends) for _ in range(count)
        ]

    def _full_response(
        self, work: _RunningRequest, detokenizers: list[IncrementalDetokenizer]
    ) -> dict[str, Any]:
        results = [_result(pending) for pending in work.pending]
        stopped = [sequence.stopped for result in results for sequence in result.sequences]
        for prompt, result in zip(work.format.prompts, results, strict=True):
            prompt.logprobs, prompt.top = result.prompt_logprobs, result.prompt_topk
        choices = [
            work.format.choice(index, detokenizer, "stop" if stop else "length")
            for index, (detokenizer, stop) in enumerate(zip(detokenizers, stopped, strict=True))
        ]
        return {
            **_envelope(work.format),
            "choices": choices,
            **work.format.whole(),
            "usage": _usage(work, detokenizers),
        }

    async def _stream(self, work: _RunningRequest) -> Response:
        async def last() -> None:
            for pending in work.pending:
                await pending.done.wait()
            work.tokens.put_nowait(None)

        ending = asyncio.ensure_future(last())
        first = await work.tokens.get()
        if first is None:  # no token came: an error is answered as such, not as a stream
            for pending in work.pending:
                _result(pending)
        return StreamingResponse(
            self._events(work, first, ending),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )

    async def _events(
        self, work: _RunningRequest, first: TokenEvent | None, ending: asyncio.Future[None]
    ) -> AsyncIterator[str]:
        head, fmt, detokenizers = (
            _envelope(work.format, part=True),
            work.format,
            self._detokenizers(work),
        )

        def event(*choices: dict[str, Any], **more: Any) -> str:
            return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n"

        try:
            for index in range(len(detokenizers)):
                if (opening := fmt.opening(index)) is not None:
                    yield event(opening)
            token = first
            while token is not None:
                if (chunk := fmt.chunk_for(detokenizers, token)) is not None:
                    yield event(chunk)
                token = await work.tokens.get()
            results = [_result(pending) for pending in work.pending]
            stopped = [sequence.stopped for result in results for sequence in result.sequences]
            for index, (detokenizer, stop) in enumerate(zip(detokenizers, stopped, strict=True)):
                for last in fmt.closing(index, detokenizer, "stop" if stop else "length"):
                    yield event(last)
            if fmt.request.wants_usage:
                yield event(usage=_usage(work, detokenizers))
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


def _envelope(fmt: ResponseFormat, part: bool = False) -> dict[str, Any]:
    return {
        "id": f"{fmt.prefix}-{uuid.uuid4().hex[:24]}",
        "object": fmt.chunk_object if part else fmt.response_object,
        "created": int(time.time()),
        "model": fmt.request.model,
    }


def _usage(work: _RunningRequest, detokenizers: Sequence[IncrementalDetokenizer]) -> dict[str, int]:
    prompt = sum(len(one.ids) for one in work.format.prompts)
    completion = sum(len(detokenizer.tokens) for detokenizer in detokenizers)
    if work.format.request.limit == 0:
        completion = 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
