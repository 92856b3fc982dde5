"""`forward_backward` in protobuf: the request with its batch, and the result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain_recipes.engine.wire.base import PROTOBUF, RequestError
from posttrain_recipes.engine.wire.tensors import array, dense


@dataclass(frozen=True)
class Span:
    """A run of positions of a datum: `length` tokens of a sequence, from `offset` on, of those that
    were `sampled` or of its prompt."""

    sequence_id: str
    offset: int
    length: int
    sampled: bool


@dataclass(frozen=True)
class Datum:
    """One training sequence. `tokens` (N,) int64; `inputs` name -> array, each (N,) or (N, K).

    `spans`, if given, say where the tokens and the targets are from, each without a gap.
    """

    tokens: NDArray[np.int64]
    inputs: Mapping[str, NDArray[Any]]
    spans: tuple[Sequence[Span], Sequence[Span]] | None = None


@dataclass(frozen=True)
class ForwardBackward:
    """A forward and, unless `forward_only`, backward pass over `data`; `config` are the loss's
    settings."""

    model_id: str
    seq_id: int
    forward_only: bool
    loss_fn: str
    config: Mapping[str, float | str]
    data: Sequence[Datum]


def parse_forward_backward(body: bytes) -> ForwardBackward:
    """A protobuf ForwardBackwardRequest. Raises RequestError 400 or 422."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tinker.proto import tinker_public_pb2 as pb

    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except (DecodeError, ValueError):
        raise RequestError(400, "malformed request: not a ForwardBackwardRequest") from None
    if not message.model_id or message.seq_id < 1:
        raise RequestError(400, "malformed request: model_id and a seq_id from 1 are required")
    # The settings come twice; the second map can hold text as well, and is the one to read.
    config: dict[str, float | str] = {
        key: value.text if value.HasField("text") else value.number
        for key, value in message.loss_fn_config_v2.items()
    } or dict(message.loss_fn_config)
    return ForwardBackward(
        model_id=message.model_id,
        seq_id=message.seq_id,
        forward_only=message.forward_only,
        loss_fn=message.loss_fn,
        config=config,
        data=[_datum(item, finite=message.loss_fn != "custom") for item in message.data],
    )


def addressed(body: bytes) -> tuple[str, int] | None:
    """The (model_id, seq_id) of an operation, read even where the rest of it is malformed; None if
    it has none."""
    from google.protobuf.message import DecodeError
    from tinker.proto import tinker_public_pb2 as pb

    if body.lstrip().startswith(b"{"):
        try:
            found = json.loads(body)
            names = found.get("model_id"), found.get("seq_id")
        except (ValueError, RecursionError):
            return None
    else:
        message = pb.ForwardBackwardRequest()
        try:
            message.ParseFromString(body)
        except (DecodeError, ValueError):
            return None
        names = message.model_id, message.seq_id
    model_id, seq_id = names
    return (model_id, seq_id) if isinstance(model_id, str) and isinstance(seq_id, int) else None


def _datum(message: Any, finite: bool) -> Datum:
    parts = []
    for chunk in message.model_input:
        if chunk.WhichOneof("chunk") != "encoded_text":
            raise RequestError(422, "this engine reads text only, not images or sound")
        parts.append(array(chunk.encoded_text.tokens, np.dtype(np.int32)).astype(np.int64))
    tokens = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    inputs = {name: dense(tensor) for name, tensor in message.loss_fn_inputs.items()}
    for name, values in inputs.items():
        # One NaN would make all of an adapter's weights NaN at the next step.
        if finite and not np.isfinite(values).all():
            raise RequestError(422, f"{name} holds NaN or infinity: all must be finite numbers")
    return Datum(tokens, inputs, _spans(message, tokens.size, inputs))


def _spans(
    message: Any, size: int, inputs: Mapping[str, NDArray[Any]]
) -> tuple[Sequence[Span], Sequence[Span]] | None:
    """Where a datum's tokens and targets are from; None where it does not say."""
    if not message.model_input_spans and not message.loss_fn_input_spans:
        return None
    targets = inputs.get("target_tokens")
    both = []
    for name, given, length in (
        ("model_input_spans", message.model_input_spans, size),
        (
            "loss_fn_input_spans",
            message.loss_fn_input_spans,
            None if targets is None else len(targets),
        ),
    ):
        spans = [_span(item) for item in given]
        total = sum(span.length for span in spans)
        if length is not None and total != length:
            raise RequestError(
                422, f"{name} cover {total} positions of {length}: they must cover each one once"
            )
        both.append(spans)
    return both[0], both[1]


def _span(message: Any) -> Span:
    kind = message.WhichOneof("span")
    if kind is None:
        raise RequestError(422, "a span names neither tokens of a prompt nor sampled ones")
    named = getattr(message, kind)
    if not named.sequence_id or named.offset < 0 or named.length < 0:
        raise RequestError(422, "a span needs a sequence_id, and an offset and a length from 0")
    return Span(named.sequence_id, named.offset, named.length, kind == "sampled_tokens")


@dataclass(frozen=True)
class ForwardBackwardResult:
    """`logprobs`, one array a datum, shaped like its targets; `metrics` named `name:reduction`."""

    logprobs: Sequence[NDArray[np.float32]]
    metrics: Mapping[str, float]

    def encode(self) -> tuple[bytes, str]:
        """The protobuf message the SDK expects, and its media type."""
        from tinker.proto import tinker_public_pb2 as pb

        message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
        for name, value in self.metrics.items():
            message.metrics[name] = value
        start = 0
        for stop in range(1, len(self.logprobs) + 1):
            # A record is rectangular past its first dimension: cut where the width changes.
            width = self.logprobs[start].shape[1:]
            if stop < len(self.logprobs) and self.logprobs[stop].shape[1:] == width:
                continue
            arrays = self.logprobs[start:stop]
            record = message.loss_fn_outputs.add(num_datums=len(arrays))
            offsets = np.cumsum([0, *(a.nbytes for a in arrays)], dtype=np.int64)
            record.fields["logprobs"].CopyFrom(
                pb.BatchedTensor(
                    data=b"".join(a.astype(np.float32, copy=False).tobytes() for a in arrays),
                    offsets=offsets.tobytes(),
                    dtype=pb.DTYPE_FLOAT32,
                    trailing_shape=width,
                )
            )
            start = stop
        return message.SerializeToString(), PROTOBUF
