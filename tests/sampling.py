"""Requests for samples, and what they are asked of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from posttrain_recipes.engine.generate.batcher import sample
from posttrain_recipes.engine.model.base import BaseModel, new_adapter
from posttrain_recipes.engine.model.lora import Snapshot
from posttrain_recipes.engine.wire import (
    AdapterConfig,
    Chunk,
    ModelInput,
    SampleRequest,
    SampleResult,
    SamplingParams,
)
from tests.device import base_model, noise
from tests.engine_model import build


def model(folder: Path, kind: str = "decoder") -> BaseModel:
    """A base model that generates by the engine's own decoder, or by transformers."""
    base = base_model(build(folder))
    assert base.decoder is not None
    if kind == "transformers":
        base.decoder = None
    return base


def adapted(base: BaseModel) -> Snapshot:
    """An adapter that says something."""
    adapter = new_adapter(base, AdapterConfig(rank=4, seed=0))
    adapter.flat.add_(0.05 * noise(adapter.flat, 3))
    return adapter.snapshot()


def ids(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def sample_request(
    prompt: list[int], n: int = 1, request: dict[str, Any] | None = None, **params: Any
) -> SampleRequest:
    params = {"max_tokens": 12, "stop": [], **params}
    chunks = [Chunk(tokens=prompt)]
    return SampleRequest("s", 0, ModelInput(chunks), SamplingParams(**params), n, **(request or {}))


def run(base: BaseModel, snapshot: Snapshot | None, *requests: SampleRequest) -> list[SampleResult]:
    results = sample(base, snapshot, requests)
    assert all(isinstance(r, SampleResult) for r in results), results
    return results  # type: ignore[return-value]


def tokens(result: SampleResult, i: int = 0) -> list[int]:
    return result.sequences[i].tokens.tolist()
