"""Requests in JSON: a dataclass for each, whose fields are the protocol's, and their parser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from posttrain_recipes.engine.wire.base import RequestError
from posttrain_recipes.engine.wire.tensors import TensorData, as_ids

T = TypeVar("T")

MAX_SAMPLES = 4096  # of one request


@dataclass(frozen=True)
class CreateSession:
    """Create a session, which the models and samplers of a client belong to."""

    tags: list[str] = field(default_factory=list)
    user_metadata: dict[str, Any] | None = None
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None


@dataclass(frozen=True)
class AdapterConfig:
    """The configuration of a LoRA adapter: rank, seed, and which layers it trains."""

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
    lora_config: AdapterConfig | None = None
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
class ModelInput:
    """A prompt, as the protocol sends it: a list of chunks."""

    chunks: list[Chunk]

    def tokens(self) -> NDArray[np.int64]:
        """All token ids, (length,). Raises RequestError 422 for images and audio."""
        out: list[int] = []
        for chunk in self.chunks:
            if chunk.type != "encoded_text" or chunk.tokens is None:
                raise RequestError(422, f"this engine reads text only, not {chunk.type!r} chunks")
            out += chunk.tokens
        return as_ids(out, "prompt")


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. `stop`: None means the EOS tokens, a list replaces them, `[]` never stops."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[int | str] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


@dataclass(frozen=True)
class LogitRules:
    """What changes logits before a token is sampled; only in requests of this process itself, as
    the Tinker protocol has none of it. Log-probabilities stay those of the model. In this order:

    `repetition_penalty` divides the positive logits of tokens in the prompt or the reply, and
    multiplies the negative ones (arXiv 1909.05858, section 4.1); `frequency_penalty` is taken off
    for each time that a token is in the reply, `presence_penalty` once; `logit_bias` is added;
    before `min_tokens` tokens nothing ends the reply; `min_p` leaves the tokens that are at least
    so likely as a share of the likeliest, after the temperature (arXiv 2407.01082). First of all,
    `grammar` (Lark's, as llguidance reads it) leaves the tokens that may come next in such a reply.
    """

    min_p: float = 0.0
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    grammar: str = ""


@dataclass(frozen=True)
class SampleRequest:
    """A request for samples that continue a prompt, and for log-probabilities of the prompt."""

    sampling_session_id: str
    seq_id: int
    prompt: ModelInput
    sampling_params: SamplingParams
    num_samples: int = 1
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens_k: int = 0
    record_stability_info: bool | None = None
    rules: LogitRules | None = None
    # Only in requests of this process itself, as JSON cannot hold one: called on the worker thread
    # with each token, as (index of the sample, token, logprob, top-k).
    on_token: Callable[[int, int, float, Any], None] | None = None
    # Likewise: called there with the SampleResult, before it is encoded.
    on_result: Callable[[Any], None] | None = None


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
class TrainingModelRef:
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
