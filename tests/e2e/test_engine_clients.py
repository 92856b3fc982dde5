"""Many clients over raw HTTP: retries, chunks out of order, refusals, cancellations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tinker.proto import tinker_public_pb2 as pb

from posttrain_recipes.engine import app as engine_app
from posttrain_recipes.engine.core.service import Service
from posttrain_recipes.engine.http.auth import Access
from tests.engine_model import build

TOKEN = "tml-" + "t" * 32
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    model = build(tmp_path_factory.mktemp("model"))
    return Service({"m": str(model)}, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    app = engine_app.build(service, Access(TOKEN))
    with TestClient(app, base_url="http://127.0.0.1:8000", headers={"X-API-Key": TOKEN}) as client:
        yield client


class Trainer:
    """One client of the engine, as bytes on the wire."""

    def __init__(self, client: TestClient, seed: int) -> None:
        self.client = client
        session = self.post("create_session", {})["session_id"]
        self.session = session
        made = self.post(
            "create_model",
            {"session_id": session, "model_seq_id": 0, "base_model": "m",
             "lora_config": {"rank": 2, "seed": seed}},
        )  # fmt: skip
        self.model: str = json.loads(self.answer(made["request_id"]))["model_id"]

    def send(self, path: str, body: Any) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(f"/api/v1/{path}", content=content, headers=JSON)

    def post(self, path: str, body: Any) -> dict[str, Any]:
        got = self.send(path, body)
        assert got.status_code == 200, got.text
        answer: dict[str, Any] = got.json()
        return answer

    def answer(self, request_id: str) -> bytes:
        got = self.send("retrieve_future", {"request_id": request_id})
        assert got.status_code == 200, got.text
        content: bytes = got.content
        return content

    def chunk(self, seq: int, seed: int) -> bytes:
        tokens = np.random.default_rng(seed).integers(0, 256, 9)
        message = pb.ForwardBackwardRequest(
            model_id=self.model, seq_id=seq, loss_fn="cross_entropy"
        )
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = tokens[:-1].astype(np.int32).tobytes()
        targets = datum.loss_fn_inputs["target_tokens"]
        targets.dense, targets.dtype = tokens[1:].astype(np.int64).tobytes(), pb.DTYPE_INT64
        targets.shape.append(8)
        return message.SerializeToString()

    def step(self, seq: int) -> dict[str, Any]:
        return {"model_id": self.model, "seq_id": seq, "adam_params": {"learning_rate": 0.01}}

    def loss(self, seq: int, seed: int = 0) -> float:
        got = self.post("forward_backward", self.chunk(seq, seed))
        output = pb.ForwardBackwardOutput()
        output.ParseFromString(self.answer(got["request_id"]))
        return output.metrics["loss:sum"]


def losses(trainer: Trainer, *, bad_network: bool) -> list[float]:
    """Two steps of three chunks; on a bad network each is sent twice and the first comes last."""
    for start in (1, 5):
        chunks = [("forward_backward", trainer.chunk(start + n, n)) for n in range(3)]
        requests: list[tuple[str, Any]] = [*chunks, ("optim_step", trainer.step(start + 3))]
        order = [1, 3, 2, 1, 0, 3, 2, 0] if bad_network else [0, 1, 2, 3]
        ids: dict[int, set[str]] = {}
        for index in order:
            ids.setdefault(index, set()).add(trainer.post(*requests[index])["request_id"])
        assert all(len(names) == 1 for names in ids.values())  # sent again, it is the same request
        for names in ids.values():
            for _ in range(2 if bad_network else 1):  # an answer that was lost is asked for again
                trainer.answer(*names)
    return [trainer.loss(9 + seed, seed) for seed in (0, 1)]


def test_a_bad_network_changes_nothing(client: TestClient) -> None:
    assert losses(Trainer(client, 1), bad_network=True) == losses(
        Trainer(client, 1), bad_network=False
    )


def test_clients_at_once_do_not_meet(client: TestClient) -> None:
    alone = [losses(Trainer(client, seed), bad_network=False) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(
            pool.map(lambda seed: losses(Trainer(client, seed), bad_network=True), (0, 1))
        )
    assert together == alone
    assert len({tuple(found) for found in alone}) == 2


def test_what_is_refused_takes_its_number_and_leaves_the_weights(client: TestClient) -> None:
    clean, other = Trainer(client, 2), Trainer(client, 2)
    bad = other.step(1)
    bad["adam_params"]["learning_rate"] = -1.0
    garbled = pb.ForwardBackwardRequest(model_id=other.model, seq_id=2, loss_fn="cross_entropy")
    garbled.data.add().loss_fn_inputs["target_tokens"].dtype = 99
    for path, body in (
        ("optim_step", bad),
        ("forward_backward", garbled.SerializeToString()),
        ("save_weights", {"model_id": other.model, "seq_id": 3, "path": "../x"}),
        ("optim_step", {"model_id": other.model, "seq_id": 4, "adam_params": 5}),
    ):
        for _ in range(2):
            assert 400 <= other.send(path, body).status_code < 500
    assert other.loss(5) == clean.loss(1)
    # A number that was used is another request's: it is not run, nor given that one's answer.
    taken = other.send("forward_backward", other.chunk(5, 7))
    assert taken.status_code == 409
    assert "another request was accepted under this seq_id" in taken.text
    assert other.send("optim_step", other.step(5)).status_code == 409
    assert other.send("forward_backward", other.chunk(5, 0)).status_code == 200
    assert other.loss(6) == clean.loss(2)


def test_cancelled_samples_answer_and_others_go_on(client: TestClient) -> None:
    trainer = Trainer(client, 3)
    made = trainer.post(
        "create_sampling_session",
        {"session_id": trainer.session, "sampling_session_seq_id": 0, "base_model": "m"},
    )

    def ask(seq: int, count: int, limit: int) -> str:
        got = trainer.post(
            "asample",
            {"sampling_session_id": made["sampling_session_id"], "seq_id": seq,
             "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]},
             "num_samples": count, "sampling_params": {"max_tokens": limit, "stop": [], "seed": 1}},
        )  # fmt: skip
        request_id: str = got["request_id"]
        return request_id

    def tokens(request_id: str) -> list[bytes]:
        response = pb.SampleResponse()
        response.ParseFromString(trainer.answer(request_id))
        return [sequence.tokens for sequence in response.sequences]

    alone = tokens(ask(1, 2, 20))
    long = [ask(seq, 50, 120) for seq in (2, 3)]
    kept = ask(4, 2, 20)
    for request_id in long:
        trainer.post("cancel_future", {"request_id": request_id})
        assert b"cancelled" in trainer.answer(request_id)
    assert tokens(kept) == alone  # neighbours that leave change nothing
    again = trainer.post("optim_step", trainer.step(1))["request_id"]
    assert trainer.send("cancel_future", {"request_id": again}).status_code == 422


def test_a_long_generation_keeps_no_other_client_waiting(
    client: TestClient, service: Service
) -> None:
    """A short request, a new model and a step are answered while 256 long ones are under way."""
    sampler = Trainer(client, 1)
    made = sampler.post("save_weights_for_sampler", {
        "model_id": sampler.model, "seq_id": 1, "sampling_session_seq_id": 0,
    })  # fmt: skip
    long = json.loads(sampler.answer(made["request_id"]))["sampling_session_id"]
    short = sampler.post(
        "create_sampling_session",
        {"session_id": sampler.session, "sampling_session_seq_id": 1, "base_model": "m"},
    )["sampling_session_id"]

    def ask(sampler_id: str, seq: int, tokens: int, count: int) -> str:
        body = {
            "sampling_session_id": sampler_id, "seq_id": seq, "num_samples": count,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]},
            "sampling_params": {"max_tokens": tokens, "seed": 1, "stop": []},
        }  # fmt: skip
        request_id: str = sampler.post("asample", body)["request_id"]
        return request_id

    under_way = ask(long, 1, 120, 256)
    assert sampler.answer(ask(short, 1, 4, 1))
    other = Trainer(client, 2)
    other.loss(1)
    sampler.answer(sampler.post("optim_step", sampler.step(2))["request_id"])
    assert not service.state.scheduler.futures.get(under_way).done.is_set()
    assert sampler.answer(under_way)
