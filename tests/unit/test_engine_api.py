"""Who may ask, what is refused, and that the engine goes on after it; no model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from posttrain_recipes.engine import api
from posttrain_recipes.engine.api import Access
from posttrain_recipes.engine.service import Service

TOKEN = "tml-" + "t" * 32


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    app = api.build(Service({}, tmp_path), Access(TOKEN))
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
    assert access.knows("10.1.2.3:80")
    assert access.knows("[fe80::1]:80")
    assert not access.knows("evil.example:80")


POSTS = [
    "create_session", "session_heartbeat", "create_model", "unload_model", "get_info",
    "forward_backward", "optim_step", "save_weights", "save_weights_for_sampler", "load_weights",
    "create_sampling_session", "join_sampling_session", "asample", "retrieve_future",
    "weights_info",
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
    monkeypatch.setattr(api, "MAX_BODY", 1000)
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


def test_what_is_not_served_says_what_to_do(client: TestClient) -> None:
    for path in ("save_weights_external", "copy_weights", "create_custom_loss"):
        answer = post(client, path)
        assert answer.status_code == 422
        assert ":" in answer.json()["detail"]


def test_a_finished_session_is_forgotten(client: TestClient) -> None:
    here = session(client)
    assert here in client.get("/api/v1/sessions").json()["sessions"]
    assert post(client, f"sessions/{here}/finish").status_code == 200
    assert client.get(f"/api/v1/sessions/{here}").status_code == 404
    assert post(client, "session_heartbeat", {"session_id": here}).status_code == 404


def test_a_lost_session_is_reaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service({}, tmp_path)
    from posttrain_recipes.engine import wire

    kept, lost = (service.create_session(wire.CreateSession())["session_id"] for _ in range(2))
    service.state.sessions[lost].last_seen -= 10_000
    service.reap()
    assert list(service.state.sessions) == [kept]


def test_pages_are_checked(client: TestClient) -> None:
    assert client.get("/api/v1/training_runs?limit=x").status_code == 400
    assert client.get("/api/v1/checkpoints?limit=-1").status_code == 400
    assert client.get("/api/v1/checkpoints").json()["checkpoints"] == []
