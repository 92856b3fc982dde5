"""Bytes on the wire <-> small dataclasses. What the SDK `tinker` 0.38 sends and expects back.

Requests are JSON, except `forward_backward`, which is protobuf; sampling results and
forward_backward results are protobuf, everything else is JSON. Token ids are int32 bytes, tensors
are float32 or int64 bytes with a shape, dense or CSR (the SDK makes a two-dimensional torch tensor
sparse without asking, each on its own, with 0 for what is not listed).

Raises RequestError (an HTTP status and a sentence) for anything malformed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

T = TypeVar("T")
JSON = "application/json"
PROTOBUF = "application/x-protobuf"
MAX_SAMPLES = 4096  # of one request
MASK_LOGPROB = -99999.0  # with token id 0: "no entry here" in a top-k table


class RequestError(Exception):
    """The request is at fault: an HTTP status and a sentence saying what to change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# Requests in JSON ----------------------------------------------------------------------------


@dataclass(frozen=True)
class CreateSession:
    """A new session: what a client does from its start to its end."""

    tags: list[str] = field(default_factory=list)
    user_metadata: dict[str, Any] | None = None
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None


@dataclass(frozen=True)
class LoraConfig:
    """What a LoRA adapter trains, and its rank and seed."""

    rank: int = 32
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


@dataclass(frozen=True)
class CreateModel:
    """A new adapter on a base model; its id is `{session_id}:train:{model_seq_id}`."""

    session_id: str
    model_seq_id: int
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraConfig | None = None
    optimizer_config: dict[str, Any] | None = None


@dataclass(frozen=True)
class AdamParams:
    """One step's settings; the defaults are the SDK's."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True)
class OptimStep:
    """Apply the accumulated gradients. Other optimizers come as `optimizer_params`."""

    model_id: str
    seq_id: int
    adam_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None


@dataclass(frozen=True)
class SaveWeights:
    """`save_weights` and `save_weights_for_sampler`: `path` is the name to save under."""

    model_id: str
    seq_id: int
    path: str | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None
    sampling_session_seq_id: int | None = None
    kind: str = "snapshot"


@dataclass(frozen=True)
class LoadWeights:
    """Load into a model (model_id, seq_id), or make one (session_id, model_seq_id)."""

    path: str
    optimizer: bool
    model_id: str | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: dict[str, Any] | None = None


@dataclass(frozen=True)
class CreateSampler:
    """A sampler of a base model, or of saved weights."""

    session_id: str
    sampling_session_seq_id: int
    base_model: str | None = None
    model_path: str | None = None


@dataclass(frozen=True)
class Chunk:
    """A piece of a prompt; this engine reads the `encoded_text` ones."""

    type: str = "encoded_text"
    tokens: list[int] | None = None


@dataclass(frozen=True)
class Prompt:
    """What a sample continues."""

    chunks: list[Chunk]

    def tokens(self) -> NDArray[np.int64]:
        """All token ids, (length,). Raises RequestError for images and sound."""
        out: list[int] = []
        for chunk in self.chunks:
            if chunk.type != "encoded_text" or chunk.tokens is None:
                raise RequestError(422, f"this engine reads text only, not {chunk.type!r} chunks")
            out += chunk.tokens
        return as_ids(out, "prompt")


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. `stop`: None is EOS, a list replaces it, `[]` never stops."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[int | str] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


@dataclass(frozen=True)
class TensorData:
    """A tensor in JSON: flat values with a shape, or CSR, where only listed cells are given."""

    data: list[float] | list[int]
    dtype: Literal["float32", "int64"]
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


@plain_dataclass(frozen=True)
class Cells:
    """Some cells of a table (rows, columns), in the layout they came in, which the answer keeps.

    `values` are theirs in row order, `row` says where each lies; `sparse` is (crow, col) for CSR.
    """

    shape: tuple[int, int]
    values: NDArray[Any]
    row: NDArray[np.int64]
    sparse: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None


def cells(tensor: TensorData, what: str) -> Cells:
    """A two-dimensional tensor's cells. Raises RequestError 422."""
    shape = tuple(tensor.shape or ())
    if tensor.dtype != "int64" or len(shape) != 2 or min(shape) < 0:
        raise RequestError(422, f"{what} must be int64 of two dimensions, (len(prompt) - 1, K)")
    try:
        values, crow, col = (
            np.asarray(part or [], dtype=np.int64)
            for part in (tensor.data, tensor.sparse_crow_indices, tensor.sparse_col_indices)
        )
    except (OverflowError, ValueError, TypeError):
        raise RequestError(422, f"{what}: token ids and indices must be whole numbers") from None
    if tensor.sparse_crow_indices is None:
        if values.size != shape[0] * shape[1]:
            raise RequestError(422, f"{what}: {values.size} values for shape {list(shape)}")
        return Cells((shape[0], shape[1]), values, np.repeat(np.arange(shape[0]), shape[1]))
    if not _sound_csr(shape, crow, col, values):
        raise RequestError(422, f"{what}: the sparse tensor does not add up")
    row = np.repeat(np.arange(shape[0]), np.diff(crow))
    return Cells((shape[0], shape[1]), values, row, (crow, col))


def _sound_csr(
    shape: Sequence[int], crow: NDArray[Any], col: NDArray[Any], values: NDArray[Any]
) -> bool:
    return (
        len(shape) == 2
        and crow.size == shape[0] + 1
        and crow[0] == 0
        and crow[-1] == col.size == values.size
        and bool((np.diff(crow) >= 0).all())
        and bool(((col >= 0) & (col < shape[1])).all())
    )


@dataclass(frozen=True)
class Sample:
    """A request for samples from one prompt, and for scores of the prompt."""

    sampling_session_id: str
    seq_id: int
    prompt: Prompt
    sampling_params: SamplingParams
    num_samples: int = 1
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens_k: int = 0
    record_stability_info: bool | None = None
    # Of this process's own requests: told (sample, token, logprob, top-k) of each token, on the
    # worker. JSON cannot hold one.
    heard: Callable[[int, int, float, Any], None] | None = None


@dataclass(frozen=True)
class GraphInput:
    """An input of a custom loss: rank 0 is a scalar, 1 is (T,), 2 is (T, K)."""

    name: str
    rank: Literal[0, 1, 2]


@dataclass(frozen=True)
class GraphNode:
    """An operation of a custom loss, as torch.fx records it and the SDK encodes it."""

    op: Literal["placeholder", "get_attr", "call_function", "call_method", "call_module", "output"]
    name: str
    target: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A custom loss: operations in the order they run."""

    nodes: list[GraphNode]
    format: int = 1


@dataclass(frozen=True)
class CreateCustomLoss:
    """Upload a custom loss, for `forward_backward` of the same session."""

    session_id: str
    custom_loss_seq_id: int
    name: str
    inputs: list[GraphInput]
    graph: Graph


@dataclass(frozen=True)
class SessionRef:
    """Names a session."""

    session_id: str


@dataclass(frozen=True)
class SamplerRef:
    """Names a sampler."""

    sampling_session_id: str


@dataclass(frozen=True)
class ModelRef:
    """Names a model in training."""

    model_id: str


@dataclass(frozen=True)
class FutureRef:
    """Names an accepted request."""

    request_id: str


@dataclass(frozen=True)
class PathRef:
    """Names a checkpoint."""

    tinker_path: str


@dataclass(frozen=True)
class Ttl:
    """How long to keep a checkpoint; None is for ever."""

    ttl_seconds: int | None = None


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def parse(kind: type[T], body: bytes) -> T:
    """The JSON `body` as a `kind`. Raises RequestError 400 naming the field at fault."""
    adapter = _ADAPTERS.get(kind)
    if adapter is None:
        adapter = _ADAPTERS[kind] = TypeAdapter(kind)
    try:
        value: T = adapter.validate_json(body or b"{}")
        return value
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise RequestError(400, f"malformed request: {where}: {first['msg']}") from None


def as_ids(tokens: Sequence[int], what: str) -> NDArray[np.int64]:
    """Token ids as an array (length,). Raises RequestError 422 if one is no int32 at all."""
    try:
        return np.asarray(tokens, dtype=np.int32).astype(np.int64)
    except (OverflowError, ValueError, TypeError):
        raise RequestError(422, f"{what}: token ids must be 32-bit integers") from None


# forward_backward ----------------------------------------------------------------------------


@plain_dataclass(frozen=True)
class Datum:
    """One training sequence. `tokens` (N,) int64; `inputs` name -> array, each (N,) or (N, K)."""

    tokens: NDArray[np.int64]
    inputs: Mapping[str, NDArray[Any]]


@plain_dataclass(frozen=True)
class ForwardBackward:
    """A pass over `data`. `config` holds the settings of the loss."""

    model_id: str
    seq_id: int
    forward_only: bool
    loss_fn: str
    config: Mapping[str, float | str]
    data: Sequence[Datum]


_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.int64),
}  # the public DType values


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
    """The model and seq_id that an operation names, however wrong the rest of it is."""
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
        parts.append(_array(chunk.encoded_text.tokens, np.dtype(np.int32)).astype(np.int64))
    tokens = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    inputs = {name: dense(tensor) for name, tensor in message.loss_fn_inputs.items()}
    for name, values in inputs.items():
        # One NaN would make all of an adapter's weights NaN at the next step.
        if finite and not np.isfinite(values).all():
            raise RequestError(422, f"{name} holds NaN or infinity: all must be finite numbers")
    return Datum(tokens, inputs)


def _array(data: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    if len(data) % dtype.itemsize:
        raise RequestError(400, f"malformed request: {len(data)} bytes are no {dtype} array")
    return np.frombuffer(data, dtype)


def dense(message: Any) -> NDArray[Any]:
    """A protobuf Tensor as a dense array; what a CSR tensor does not list is 0."""
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise RequestError(400, "malformed request: a tensor must be float32 or int64")
    shape = tuple(message.shape)
    if message.WhichOneof("encoding") != "sparse_csr":
        values = _array(message.dense, dtype)
        return _shaped(values, shape or (values.size,))
    csr = message.sparse_csr
    values = _array(csr.values, dtype)
    rows, cols = (_array(x, _DTYPES[2]) for x in (csr.crow_indices, csr.col_indices))
    if not _sound_csr(shape, rows, cols, values) or shape[0] * shape[1] > 1 << 28:
        raise RequestError(400, "malformed request: the sparse tensor does not add up")
    out = np.zeros(shape, dtype)
    out[np.repeat(np.arange(shape[0]), np.diff(rows)), cols] = values
    return out


def _shaped(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if min(shape) < 0 or math.prod(shape) != values.size:  # numpy's product would overflow
        raise RequestError(400, f"malformed request: {values.size} values for shape {list(shape)}")
    return values.reshape(shape)


@plain_dataclass(frozen=True)
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


# Samples -------------------------------------------------------------------------------------


@plain_dataclass(frozen=True)
class TopK:
    """The K likeliest tokens at each position: ids (n, K) int32, logprobs (n, K) float32."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]


@plain_dataclass(frozen=True)
class SampledTokens:
    """One sampled sequence: tokens (n,) with their log-probabilities (n,), and why it ended."""

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    stopped: bool
    topk: TopK | None = None


@plain_dataclass(frozen=True)
class AltTokens:
    """Draws at every prompt position but the first: tokens (n - 1, k) int64, logprobs float32."""

    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float32]


@plain_dataclass(frozen=True)
class SampleResult:
    """`prompt_logprobs` (prompt,) is NaN where nothing precedes or nothing was asked.

    `target_logprobs` has float32 values in the layout of the request's cells.
    """

    sequences: Sequence[SampledTokens]
    prompt_logprobs: NDArray[np.float32] | None = None
    prompt_topk: TopK | None = None
    target_logprobs: Cells | None = None
    alt_tokens: AltTokens | None = None

    def encode(self) -> tuple[bytes, str]:
        """The protobuf message the SDK expects, and its media type."""
        from tinker.proto import tinker_public_pb2 as pb

        message = pb.SampleResponse()
        for item in self.sequences:
            sequence = message.sequences.add(
                stop_reason=pb.STOP_REASON_STOP if item.stopped else pb.STOP_REASON_LENGTH,
                tokens=item.tokens.astype(np.int32).tobytes(),
                logprobs=item.logprobs.astype(np.float32).tobytes(),
            )
            if item.topk is not None:
                _fill_topk(sequence.topk_sampled_logprobs, item.topk)
        if self.prompt_logprobs is not None:
            message.prompt_logprobs = self.prompt_logprobs.astype(np.float32).tobytes()
        if self.prompt_topk is not None:
            _fill_topk(message.topk_prompt_logprobs, self.prompt_topk)
        if self.target_logprobs is not None:
            _fill_cells(message.target_prompt_logprobs, self.target_logprobs)
        if self.alt_tokens is not None:
            _fill_tensor(message.prompt_alt_tokens.tokens, self.alt_tokens.tokens)
            _fill_tensor(message.prompt_alt_tokens.logprobs, self.alt_tokens.logprobs)
        return message.SerializeToString(), PROTOBUF


def _fill_topk(message: Any, topk: TopK) -> None:
    message.length, message.k = topk.ids.shape
    message.token_ids = topk.ids.astype(np.int32).tobytes()
    message.logprobs = topk.logprobs.astype(np.float32).tobytes()


def _fill_tensor(message: Any, values: NDArray[Any]) -> None:
    dtype = next(key for key, kind in _DTYPES.items() if kind == values.dtype)
    message.dtype, message.dense = dtype, values.tobytes()
    message.shape.extend(values.shape)


def _fill_cells(message: Any, found: Cells) -> None:
    values = found.values.astype(np.float32)
    if found.sparse is None:
        return _fill_tensor(message, values.reshape(found.shape))
    crow, col = found.sparse
    message.dtype = 1
    message.shape.extend(found.shape)
    message.sparse_csr.values = values.tobytes()
    message.sparse_csr.crow_indices = crow.tobytes()
    message.sparse_csr.col_indices = col.tobytes()
    return None
