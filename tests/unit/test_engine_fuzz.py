"""Nonsense at every route: a 4xx or an error of the asker's, in words, and the engine goes on.

After each batch of nonsense a real step is taken and a real sample drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinker.proto import tinker_public_pb2 as pb

from tests.engine_model import VOCAB
from tests.live_engine import BASE, CONTEXT, Live, message, started

few = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with started(tmp_path_factory.mktemp("engine")) as live:
        yield live


@pytest.fixture(autouse=True)
def _goes_on(live: Live) -> Iterator[None]:
    yield
    live.goes_on()


# Bodies ------------------------------------------------------------------------------------------

ROUTES = (
    "create_session", "session_heartbeat", "create_model", "unload_model", "get_info",
    "forward_backward", "optim_step", "save_weights", "save_weights_for_sampler",
    "save_weights_external", "load_weights", "create_sampling_session", "join_sampling_session",
    "asample", "retrieve_future", "retrieve_futures", "cancel_future", "weights_info",
    "copy_weights", "create_custom_loss", "sessions/search", "sessions/x/finish",
)  # fmt: skip
DEEP = (b"[" * 100_000, b'{"a":' * 100_000, b'{"model_id":' + b"[" * 5000 + b"]" * 5000 + b"}")


KINDS = ("application/json", "application/x-protobuf", "text/html; é=1", "")


@pytest.mark.parametrize("path", ROUTES)
def test_bytes_that_mean_nothing(live: Live, path: str) -> None:
    chance = np.random.default_rng(0)
    noise = [chance.bytes(size) for size in (1, 7, 100, 5000)]
    other = (b"\x00", b'"\\ud800"', b"NaN", b"1e999", b"{}" * 3, b"[{}]")
    for body, kind in zip((*noise, *DEEP, *other), itertools.cycle(KINDS), strict=False):
        answer = live.client.post(
            f"/api/v1/{path}", content=body, headers={"Content-Type": kind.encode("latin-1")}
        )
        assert 400 <= answer.status_code < 500, (body[:20], answer.text)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40])
    | st.sampled_from([0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf")])
    | st.sampled_from(["", "\x00", "../../x", "/etc/passwd", "a" * 5000, "💥", "\ud800"])
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)  # fmt: skip


def bodies(live: Live) -> dict[str, dict[str, Any]]:
    """A sound body for each route that is asked for JSON."""
    path = f"tinker://{live.steady}/weights/none"
    return {
        "create_session": {"tags": ["a"], "user_metadata": {"a": "b"}, "sdk_version": "1"},
        "session_heartbeat": {"session_id": live.session},
        "create_model": {
            "session_id": live.session, "model_seq_id": 10_000, "base_model": BASE,
            "lora_config": {"rank": 2, "seed": 1}, "user_metadata": {}, "optimizer_config": None,
        },
        "get_info": {"model_id": live.steady},
        "load_weights": {
            "session_id": live.session, "model_seq_id": 10_001, "path": path, "optimizer": True,
        },
        "create_sampling_session": {
            "session_id": live.session, "sampling_session_seq_id": 7, "base_model": BASE,
            "model_path": None,
        },
        "join_sampling_session": {"sampling_session_id": live.sampler},
        "asample": live.sample(),
        "weights_info": {"tinker_path": path},
        "copy_weights": {"source_path": path, "destination_project_id": "p", "ttl_seconds": None},
        "retrieve_futures": {
            "target": {"sampling_session_id": live.sampler}, "prev_cursor": 0, "timeout": 0.0,
            "retrieved_request_ids": [],
        },
        "cancel_future": {"request_id": "none"},
        "sessions/search": {"limit": 5},
    }  # fmt: skip


@given(data=st.data())
@settings(few, max_examples=250)
def test_sound_bodies_with_one_thing_wrong(live: Live, data: st.DataObject) -> None:
    sound = bodies(live)
    path = data.draw(st.sampled_from(sorted(sound)))
    body = sound[path]
    key = data.draw(st.sampled_from(sorted(body)))
    if isinstance(body[key], dict) and body[key] and data.draw(st.booleans()):
        body[key] = {
            **body[key],
            data.draw(st.sampled_from(sorted(body[key]))): data.draw(anything),
        }
    else:
        body[key] = data.draw(anything)
    live.verdict(live.post(path, body))


# Samples -----------------------------------------------------------------------------------------


def chunks(*tokens: Any) -> dict[str, Any]:
    return {"chunks": [{"type": "encoded_text", "tokens": list(tokens)}]}


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": chunks(1, VOCAB)},
        {"prompt": chunks(-1)},
        {"prompt": chunks(2**31 - 1)},
        {"prompt": chunks(2**40)},
        {"prompt": chunks()},
        {"prompt": {"chunks": []}},
        {"prompt": {"chunks": [{"type": "image", "data": "x"}]}},
        {"prompt": chunks(*[1] * (CONTEXT + 1))},
        {"prompt": chunks(*[1] * 200_000)},
        {"num_samples": 0},
        {"num_samples": -1},
        {"num_samples": 10**9},
        {"topk_prompt_logprobs": 10**6},
        {"topk_prompt_logprobs": -1},
        {"topk_sample_logprobs": 10**6},
        {"prompt_logprobs_last_n": -5},
        {"target_prompt_logprobs": {"data": [1], "dtype": "int64", "shape": [10**9, 10**9]}},
        {"params": {"max_tokens": -1}},
        {"params": {"temperature": -1.0}},
        {"params": {"temperature": float("nan")}},
        {"params": {"temperature": float("inf")}},
        {"params": {"top_p": -0.5}},
        {"params": {"top_p": 7.0}},
        {"params": {"top_p": float("nan")}},
        {"params": {"top_k": -7}},
        {"params": {"seed": 2**70}},
        {"params": {"stop": [""]}},
        {"params": {"stop": [-1, 10**9]}},
        {"params": {"stop": ["a", 1]}},
    ],
    ids=str,
)
def test_samples_that_cannot_be(live: Live, changes: dict[str, Any]) -> None:
    verdict = live.verdict(live.post("asample", live.sample(**changes)))
    harmless = ({"stop": [-1, 10**9]}, {"stop": ["a", 1]}, {"seed": 2**70})
    assert verdict != "done" or changes.get("params") in harmless


@pytest.mark.parametrize("tokens", [10**9, 2**31])
def test_more_tokens_than_there_is_room_for_is_all_there_is_room_for(
    live: Live, tokens: int
) -> None:
    body = live.sample(params={"max_tokens": tokens})
    assert live.verdict(live.post("asample", body)) in ("done", "failed", "refused")


# Training ----------------------------------------------------------------------------------------


def array(request: Any, name: str, values: Any, kind: int, shape: list[int] | None = None) -> None:
    tensor = request.data[0].loss_fn_inputs[name]
    tensor.Clear()
    array = np.asarray(values, {1: np.float32, 2: np.int64}.get(kind, np.float32))
    tensor.dense, tensor.dtype = array.tobytes(), kind
    tensor.shape.extend(array.shape if shape is None else shape)


def tokens(request: Any, values: Any) -> None:
    request.data[0].model_input[0].encoded_text.tokens = np.asarray(values, np.int32).tobytes()


def too_long(request: Any) -> None:
    tokens(request, [1] * (CONTEXT + 1))
    array(request, "target_tokens", [1] * (CONTEXT + 1), 2)
    array(request, "weights", [1.0] * (CONTEXT + 1), 1)


def sparse(request: Any) -> None:
    tensor = request.data[0].loss_fn_inputs["weights"]
    tensor.ClearField("dense")
    tensor.sparse_csr.values = b"abcd"
    tensor.sparse_csr.crow_indices = np.asarray([0, 5], np.int64).tobytes()
    tensor.sparse_csr.col_indices = np.asarray([-1], np.int64).tobytes()


WRONG: dict[str, Any] = {
    "token ids beyond the vocabulary": lambda r: tokens(r, [0, 1, 2, 3, 4, VOCAB]),
    "negative token ids": lambda r: tokens(r, [-1, 1, 2, 3, 4, 5]),
    "huge token ids": lambda r: tokens(r, [2**31 - 1] * 6),
    "half a token": lambda r: setattr(r.data[0].model_input[0].encoded_text, "tokens", b"abc"),
    "no tokens": lambda r: tokens(r, []),
    "no input at all": lambda r: r.data[0].ClearField("model_input"),
    "a picture": lambda r: r.data[0].model_input[0].image.SetInParent(),
    "fewer tokens than targets": lambda r: tokens(r, [1, 2]),
    "targets beyond the vocabulary": lambda r: array(r, "target_tokens", [VOCAB] * 6, 2),
    "negative targets": lambda r: array(r, "target_tokens", [-5] * 6, 2),
    "targets that are no integers": lambda r: array(r, "target_tokens", [0.5] * 6, 1),
    "no targets": lambda r: r.data[0].loss_fn_inputs.pop("target_tokens"),
    "no weights": lambda r: array(r, "weights", [], 1),
    "weights of another length": lambda r: array(r, "weights", [1.0] * 5, 1),
    "weights of another shape": lambda r: array(r, "weights", np.ones((6, 3)), 1),
    "weights in three dimensions": lambda r: array(r, "weights", np.ones((6, 1, 1)), 1),
    "weights that are NaN": lambda r: array(r, "weights", [float("nan")] * 6, 1),
    "weights that are infinite": lambda r: array(r, "weights", [float("inf")] * 6, 1),
    "a shape of more than there is": lambda r: array(r, "weights", [1.0] * 6, 1, [10**9, 10**9]),
    "a shape that overflows": lambda r: array(r, "weights", [], 1, [2**32, 2**32]),
    "a negative shape": lambda r: array(r, "weights", [1.0] * 6, 1, [-6]),
    "a negative shape of two": lambda r: array(r, "weights", [1.0] * 6, 1, [-2, -3]),
    "no dtype": lambda r: array(r, "weights", [1.0] * 6, 0),
    "an unknown dtype": lambda r: array(r, "weights", [1.0] * 6, 77),
    "a sparse tensor that does not add up": sparse,
    "more than fits": too_long,
    "an unknown loss": lambda r: setattr(r, "loss_fn", "teapot"),
    "no loss": lambda r: setattr(r, "loss_fn", ""),
    "a loss without its inputs": lambda r: setattr(r, "loss_fn", "ppo"),
    "an unknown custom loss": lambda r: setattr(r, "loss_fn", "custom"),
    "no data": lambda r: r.ClearField("data"),
}


@pytest.mark.parametrize("what", WRONG)
def test_passes_that_cannot_be(live: Live, what: str) -> None:
    model = live.model()
    request = message(model, live.next(model))
    WRONG[what](request)
    verdict = live.verdict(live.post("forward_backward", request.SerializeToString()))
    assert verdict != "done" or what == "no data"
    # What was refused has not used up its turn, or has been passed over: the model goes on.
    sound = message(model, live.next(model) if verdict != "refused" else 2)
    if verdict == "refused":
        again = message(model, 1)
        assert live.verdict(live.post("forward_backward", again.SerializeToString())) == "done"
    assert live.verdict(live.post("forward_backward", sound.SerializeToString())) == "done"


@given(at=st.lists(st.integers(0, 10**6), min_size=1, max_size=4), seed=st.integers(0, 2**16))
@few
def test_passes_with_bytes_changed(live: Live, at: list[int], seed: int) -> None:
    model = live.model()
    body = bytearray(message(model, 1).SerializeToString())
    noise = np.random.default_rng(seed).bytes(len(at))
    for position, byte in zip(at, noise, strict=True):
        body[position % len(body)] = byte
    answer = live.post("forward_backward", bytes(body))
    if answer.status_code == 200 and model.encode() in body and pb_seq(bytes(body)) != 1:
        return  # it waits for those that come before it
    live.verdict(answer)


def pb_seq(body: bytes) -> int:
    seq: int = pb.ForwardBackwardRequest.FromString(body).seq_id
    return seq


@pytest.mark.parametrize(
    "adam",
    [
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"learning_rate": -1.0},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"eps": float("nan")},
        {"weight_decay": float("inf")},
        {"grad_clip_norm": float("nan")},
        {"learning_rate": "fast"},
        {"learning_rate": None},
    ],
    ids=str,
)
def test_steps_that_cannot_be(live: Live, adam: dict[str, Any]) -> None:
    body = {"model_id": live.model(), "seq_id": 1, "adam_params": adam}
    assert live.verdict(live.post("optim_step", body)) != "done"


@pytest.mark.parametrize("seq", [0, -1, 2**31, 2**63, 10**30, "1", None, 1.5, True])
def test_numbers_that_count_nothing(live: Live, seq: Any) -> None:
    body = {"model_id": live.model(), "seq_id": seq, "adam_params": {}}
    answer = live.post("optim_step", body)
    assert answer.status_code == 200 or 400 <= answer.status_code < 500


@pytest.mark.parametrize(
    "lora",
    [{"rank": 0}, {"rank": -1}, {"rank": 10**9}, {"rank": "8"}, {"seed": 2**80}, {"seed": -1},
     {"train_attn": False, "train_mlp": False, "train_unembed": False}, [], 3],
    ids=str,
)  # fmt: skip
def test_adapters_that_cannot_be(live: Live, lora: Any) -> None:
    live.models += 1
    body = {
        "session_id": live.session,
        "model_seq_id": live.models,
        "base_model": BASE,
        "lora_config": lora,
    }
    verdict = live.verdict(live.post("create_model", body))
    assert verdict != "done" or lora in ({"rank": "8"}, {"seed": -1}, {"seed": 2**80})


# Names -------------------------------------------------------------------------------------------

NAMES = (
    "../x", "../../../../tmp/x", "/etc/passwd", "/tmp/ptl-was-here", "a/b", "a\\b", "a\x00b",
    "\x00", "", ".", "..", ".hidden", "a" * 5000, "~", "~root", "%2e%2e%2fx", "a\nb", "CON:", "💥",
    "\ud800", "tinker://x:train:0/weights/y", "$(id)", "{0}", "-rf",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_checkpoints_by_names_that_lead_elsewhere(live: Live, name: str) -> None:
    root = live.data_dir.parent
    model = live.model()
    before = sorted(path for path in root.rglob("*") if model.replace(":", "_") not in str(path))
    for path in ("save_weights", "save_weights_for_sampler", "save_weights_external"):
        body = {"model_id": model, "seq_id": live.next(model), "path": name}
        assert live.verdict(live.post(path, body)) != "done"
    for uri in (name, f"tinker://{name}", f"tinker://{live.steady}/weights/{name}",
                f"tinker://{name}/weights/x", f"tinker://{live.steady}/{name}/x"):  # fmt: skip
        for path, body in (
            ("load_weights", {"session_id": live.session, "model_seq_id": 9, "optimizer": True,
                              "path": uri}),
            ("create_sampling_session", {"session_id": live.session, "model_path": uri,
                                         "sampling_session_seq_id": 999}),
            ("weights_info", {"tinker_path": uri}),
            ("copy_weights", {"source_path": uri, "destination_project_id": "p"}),
        ):  # fmt: skip
            assert live.verdict(live.post(path, body)) != "done"
    after = sorted(path for path in root.rglob("*") if model.replace(":", "_") not in str(path))
    assert after == before


@pytest.mark.parametrize("name", ["..%2f..%2fx", "%2e%2e", "%00", "..%5c..%5cx", "a%2fb", "%F0%9F"])
def test_addresses_that_lead_elsewhere(live: Live, name: str) -> None:
    kept = sorted(live.data_dir.rglob("*"))
    paths = (
        f"training_runs/{name}/checkpoints/weights/x",
        f"training_runs/{live.steady}/checkpoints/{name}/x/ttl",
        f"training_runs/{live.steady}/checkpoints/weights/{name}",
        f"training_runs/{live.steady}/checkpoints/weights/{name}/publish",
        f"samplers/{name}",
        f"sessions/{name}",
        f"training_runs/{name}",
    )
    for method, path in itertools.product(("GET", "PUT", "DELETE", "POST"), paths):
        answer = live.client.request(method, f"/api/v1/{path}", content=b"{}")
        assert 400 <= answer.status_code < 500, (path, answer.text)
    assert sorted(live.data_dir.rglob("*")) == kept


@pytest.mark.parametrize(
    "query", ["limit=-1", "limit=1e9", "offset=x", "limit=", f"offset={10**30}"]
)
def test_pages_that_are_not_there(live: Live, query: str) -> None:
    for path in ("sessions", "training_runs", "checkpoints"):
        answer = live.client.get(f"/api/v1/{path}?{query}")
        assert answer.status_code < 500
        if answer.status_code == 200:
            assert query.startswith("offset=1"), (path, query)
