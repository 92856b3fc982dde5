"""The engine's HTTP API in this process, which must go on whatever it was sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tinker.proto import tinker_public_pb2 as pb

from posttrain_recipes.engine import app as engine_app
from posttrain_recipes.engine.core.service import Service
from posttrain_recipes.engine.http.auth import Access
from posttrain_recipes.engine.model import base
from tests.engine_model import build

TOKEN = "tml-" + "t" * 32
BASE = "ptl/test"
CONTEXT = 128


@dataclass
class Live:
    """An engine, with a model in training that must go on and one that nonsense is sent to."""

    client: TestClient
    data_dir: Path
    session: str = ""
    sequence: dict[str, int] = field(default_factory=dict)
    models: int = 0

    def post(self, path: str, body: Any, **headers: str) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(f"/api/v1/{path}", content=content, headers=headers)

    def begin(self) -> None:
        self.session = self.post("create_session", {}).json()["session_id"]
        self.steady = self.model()
        self.post(
            "create_sampling_session",
            {"session_id": self.session, "sampling_session_seq_id": 0, "base_model": BASE},
        )
        self.sampler = f"{self.session}:sample:0"

    def model(self) -> str:
        self.models += 1
        body = {
            "session_id": self.session,
            "model_seq_id": self.models,
            "base_model": BASE,
            "lora_config": {"rank": 2, "seed": 1},
        }
        name: str = self.result(self.post("create_model", body))["model_id"]
        self.sequence[name] = 0
        return name

    def next(self, model: str) -> int:
        self.sequence[model] += 1
        return self.sequence[model]

    def result(self, accepted: Any) -> Any:
        """What came of a request that was accepted: an error, JSON, or bytes."""
        assert accepted.status_code == 200, accepted.text
        ref = {"request_id": accepted.json()["request_id"]}
        answer = self.post("retrieve_future", ref)
        assert answer.status_code == 200, (answer.status_code, accepted.text)
        if answer.headers["content-type"] == "application/json":
            return answer.json()
        return answer.content

    def verdict(self, answer: Any) -> str:
        """`refused` (4xx), `failed` (an error that is the asker's fault) or `done`."""
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert len(answer.json()["detail"]) > 10
            return "refused"
        if "request_id" not in answer.json():
            return "done"
        result = self.result(answer)
        if isinstance(result, dict) and "error" in result:
            assert result["category"] == "user", result
            assert len(result["error"]) > 10
            return "failed"
        return "done"

    def goes_on(self) -> None:
        """A real step, and a real sample."""
        passed = self.post(
            "forward_backward", message(self.steady, self.next(self.steady)).SerializeToString()
        )
        body = {"model_id": self.steady, "seq_id": self.next(self.steady), "adam_params": {}}
        stepped = self.post("optim_step", body)
        out = pb.ForwardBackwardOutput.FromString(self.result(passed))
        assert np.isfinite(out.metrics["loss:sum"])
        norm = self.result(stepped)["metrics"]["grad_norm:mean"]
        assert 0 < norm < float("inf")
        drawn = self.result(self.post("asample", self.sample()))
        (sequence,) = pb.SampleResponse.FromString(drawn).sequences
        assert np.isfinite(np.frombuffer(sequence.logprobs, np.float32)).all()

    def sample(self, **changes: Any) -> dict[str, Any]:
        params = {"max_tokens": 2, "stop": [], **changes.pop("params", {})}
        return {
            "sampling_session_id": self.sampler,
            "seq_id": self.next("sample"),
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
            "sampling_params": params,
            "num_samples": 1,
            **changes,
        }


def message(model: str, seq: int, length: int = 6) -> Any:
    request = pb.ForwardBackwardRequest(model_id=model, seq_id=seq, loss_fn="cross_entropy")
    datum = request.data.add()
    ids = np.arange(length + 1, dtype=np.int32)
    datum.model_input.add().encoded_text.tokens = ids[:-1].tobytes()
    targets, weights = datum.loss_fn_inputs["target_tokens"], datum.loss_fn_inputs["weights"]
    targets.dense, targets.dtype = ids[1:].astype(np.int64).tobytes(), 2
    weights.dense, weights.dtype = np.ones(length, np.float32).tobytes(), 1
    targets.shape.append(length)
    weights.shape.append(length)
    return request


@contextmanager
def started(folder: Path, substitutes: dict[str, str] | None = None) -> Iterator[Live]:
    """An engine below `folder`."""
    model = build(folder / "model")
    data_dir = folder / "root" / "data"
    app = engine_app.build(
        Service({BASE: str(model)}, data_dir, substitutes=substitutes), Access(TOKEN)
    )
    headers = {"X-API-Key": TOKEN}
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(engine_app, "POLL_S", 20.0)
        # Two threads that wait for each other are slow where others want the cores as well.
        patch.setattr(base, "_cores", lambda: 1)
        client = stack.enter_context(TestClient(app, base_url="http://127.0.0.1", headers=headers))
        live = Live(client, data_dir, sequence={"sample": 0})
        live.begin()
        yield live
