"""Who sampled which token: spans of datums are held to what samplers gave out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinker import types
from tinker.proto import request_conv
from tinker.proto import tinker_public_pb2 as pb

from posttrain_recipes.engine.core import provenance
from posttrain_recipes.engine.core.provenance import SampleRecords
from posttrain_recipes.engine.wire import Datum, RequestError, Span, parse_forward_backward
from tests.live_engine import started

PROMPT, SAMPLED = [5, 6, 7], [8, 9, 10, 11]
ID = "s:sample:0:1:0"


@pytest.fixture
def records() -> SampleRecords:
    made = SampleRecords()
    made.expect([ID], PROMPT)
    made.fill([ID], [np.array(SAMPLED, np.int32)])
    return made


def datum(changes: dict[str, Any] | None = None) -> Datum:
    """The whole sequence, as tinker-cookbook's rl_loop names it."""
    tokens = np.array([*PROMPT, *SAMPLED])
    given: dict[str, Any] = {
        "inputs": [Span(ID, 0, 3, False), Span(ID, 0, 3, True)],
        "targets": [Span(ID, 1, 2, False), Span(ID, 0, 4, True)],
        "tokens": tokens[:-1], "target_tokens": tokens[1:],
        "advantages": np.array([0, 0, 1, 1, 1, 1.0]), **(changes or {}),
    }  # fmt: skip
    inputs = {key: given[key] for key in ("target_tokens", "advantages")}
    return Datum(given["tokens"], inputs, (given["inputs"], given["targets"]))


def test_what_was_sampled_is_let_through(records: SampleRecords) -> None:
    records.check("s", [datum(), datum()])


def test_targets_of_a_prompt_may_be_anything_as_they_have_no_loss(records: SampleRecords) -> None:
    padded = datum({"target_tokens": np.array([0, 0, *SAMPLED])})  # as rl_loop of the cookbook 0.6
    records.check("s", [padded])
    assert "weights" not in padded.inputs
    assert provenance.of_sampled(padded).inputs["weights"].tolist() == [0, 0, 1, 1, 1, 1]
    weighed = replace(padded, inputs={**padded.inputs, "weights": np.full(6, 0.5, np.float32)})
    assert provenance.of_sampled(weighed).inputs["weights"].tolist() == [0, 0, 0.5, 0.5, 0.5, 0.5]
    bare = replace(padded, spans=None)
    assert provenance.of_sampled(bare) is bare


TOKENS = np.array([*PROMPT, *SAMPLED])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"tokens": TOKENS[:-1] + (np.arange(6) == 4)},
            r"model_input\[4\] is token 10, and token 9",
        ),
        ({"target_tokens": TOKENS[:-1]}, r"target_tokens\[2\] is token 7, and token 8"),
        ({"inputs": [Span(ID, 0, 4, False), Span(ID, 0, 2, True)]}, "its prompt 0 to 4 .* has 3"),
        ({"targets": [Span(ID, 1, 2, False), Span(ID, 1, 4, True)]}, "tokens 1 to 5 .* has 4"),
        ({"inputs": [Span("s:sample:0:1:1", 0, 6, True)]}, "nothing is on record of sequence"),
        ({"inputs": [Span("t:sample:0:1:0", 0, 6, True)]}, "nothing is on record"),
        ({"advantages": np.array([0, 0.5, 1, 1, 1, 1])}, "position 1 has an advantage"),
        ({"target_tokens": TOKENS[1:, None]}, r"target_tokens, shape \(N,\)"),
    ],
)
def test_what_is_claimed_otherwise_is_refused(
    records: SampleRecords, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        records.check("s", [datum(), datum(changes)])
    assert caught.value.status == 422
    assert "datum 1" in str(caught.value)


def test_without_spans_there_is_nothing_to_hold_to(records: SampleRecords) -> None:
    with pytest.raises(RequestError, match="with_provenance"):
        records.check("s", [Datum(TOKENS, {"target_tokens": TOKENS})])


def test_another_session_has_no_use_of_a_record(records: SampleRecords) -> None:
    with pytest.raises(RequestError, match="not sampled in this session"):
        records.check("other", [datum()])
    records.forget("s")
    with pytest.raises(RequestError, match="nothing is on record"):
        records.check("s", [datum()])
    assert records._tokens == 0


def test_a_record_lives_a_day_after_its_last_use(
    records: SampleRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [provenance.time.monotonic()]
    monkeypatch.setattr(provenance.time, "monotonic", lambda: now[0])
    for _ in range(3):
        now[0] += provenance.KEEP_S - 1
        records.check("s", [datum()])
    now[0] += provenance.KEEP_S + 1
    with pytest.raises(RequestError, match="not used for a day"):
        records.check("s", [datum()])
    records.expect(["s:sample:0:2:0"], PROMPT)
    assert list(records._records) == ["s:sample:0:2:0"]


def test_records_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "MAX_TOKENS", 100)
    records = SampleRecords()
    for number in range(50):
        name = f"s:sample:0:{number}:0"
        records.expect([name], range(10))
        records.fill([name], [np.zeros(10, np.int32)])
    assert len(records._records) == 5
    assert records._tokens == 100


def test_tokens_of_a_sequence_that_is_not_there_yet_are_not_named() -> None:
    records = SampleRecords()
    records.expect([ID], PROMPT)
    with pytest.raises(RequestError, match="has 0"):
        records.check("s", [datum()])
    records.fill(["gone"], [np.zeros(3, np.int32)])  # a session that ended meanwhile
    assert records._tokens == 3


def sent(spans: Any = None, drop: int = 0) -> bytes:
    """A request as the SDK writes it; `drop` so many of its spans over the targets."""
    made = types.Datum(
        model_input=types.ModelInput.from_ints([5, 6, 7]),
        loss_fn_inputs={"target_tokens": [6, 7, 8]},
    )
    request = types.ForwardBackwardRequest(
        model_id="m",
        seq_id=1,
        forward_backward_input=types.ForwardBackwardInput(
            data=[made if spans is None else made.with_provenance(*spans)],
            loss_fn="stable_reinforce",
        ),
    )
    message = request_conv.forward_backward_request_to_proto(request)
    for _ in range(drop):
        message.data[0].loss_fn_input_spans.pop()
    return bytes(message.SerializeToString())


PROMPT_SPAN, SAMPLED_SPAN = types.PromptProvenanceSpan, types.SampledProvenanceSpan
SPANS = (
    [PROMPT_SPAN(sequence_id=ID, length=3)],
    [PROMPT_SPAN(sequence_id=ID, offset=1, length=2), SAMPLED_SPAN(sequence_id=ID, length=1)],
)


def test_spans_are_read_as_the_sdk_sends_them() -> None:
    (read,) = parse_forward_backward(sent(SPANS)).data
    assert read.spans == (
        [Span(ID, 0, 3, False)],
        [Span(ID, 1, 2, False), Span(ID, 0, 1, True)],
    )
    (plain,) = parse_forward_backward(sent()).data
    assert plain.spans is None


def test_spans_that_leave_a_gap_are_refused() -> None:
    with pytest.raises(RequestError, match="loss_fn_input_spans cover 2 positions of 3"):
        parse_forward_backward(sent(SPANS, drop=1))


def test_spans_that_name_nothing_are_refused() -> None:
    message = pb.ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn="ppo")
    message.data.add().model_input_spans.add()
    with pytest.raises(RequestError, match="neither tokens of a prompt nor sampled"):
        parse_forward_backward(message.SerializeToString())
    message.data[0].model_input_spans[0].sampled_tokens.length = 0
    with pytest.raises(RequestError, match="needs a sequence_id"):
        parse_forward_backward(message.SerializeToString())


def test_a_substitute_computes_nothing_of_a_prompt(tmp_path: Path) -> None:
    """DRO's penalty is on every token that it reads, of whatever advantage."""
    with started(tmp_path, {"stable_reinforce": "dro"}) as live:
        accepted = live.post("asample", live.sample(record_stability_info=True))
        (name,) = accepted.json()["sample_sequence_ids"]
        (drawn,) = pb.SampleResponse.FromString(live.result(accepted)).sequences
        sampled = np.frombuffer(drawn.tokens, np.int32).tolist()
        tokens = [1, 2, 3, *sampled]

        def loss(prompt: list[int]) -> float:
            made = types.Datum(
                types.ModelInput.from_ints(tokens[:-1]),
                {
                    "target_tokens": [*prompt, *sampled],
                    "logprobs": [0.0, 0.0, -3.0, -3.0],
                    "advantages": [0.0, 0.0, 1.0, 1.0],
                },
            ).with_provenance(
                [
                    PROMPT_SPAN(sequence_id=name, length=3),
                    SAMPLED_SPAN(sequence_id=name, length=1),
                ],
                [
                    PROMPT_SPAN(sequence_id=name, offset=1, length=2),
                    SAMPLED_SPAN(sequence_id=name, length=2),
                ],
            )
            body = types.ForwardBackwardRequest(
                model_id=live.steady,
                seq_id=live.next(live.steady),
                forward_backward_input=types.ForwardBackwardInput(
                    data=[made], loss_fn="stable_reinforce"
                ),
            )
            sent = request_conv.forward_backward_request_to_proto(body).SerializeToString()
            out = live.result(live.post("forward_backward", sent))
            return float(pb.ForwardBackwardOutput.FromString(out).metrics["loss:sum"])

        assert loss([0, 0]) == loss([2, 3])
