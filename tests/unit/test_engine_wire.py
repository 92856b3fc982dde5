"""What the SDK writes is read back the same, and what the engine writes the SDK reads."""

from __future__ import annotations

import contextlib
import json
import random

import numpy as np
import pytest
import torch
from tinker import types
from tinker.proto import tinker_public_pb2 as pb
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import (
    deserialize_forward_backward_output,
    deserialize_sample_response,
)

from posttrain_recipes.engine import wire


def body(data: list[types.Datum], config: dict[str, float | str] | None = None) -> bytes:
    inner = types.ForwardBackwardInput(data=data, loss_fn="ppo", loss_fn_config=config)
    request = types.ForwardBackwardRequest(inner, model_id="m", seq_id=3)
    return forward_backward_request_to_proto(request).SerializeToString()


def test_forward_backward_as_the_sdk_sends_it() -> None:
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([1, 2]).append_int(3),
        loss_fn_inputs={"target_tokens": [2, 3, 4], "advantages": [0.5, -1.0, 0.0]},
    )
    parsed = wire.parse_forward_backward(body([datum], {"clip_low_threshold": 0.7, "how": "x"}))
    assert (parsed.model_id, parsed.seq_id, parsed.loss_fn) == ("m", 3, "ppo")
    assert parsed.config == {"clip_low_threshold": 0.7, "how": "x"}
    assert parsed.data[0].tokens.tolist() == [1, 2, 3]
    assert parsed.data[0].inputs["target_tokens"].tolist() == [2, 3, 4]
    assert parsed.data[0].inputs["advantages"].tolist() == [0.5, -1.0, 0.0]


def test_a_sparse_tensor_is_made_dense() -> None:
    targets = torch.zeros(20, 8, dtype=torch.int64)
    targets[3, 0], targets[3, 5], targets[19, 7] = 4, 6, 9
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(list(range(20))),
        loss_fn_inputs={"target_tokens": targets},
    )
    assert datum.loss_fn_inputs["target_tokens"].sparse_crow_indices is not None
    (parsed,) = wire.parse_forward_backward(body([datum])).data
    np.testing.assert_array_equal(parsed.inputs["target_tokens"], targets)


def test_a_sparse_tensor_that_does_not_add_up_is_refused() -> None:
    message = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[2, 2])
    message.sparse_csr.values = np.ones(1, np.float32).tobytes()
    message.sparse_csr.col_indices = np.array([5], np.int64).tobytes()
    message.sparse_csr.crow_indices = np.array([0, 1, 1], np.int64).tobytes()
    with pytest.raises(wire.RequestError, match="add up"):
        wire.dense(message)


def test_forward_backward_results_of_any_width() -> None:
    arrays = [
        np.array([-1.0, -2.0], np.float32),
        np.array([-3.0], np.float32),
        np.array([[-1.0, -2.0], [-3.0, -4.0]], np.float32),
        np.array([-5.0], np.float32),
    ]
    encoded, kind = wire.ForwardBackwardResult(arrays, {"loss:sum": 2.5}).encode()
    assert kind == wire.PROTOBUF
    out = deserialize_forward_backward_output(encoded)
    assert out.metrics == {"loss:sum": 2.5}
    assert [o["logprobs"].shape for o in out.loss_fn_outputs] == [[2], [1], [2, 2], [1]]
    for got, array in zip(out.loss_fn_outputs, arrays, strict=True):
        np.testing.assert_array_equal(got["logprobs"].to_numpy(), array)


def test_no_datums_no_outputs() -> None:
    encoded, _ = wire.ForwardBackwardResult([], {"loss:sum": 0.0}).encode()
    assert deserialize_forward_backward_output(encoded).loss_fn_outputs == []


def test_samples_as_the_sdk_reads_them() -> None:
    topk = wire.TopK(
        np.array([[0, 0], [5, 6]], np.int32),
        np.array([[wire.MASK_LOGPROB] * 2, [-0.5, -1.5]], np.float32),
    )
    sequence = wire.SampledTokens(
        np.array([7, 8], np.int32), np.array([-0.1, -0.2], np.float32), stopped=True, topk=topk
    )
    prompt = np.array([np.nan, -1.5], np.float32)
    encoded, _ = wire.SampleResult([sequence], prompt, topk).encode()
    out = deserialize_sample_response(encoded)
    assert out.sequences[0].tokens == [7, 8]
    assert out.sequences[0].logprobs == pytest.approx([-0.1, -0.2])
    assert out.sequences[0].stop_reason == "stop"
    assert out.prompt_logprobs == [None, -1.5]
    assert out.topk_prompt_logprobs == [None, [(5, -0.5), (6, -1.5)]]
    assert out.sequences[0].topk_logprobs == [None, [(5, -0.5), (6, -1.5)]]


def test_json_requests_name_the_field_at_fault() -> None:
    with pytest.raises(wire.RequestError, match="model_seq_id") as caught:
        wire.parse(wire.CreateModel, b'{"session_id": "s", "base_model": "b"}')
    assert caught.value.status == 400
    with pytest.raises(wire.RequestError):
        wire.parse(wire.CreateModel, b"\xff\x00 no json")


@pytest.mark.parametrize("stop", [None, "\n", ["a", "b"], [1, 2], []])
def test_stop_keeps_its_type(stop: object) -> None:
    request = {
        "sampling_session_id": "s",
        "seq_id": 0,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
        "sampling_params": {"stop": stop},
    }
    parsed = wire.parse(wire.SampleRequest, json.dumps(request).encode())
    assert parsed.sampling_params.stop == stop
    assert parsed.prompt.tokens().tolist() == [1, 2]


def test_no_bytes_crash_the_parser() -> None:
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([1, 2, 3]),
        loss_fn_inputs={"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]},
    )
    good, rng = bytearray(body([datum])), random.Random(0)
    for _ in range(500):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        with contextlib.suppress(wire.RequestError):  # anything else is a crash
            wire.parse_forward_backward(bytes(bad[: rng.randrange(len(bad) + 1)]))
