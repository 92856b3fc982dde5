"""Authentication, what is refused, and that the engine goes on after it; no model is loaded."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from posttrain_recipes.cli import cli
from posttrain_recipes.engine import app as engine_app
from posttrain_recipes.engine import wire
from posttrain_recipes.engine.core.futures import Pending
from posttrain_recipes.engine.core.metrics import Metrics
from posttrain_recipes.engine.core.service import Service
from posttrain_recipes.engine.core.transfers import Signer
from posttrain_recipes.engine.http import routing
from posttrain_recipes.engine.http.auth import Access
from posttrain_recipes.engine.storage import checkpoints
from posttrain_recipes.engine.storage.checkpoints import CheckpointStore
from posttrain_recipes.engine.wire import RequestError

TOKEN = "tml-" + "t" * 32


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    app = engine_app.build(Service({}, tmp_path), Access(TOKEN))
    with TestClient(app, base_url="http://127.0.0.1:8000", headers={"X-API-Key": TOKEN}) as client:
        yield client


def post(client: TestClient, path: str, body: Any = None, **more: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    return client.post(f"/api/v1/{path}", content=content, **more)


def session(client: TestClient) -> str:
    answer: str = post(client, "create_session").json()["session_id"]
    return answer


def result(client: TestClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    accepted = post(client, path, body)
    assert accepted.status_code == 200, accepted.text
    answer: dict[str, Any] = post(
        client, "retrieve_future", {"request_id": accepted.json()["request_id"]}
    ).json()
    return answer


def test_the_token_is_asked_for_everywhere_but_for_health(client: TestClient) -> None:
    for headers in ({"X-API-Key": "tml-wrong"}, {"X-API-Key": ""}, {"X-API-Key": TOKEN + "x"}):
        assert post(client, "create_session", headers=headers).status_code == 401
        assert client.get("/api/v1/nowhere", headers=headers).status_code == 401
        assert client.get("/healthz", headers=headers).json() == {"status": "ok"}
    assert post(client, "create_session").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""]
)
def test_strange_hosts_are_refused(client: TestClient, host: str) -> None:
    assert post(client, "create_session", headers={"Host": host}).status_code == 403
    assert client.get("/healthz", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:9", "[::1]:9", "[::1]"])
def test_loopback_hosts_are_known(client: TestClient, host: str) -> None:
    assert post(client, "create_session", headers={"Host": host}).status_code == 200


def test_a_wildcard_address_knows_every_numeric_host() -> None:
    access = Access(TOKEN, frozenset({"0.0.0.0"}), any_address=True)
    assert access.allows_host("10.1.2.3:80")
    assert access.allows_host("[fe80::1]:80")
    assert not access.allows_host("evil.example:80")


POSTS = [
    "create_session", "session_heartbeat", "create_model", "unload_model", "get_info",
    "forward_backward", "optim_step", "save_weights", "save_weights_for_sampler", "load_weights",
    "create_sampling_session", "join_sampling_session", "asample", "retrieve_future",
    "weights_info", "cancel_future", "retrieve_futures", "copy_weights", "save_weights_external",
    "create_custom_loss",
]  # fmt: skip


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body", [b"\xff\xfe\x00", b"{", b"[1]", b'{"model_id": [], "tags": 3}', b"\x08\x96\x01"]
)
def test_garbage_is_a_4xx_and_the_engine_goes_on(
    client: TestClient, path: str, body: bytes
) -> None:
    assert 400 <= post(client, path, body).status_code < 500
    assert client.get("/healthz").status_code == 200


def test_bodies_have_a_limit(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_BODY", 1000)
    assert post(client, "create_session", b" " * 1001).status_code == 413
    assert (
        post(client, "create_session", b"", headers={"Content-Encoding": "zstd"}).status_code == 415
    )
    assert post(client, "create_session").status_code == 200


def test_what_is_unknown_is_a_404(client: TestClient) -> None:
    here = session(client)
    cases = [
        ("create_model", {"session_id": "x", "model_seq_id": 0, "base_model": "b"}),
        ("get_info", {"model_id": "x:train:0"}),
        ("optim_step", {"model_id": "x:train:0", "seq_id": 1, "adam_params": {}}),
        ("load_weights", {"session_id": here, "model_seq_id": 0, "optimizer": True,
                          "path": "tinker://a:train:0/weights/b"}),
        ("create_sampling_session", {"session_id": here, "sampling_session_seq_id": 0,
                                     "base_model": "nothing-here"}),
        ("weights_info", {"tinker_path": "tinker://a:train:0/weights/b"}),
    ]  # fmt: skip
    for path, body in cases:
        answer = post(client, path, body)
        assert answer.status_code == 404, (path, answer.text)
    assert post(client, "cancel_future", {"request_id": "x"}).status_code == 410
    for path in ("samplers/x", "sessions/x", "training_runs/a:train:0"):
        assert client.get(f"/api/v1/{path}").status_code == 404
    assert post(client, "retrieve_future", {"request_id": "x"}).status_code == 410


def test_checkpoint_paths_do_not_leave_the_data_folder(client: TestClient, tmp_path: Path) -> None:
    victim = tmp_path / "runs" / "precious"
    victim.mkdir(parents=True)
    for kind, name in (
        ("..", "precious"),
        ("weights", "..%2F..%2Fprecious"),
        ("weights", "%2e%2e"),
    ):
        answer = client.delete(f"/api/v1/training_runs/a:train:0/checkpoints/{kind}/{name}")
        assert 400 <= answer.status_code < 500
    assert victim.is_dir()


def test_a_base_model_that_does_not_load_is_the_callers_error(
    client: TestClient, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    body = {"session_id": session(client), "model_seq_id": 0, "base_model": str(empty)}
    answer = result(client, "create_model", body)
    assert answer["category"] == "user"
    assert "cannot load base model" in answer["error"]


def test_other_optimizers_are_refused(client: TestClient) -> None:
    body = {"session_id": session(client), "model_seq_id": 0, "base_model": "b"}
    answer = post(client, "create_model", {**body, "optimizer_config": {"type": "dimuon"}})
    assert answer.status_code == 422
    assert "AdamW" in answer.json()["detail"]


@pytest.mark.parametrize("path", engine_app.ELSEWHERE)
def test_what_is_not_served_says_what_to_do(client: TestClient, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        answer = client.request(method, f"/api/v1/{path.format(session='s')}")
        assert answer.status_code == 422
        assert engine_app.ELSEWHERE[path] in answer.json()["detail"]


def test_an_unknown_route_is_told_as_such(client: TestClient) -> None:
    answer = client.get("/api/v1/no/such")
    assert (answer.status_code, answer.json()["detail"]) == (
        404, "this engine has no route GET /api/v1/no/such"
    )  # fmt: skip
    assert client.get("/api/v1/create_session").status_code == 405


def test_a_finished_session_can_be_looked_up_and_its_client_stops(client: TestClient) -> None:
    here = session(client)
    assert here in client.get("/api/v1/sessions").json()["sessions"]
    assert post(client, "session_heartbeat", {"session_id": here}).status_code == 200
    for reason in ("errored", "success"):  # the first counts
        body = {"reason": {"type": reason}, "detail": "why"}
        assert post(client, f"sessions/{here}/finish", body).status_code == 200
    assert post(client, "session_heartbeat", {"session_id": here}).status_code == 410
    assert client.get(f"/api/v1/sessions/{here}").json()["training_run_ids"] == []
    (found,) = post(client, "sessions/search", {"session_id": here}).json()["sessions"]
    assert found["status"] == {
        "type": "client_finished", "reason": {"type": "errored"}, "detail": "why"
    }  # fmt: skip
    model = {"session_id": here, "model_seq_id": 0, "base_model": "b"}
    assert post(client, "create_model", model).status_code == 404


def test_where_only_what_is_served_may_be_named_nothing_else_is_read_or_fetched(
    tmp_path: Path,
) -> None:
    """By no door: not as a directory that is there, as a hub id, or as what a checkpoint is of."""
    store = CheckpointStore(tmp_path / "data")
    path = checkpoints.CheckpointPath("a:train:0", "sampler_weights", "x")
    made = checkpoints.CheckpointRecord(str(path), "a/b", wire.AdapterConfig(), 0, "2026")
    store.save(path, made, lambda folder: None, overwrite=False)
    service = Service({"served": "a/b"}, tmp_path / "data", only_served=True)
    service.state.scheduler.submit = None  # type: ignore[method-assign, assignment]
    here = service.create_session(wire.CreateSession())["session_id"]
    for name in (str(tmp_path), "a/b", "b"):
        for ask in (
            lambda name=name: service.training.create_model(wire.CreateModel(here, 0, name)),
            lambda name=name: service.sampling.create_sampling_session(
                wire.CreateSampler(here, 0, base_model=name)
            ),
            lambda name=name: service.sampling.weights(name),
        ):
            with pytest.raises(RequestError, match="this engine serves served, and no other") as e:
                ask()
            assert e.value.status == 404
    with pytest.raises(RequestError, match="this engine serves served, and no other"):
        service.sampling.weights(str(path))
    with pytest.raises(RequestError, match="this engine serves served, and no other"):
        service.training.load_weights(
            wire.LoadWeights(str(path), False, session_id=here, model_seq_id=0)
        )
    assert service.state.models == {}
    service.sampling.weights("served")
    Service({"served": "a/b"}, tmp_path / "data").sampling.weights("c/d")  # else any hub id


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        (["--host", "0.0.0.0"], True),
        (["--host", "10.1.2.3"], True),
        (["--host", "0.0.0.0", "--any-model"], False),
        (["--host", "127.0.0.2"], False),
        (["--host", "::1"], False),
        (["--only-served"], True),
        ([], False),
    ],
)
def test_who_may_be_reached_from_elsewhere_serves_only_what_it_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], closed: bool
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        "posttrain_recipes.engine.__main__.run_server", lambda *a, **kw: asked.update(kw)
    )
    monkeypatch.setenv("PTL_ENGINE_TOKEN", TOKEN)
    done = CliRunner().invoke(cli, ["serve", "--home", str(tmp_path), *arguments])
    assert done.exit_code == 0, done.output
    assert asked["only_served"] is closed


def test_a_lost_session_is_reaped_while_others_work(tmp_path: Path) -> None:
    service = Service({}, tmp_path)
    kept, lost = (service.create_session(wire.CreateSession())["session_id"] for _ in range(2))
    model = service.training._new_model(lost, 0, "a/b", wire.AdapterConfig(), None)
    service.sampling.create_sampling_session(wire.CreateSampler(lost, 0, base_model="a/b"))
    service.state.sessions[lost].last_seen -= 10_000
    service.state.scheduler._busy = True
    service.reap()
    assert list(service.state.sessions) == [kept]
    assert (service.state.models, service.state.samplers) == ({}, {})
    with pytest.raises(RequestError, match="no model") as caught:
        service.state.model(model.id)
    assert caught.value.status == 404


def test_ended_sessions_are_remembered_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain_recipes.engine.core.service.FINISHED_KEPT", 3)
    service = Service({}, tmp_path)
    for _ in range(5):
        service.finish_session(service.create_session(wire.CreateSession())["session_id"])
    assert len(service.state.finished) == 3
    assert service.state.sessions == {}


def test_a_download_needs_a_signature_that_holds(client: TestClient, tmp_path: Path) -> None:
    run, signer = "a:train:0", Signer(TOKEN)
    folder = tmp_path / "runs" / "a_train_0" / "external_weights" / "x"
    folder.mkdir(parents=True)
    record = {"path": f"tinker://{run}/external_weights/x", "base_model": "b", "lora": {},
              "step": 0, "time": "2026-01-01T00:00:00+00:00"}  # fmt: skip
    (folder / "checkpoint.json").write_text(json.dumps(record))
    (folder / "adapter_model.safetensors").write_text("weights")
    (tmp_path / "runs" / "a_train_0" / "secret").write_text("secret")
    one = f"/api/v1/training_runs/{run}/checkpoints/external_weights/x"
    urls = client.get(f"{one}/external_weights_urls").json()["urls"]
    assert list(urls) == ["adapter_model.safetensors"]
    url = urls["adapter_model.safetensors"]
    stranger, place = {"X-API-Key": ""}, f"/files/{run}/x/adapter_model.safetensors"
    assert client.get(url, headers=stranger).text == "weights"
    assert client.get(url, headers={**stranger, "Host": "evil.example"}).status_code == 403
    for wrong in (
        url.replace("signature=", "signature=0"), url.replace("expires=", "expires=9"),
        url.split("?")[0], url.replace("/x/", "/y/"),
        f"{url.split('?')[0]}?expires=1&signature={signer.sign(place, 1)}",
    ):  # fmt: skip
        assert client.get(wrong, headers=stranger).status_code == 403, wrong
    for name in ("checkpoint.json", "..%2F..%2Fsecret", "none"):
        path = f"/files/{run}/x/{name}"
        asked = f"{path}?expires=99999999999&signature={signer.sign(path, 99999999999)}"
        assert 400 <= client.get(asked, headers=stranger).status_code < 500
    assert client.get(url, headers=stranger).status_code == 200
    client.delete(one)
    assert client.get(url, headers=stranger).status_code == 404


def test_a_bearer_token_is_the_token_too(client: TestClient) -> None:
    for value, status in ((f"Bearer {TOKEN}", 200), ("Bearer x", 401), (f"Basic {TOKEN}", 401)):
        headers = {"X-API-Key": "", "Authorization": value}
        assert client.get("/api/v1/sessions", headers=headers).status_code == status


def test_pages_are_checked(client: TestClient) -> None:
    assert client.get("/api/v1/training_runs?limit=x").status_code == 400
    assert client.get("/api/v1/checkpoints?limit=-1").status_code == 400
    assert client.get("/api/v1/checkpoints").json()["checkpoints"] == []


def test_metrics_are_prometheus_text_behind_the_token(client: TestClient) -> None:
    client.get("/api/v1/training_runs/a:train:0")
    client.get("/api/v1/training_runs/b:train:0")
    client.get('/api/v1/no/"such"')
    assert client.get("/metrics", headers={"X-API-Key": ""}).status_code == 401
    answer = client.get("/metrics", headers={"X-API-Key": "", "Authorization": f"Bearer {TOKEN}"})
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    route = 'method="GET",route="/api/v1/training_runs/{run}",status="404"'
    assert f"ptl_requests_total{{{route}}} 2" in lines
    assert 'ptl_requests_total{method="GET",route="none",status="404"} 1' in lines
    assert 'ptl_requests_total{method="GET",route="none",status="401"} 1' in lines
    for name in ("queue_depth", "sessions", "adapters", "tokens_trained_total"):
        assert f"ptl_{name} 0" in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
    for line in lines:
        assert re.fullmatch(r"# (HELP|TYPE) \S+ .+|[a-z_]+(\{[^{}]*(\{\w+\}[^{}]*)*\})? \S+", line)


def test_each_request_is_one_line_of_log_without_secrets(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="posttrain_recipes.engine.requests"):
        session(client)
        client.get("/files/a:train:0/x/y?expires=1&signature=secret")
        client.get("/api/v1/sessions/a%0Ab")
        client.get("/healthz")
    told = [(record.levelname, record.getMessage().rsplit(" ", 2)[0]) for record in caplog.records]
    assert told == [
        ("INFO", "POST /api/v1/create_session 200"),
        ("WARNING", "GET /files/a:train:0/x/y 403"),
        ("INFO", "GET /api/v1/sessions/a\\nb 404"),
        ("DEBUG", "GET /healthz 200"),
    ]
    assert TOKEN not in caplog.text


def test_work_is_counted() -> None:
    metrics = Metrics()
    done = wire.SampledTokens(np.zeros(5, np.int32), np.zeros(5, np.float32), stopped=True)
    metrics.answered(Pending(1, kind="forward_backward", tokens=100), {}, 0.5)
    metrics.answered(Pending(2, kind="forward_backward", tokens=100), ValueError(), 0.5)
    metrics.answered(Pending(3, kind="asample"), wire.SampleResult([done, done]), 0.0)
    assert (metrics.trained, metrics.sampled) == (100, 10)
    assert metrics.failed == {"forward_backward": 1}
    assert metrics.work == {"forward_backward": [2, 1.0]}
    assert metrics.latency["asample"][0] == 1
