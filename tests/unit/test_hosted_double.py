"""The double of hosted Tinker (`ptl serve --like hosted`), and what survives a lost answer."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.core.hosted import HostedDouble
from posttrain_recipes.engine.core.sampling import Sampling
from posttrain_recipes.engine.http import hosted as meets
from posttrain_recipes.engine.wire import RequestError
from posttrain_recipes.engine.wire.sampling import SampledTokens, SampleResult
from posttrain_recipes.training.loops.optimizer import Saved
from posttrain_recipes.waiting import EngineWaiter, RefusedError
from tests.conftest import Ptl

DOUBLE = HostedDouble(frozenset({"judge"}))


def request(count: int, seed: int | None, **options: Any) -> wire.SampleRequest:
    params = wire.SamplingParams(max_tokens=4, seed=seed)
    prompt = wire.ModelInput(chunks=[{"type": "encoded_text", "tokens": [1, 2]}])  # type: ignore[list-item]
    return wire.SampleRequest("s", 1, prompt, params, count, **options)


def sampled(count: int) -> SampleResult:
    return SampleResult(
        [
            SampledTokens(np.array([n, n + 1], np.int32), np.array([-1, -2], np.float32), True)
            for n in range(count)
        ]
    )


@pytest.mark.parametrize(("seed", "said"), [(3, [0, 0, 2, 2, 4]), (None, [0, 1, 2, 3, 4])])
def test_samples_repeat_where_they_have_a_seed(seed: int | None, said: list[int]) -> None:
    told: list[Any] = []
    asked = DOUBLE.sampling(request(5, seed, on_result=told.append))
    result = sampled(5)
    assert asked.on_result is not None
    asked.on_result(result)
    assert [int(one.tokens[0]) for one in result.sequences] == said
    assert told == [result], "whoever waited for it hears it too"
    for one in result.sequences:
        noise = one.logprobs - np.array([-1, -2], np.float32)
        assert (noise != 0).all()
        assert (np.abs(noise) < 0.3).all()


@pytest.mark.parametrize("name", ["topk_prompt_logprobs", "topk_sample_logprobs"])
def test_top_k_is_bounded(name: str) -> None:
    assert DOUBLE.sampling(request(1, 0, **{name: 20}))
    with pytest.raises(RequestError, match="more than 20"):
        DOUBLE.sampling(request(1, 0, **{name: 21}))


def test_ranks_are_bounded(tmp_path: Path) -> None:
    shape = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 100,
    }  # fmt: skip
    for name, more in (("dense", {}), ("moe", {"num_experts": 8})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**shape, **more}))
    for name, most in (("dense", 128), ("moe", 32)):
        for rank in (1, 2, most):
            DOUBLE.check_model(name, str(tmp_path / name), rank)
        for rank in (0, 3, 48, 2 * most):
            with pytest.raises(RequestError, match="rank"):
                DOUBLE.check_model(name, str(tmp_path / name), rank)
    with pytest.raises(RequestError, match="not be trained"):
        DOUBLE.check_model("judge", str(tmp_path / "dense"), 8)


# --- the way there -------------------------------------------------------------------------------


@pytest.fixture
def way() -> TestClient:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done " + body})

    return TestClient(meets.HostedMiddleware(app))


def post(way: TestClient, route: str, **body: Any) -> httpx.Response:
    return way.post(f"/api/v1/{route}", json=body)


def test_requests_are_turned_away_and_wait(way: TestClient) -> None:
    samples = [post(way, "asample").status_code for _ in range(40)]
    assert [place + 1 for place, code in enumerate(samples) if code == 429] == [20, 40]
    polls = [post(way, "retrieve_future") for _ in range(meets.UNPAID)]
    paused = [place for place, one in enumerate(polls, 1) if one.status_code == 408]
    assert paused == list(range(10, meets.UNPAID, 10))
    assert polls[9].json()["queue_state"] == "paused_capacity"
    assert polls[-1].status_code == 402
    assert way.get("/api/v1/healthz").text == "done "


def test_the_answer_to_a_save_is_lost_once(way: TestClient) -> None:
    assert post(way, "save_weights", model_id="a", path="x").status_code == 503
    again = post(way, "save_weights", model_id="a", path="x")
    assert again.status_code == 409
    assert "already exists" in again.json()["detail"]
    assert post(way, "save_weights", model_id="a", path="x", overwrite=True).status_code == 200
    assert post(way, "save_weights", model_id="a", path="y").status_code == 503


# --- what survives it ----------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a":' * 5000])
def test_a_save_that_is_none_is_left_to_the_engine(way: TestClient, body: bytes) -> None:
    assert way.post("/api/v1/save_weights", content=body).status_code == 200


def test_a_save_that_is_refused_takes_no_name() -> None:
    statuses = iter([404, 200])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        status = next(statuses)
        await JSONResponse({"detail": "as the engine says"}, status)(scope, receive, send)

    way = TestClient(meets.HostedMiddleware(app))
    told = [post(way, "save_weights", model_id="m", path="a") for _ in range(3)]
    assert [one.status_code for one in told] == [404, 503, 409]
    assert "as the engine says" in told[0].text


def failed(error: type[tinker.APIStatusError], status: int) -> Future[Any]:
    response = httpx.Response(status, request=httpx.Request("POST", "http://x"))
    future: Future[Any] = Future()
    future.set_exception(error("there is one of that name", response=response, body=None))
    return future


def test_a_sampler_whose_save_was_answered_too_late_is_taken_by_its_name() -> None:
    state: Future[Any] = Future()
    state.set_result(SimpleNamespace(path="tinker://run:train:0/weights/sft-000008"))
    stage: Any = SimpleNamespace(wait=EngineWaiter())
    kept = Saved(8, state, failed(tinker.ConflictError, 409), 5).result(stage)
    assert kept.sampler_uri == "tinker://run:train:0/sampler_weights/sft-000008"
    assert (kept.step, kept.state_uri, kept.tokens) == (8, state.result().path, 5)
    with pytest.raises(RefusedError):
        Saved(8, state, failed(tinker.UnprocessableEntityError, 422)).result(stage)


def test_the_command_line(ptl: Ptl) -> None:
    said = ptl("serve", "--sample-only", "ptl/nano")
    assert said.code == 2
    assert "--sample-only goes with --like hosted" in said.err
    said = ptl("serve", "--like", "hosted", "--sample-only", "ptl/other", "--model", "ptl/nano")
    assert said.code == 2
    assert "--sample-only ptl/other: it is not offered" in said.err


def test_what_is_on_record_is_what_it_tells() -> None:
    kept: dict[str, int] = {}
    submitted: list[Any] = []
    sampler = SimpleNamespace(id="s", weights=SimpleNamespace(saved=None))
    state = SimpleNamespace(
        double=DOUBLE,
        sampler=lambda name: sampler,
        records=SimpleNamespace(
            expect=lambda ids, prompt: None,
            fill=lambda ids, tokens: kept.update(
                zip(ids, (int(t[0]) for t in tokens), strict=True)
            ),
        ),
        scheduler=SimpleNamespace(submit_batched=lambda key, batch, *more: submitted.append(batch)),
    )
    Sampling(state).sample(request(4, 3, record_stability_info=True))  # type: ignore[arg-type]
    result = sampled(4)
    submitted[0].item.on_result(result)
    assert [int(one.tokens[0]) for one in result.sequences] == [0, 0, 2, 2]
    assert list(kept.values()) == [0, 0, 2, 2]
    assert (result.sequences[0].logprobs != np.array([-1, -2], np.float32)).all()
