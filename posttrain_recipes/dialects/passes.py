"""Protobuf messages of passes and samples: what is refused, and what answers lack."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain_recipes.dialects.requests import refuse
from posttrain_recipes.dialects.upstream import DeclinedError, FailedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONTENT_TYPE = "application/x-protobuf"
LOSS = "loss:sum"


@dataclass(frozen=True)
class PassAsked:
    """Of a pass what its loss is computed from."""

    loss: str
    weights: list[NDArray[np.float32] | None]
    """A datum's weights (N,), where it has any."""


def read(body: bytes) -> Any:
    """A pass as it was sent. Raises `DeclinedError` where the dialect cannot say it."""
    from tinker.proto import tinker_public_pb2 as pb

    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except Exception as error:  # of protobuf, whose types have no stubs
        raise DeclinedError(422, f"the body is no pass in protobuf: {error}") from None
    for datum in message.data:
        for name, tensor in datum.loss_fn_inputs.items():
            if len(tensor.shape) > 1:
                raise refuse(f"several targets a position ('{name}' has {len(tensor.shape)} axes)")
            if tensor.WhichOneof("encoding") == "sparse_csr":
                raise refuse(f"sparse inputs of losses ('{name}')")
    return message


def asked(message: Any) -> PassAsked:
    """What the loss of a pass is computed from."""
    import numpy as np

    def weights(datum: Any) -> NDArray[np.float32] | None:
        if "weights" not in datum.loss_fn_inputs:
            return None
        return np.frombuffer(datum.loss_fn_inputs["weights"].dense, np.float32)

    return PassAsked(message.loss_fn, [weights(datum) for datum in message.data])


def with_loss(answer: bytes, given: PassAsked) -> bytes:
    """The answer to a pass with its loss, a sum over tokens, where the server tells none.

    That of cross-entropy follows from the log-probabilities; that of other losses is the sum of
    what the server says of each token.

    Raises:
        FailedError: the answer holds neither.
    """
    from tinker.proto import tinker_public_pb2 as pb

    output = pb.ForwardBackwardOutput.FromString(answer)
    if LOSS in output.metrics:
        return answer
    if given.loss == "cross_entropy" and given.weights:
        values = _arrays(output, "logprobs")
        if len(values) != len(given.weights):
            raise FailedError(
                f"the server's answer has log-probabilities of {len(values)} of "
                f"{len(given.weights)} sequences"
            )
        total = 0.0
        for logprobs, weights in zip(values, given.weights, strict=True):
            if weights is not None and len(weights) != len(logprobs):
                raise FailedError(
                    f"the server's answer has {len(logprobs)} log-probabilities for "
                    f"{len(weights)} targets"
                )
            total -= float((logprobs if weights is None else weights * logprobs).sum(dtype=float))
    elif losses := _arrays(output, "elementwise_loss"):
        total = sum(float(one.sum(dtype=float)) for one in losses)
    else:
        raise FailedError(f"the server's answer to a pass tells no loss of '{given.loss}'")
    output.metrics[LOSS] = total
    return bytes(output.SerializeToString())


def _arrays(output: Any, name: str) -> list[NDArray[np.float32]]:
    """A field of every datum (N,)."""
    import numpy as np

    found: list[NDArray[np.float32]] = []
    for record in output.loss_fn_outputs:
        if name not in record.fields:
            return []
        batch = record.fields[name]
        ends = np.frombuffer(batch.offsets, np.int64)
        found += [np.frombuffer(batch.data[a:b], np.float32) for a, b in itertools.pairwise(ends)]
    return found


def with_first(answer: bytes, length: int, last: int | None) -> bytes:
    """A sample's answer with an entry for each token of a prompt of `length` tokens.

    Nothing precedes the first token, which servers leave out: its entry is there, and empty. Of
    `last` tokens alone, where that is asked for, the others' entries are empty too.
    """
    import numpy as np
    from tinker.proto import tinker_public_pb2 as pb

    output = pb.SampleResponse.FromString(answer)
    if output.prompt_logprobs:
        values = np.frombuffer(output.prompt_logprobs, np.float32)
        if len(values) == length - 1:
            values = np.concatenate([np.full(1, np.nan, np.float32), values])
        if last is not None:
            values = values.copy()
            values[: max(0, len(values) - last)] = np.nan
        output.prompt_logprobs = values.astype(np.float32).tobytes()
    if output.HasField("topk_prompt_logprobs"):
        table = output.topk_prompt_logprobs
        if table.length == length - 1:
            table.token_ids = bytes(4 * table.k) + table.token_ids
            table.logprobs = np.full(table.k, -99999.0, np.float32).tobytes() + table.logprobs
            table.length = length
    return bytes(output.SerializeToString())
