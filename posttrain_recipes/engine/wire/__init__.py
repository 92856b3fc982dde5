"""The wire protocol of the SDK `tinker` 0.38: bytes <-> dataclasses of requests and results.

Requests are JSON, except `forward_backward`, which is protobuf; sampling results and
forward_backward results are protobuf, everything else is JSON. Token ids are int32 bytes, tensors
are float32 or int64 bytes with a shape, dense or CSR (the SDK makes a two-dimensional torch tensor
sparse without asking, each on its own, with 0 for what is not listed).

Raises RequestError (an HTTP status and a sentence) for anything malformed.
"""

from posttrain_recipes.engine.wire.base import JSON, PROTOBUF, RequestError
from posttrain_recipes.engine.wire.requests import (
    MAX_SAMPLES,
    AdamParams,
    AdapterConfig,
    Chunk,
    CreateCustomLoss,
    CreateModel,
    CreateSampler,
    CreateSession,
    FutureRef,
    Graph,
    GraphInput,
    GraphNode,
    LoadWeights,
    LogitRules,
    ModelInput,
    OptimStep,
    PathRef,
    SampleRequest,
    SamplerRef,
    SamplingParams,
    SaveWeights,
    SessionRef,
    TrainingModelRef,
    Ttl,
    parse,
)
from posttrain_recipes.engine.wire.sampling import (
    MASK_LOGPROB,
    AltTokens,
    SampledTokens,
    SampleResult,
    TopK,
)
from posttrain_recipes.engine.wire.tensors import Cells, TensorData, cells, dense
from posttrain_recipes.engine.wire.training import (
    Datum,
    ForwardBackward,
    ForwardBackwardResult,
    Span,
    addressed,
    parse_forward_backward,
)

__all__ = [
    "JSON",
    "MASK_LOGPROB",
    "MAX_SAMPLES",
    "PROTOBUF",
    "AdamParams",
    "AdapterConfig",
    "AltTokens",
    "Cells",
    "Chunk",
    "CreateCustomLoss",
    "CreateModel",
    "CreateSampler",
    "CreateSession",
    "Datum",
    "ForwardBackward",
    "ForwardBackwardResult",
    "FutureRef",
    "Graph",
    "GraphInput",
    "GraphNode",
    "LoadWeights",
    "LogitRules",
    "ModelInput",
    "OptimStep",
    "PathRef",
    "RequestError",
    "SampleRequest",
    "SampleResult",
    "SampledTokens",
    "SamplerRef",
    "SamplingParams",
    "SaveWeights",
    "SessionRef",
    "Span",
    "TensorData",
    "TopK",
    "TrainingModelRef",
    "Ttl",
    "addressed",
    "cells",
    "dense",
    "parse",
    "parse_forward_backward",
]
