"""Handlers of sampling requests: create a sampler, look it up, sample from it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.core.futures import Pending
from posttrain_recipes.engine.core.registry import Sampler, SamplerWeights, State
from posttrain_recipes.engine.core.scheduler import Batch, Feed
from posttrain_recipes.engine.storage import checkpoints
from posttrain_recipes.engine.wire import RequestError

CLONE_BLOCK = 1_000_000_000  # the seq_ids of one copy of a sampling client


class Sampling:
    """The samplers, each with weights that do not change."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._shared: weakref.WeakValueDictionary[str, SamplerWeights] = (
            weakref.WeakValueDictionary()
        )

    # Samplers --------------------------------------------------------------------------------

    def create_sampling_session(self, request: wire.CreateSampler) -> dict[str, Any]:
        """Create a sampler of a base model or of saved weights. Raises RequestError 400, 404,
        422."""
        session = self.state.session(request.session_id)
        sampler_id = f"{session.id}:sample:{request.sampling_session_seq_id}"
        if sampler_id not in self.state.samplers:
            if request.model_path is not None:
                weights = self._from_path(request.model_path)
            elif request.base_model is not None:
                weights = self._from_base(request.base_model)
            else:
                raise RequestError(400, "a sampler needs a base_model or a model_path")
            self.state.add_sampler(session, Sampler(sampler_id, weights, request.model_path))
        return {"sampling_session_id": sampler_id, "type": "create_sampling_session"}

    def _from_path(self, text: str) -> SamplerWeights:
        path = checkpoints.parse_path(text)
        kept = self.state.store.find(path)
        record = kept.record
        self.state.check_base(record.base_model)
        key = f"{record.path}@{record.time}"
        weights = self._shared.get(key)
        if weights is None:
            # Read now: the sampler stays with these weights whatever becomes of the checkpoint.
            tensors, _ = self.state.store.load(kept)
            weights = SamplerWeights(record.base_model, record.lora, tensors)
            self._shared[key] = weights
        return weights

    def _from_base(self, name: str) -> SamplerWeights:
        self.state.check_base(name)
        key = f"base:{self.state.names.get(name, name)}"
        weights = self._shared.get(key) or SamplerWeights(name)
        self._shared[key] = weights
        return weights

    def get_sampler(self, sampler_id: str) -> dict[str, Any]:
        """The base model and checkpoint that a sampler samples from. Raises RequestError 404."""
        sampler = self.state.sampler(sampler_id)
        return {
            "sampler_id": sampler.id,
            "base_model": sampler.weights.base_model,
            "model_path": sampler.model_path,
        }

    def join_sampling_session(self, sampler_id: str) -> dict[str, Any]:
        """A number for a copy of a sampling client in another process."""
        sampler = self.state.sampler(sampler_id)
        sampler.clones += 1
        return {"client_counter": sampler.clones, "type": "join_sampling_session"}

    def sample(self, request: wire.SampleRequest) -> Pending:
        """Queue a request for samples, to run with others from the same weights."""
        sampler = self.state.sampler(request.sampling_session_id)
        if not 1 <= request.num_samples <= wire.MAX_SAMPLES:  # before a name is given to each
            raise RequestError(422, f"num_samples must be between 1 and {wire.MAX_SAMPLES}")
        ids = [f"{sampler.id}:{request.seq_id}:{i}" for i in range(request.num_samples)]
        if request.record_stability_info:
            request = self._recorded(request, ids)
        if self.state.double is not None:  # what is recorded is what it tells
            request = self.state.double.sampling(request)
        return self.state.scheduler.submit_batched(
            (sampler.id, request.seq_id),
            self.batch(sampler.weights, request),
            {"sample_sequence_ids": ids},
            (sampler.id, request.seq_id // CLONE_BLOCK),
        )

    def _recorded(self, request: wire.SampleRequest, ids: Sequence[str]) -> wire.SampleRequest:
        """The request, with its prompt on record now, and its sequences once they are there."""
        records = self.state.records
        records.expect(ids, request.prompt.tokens())

        def keep(result: wire.SampleResult) -> None:
            records.fill(ids, [sequence.tokens for sequence in result.sequences])

        return dataclasses.replace(request, on_result=keep)

    def batch(self, weights: SamplerWeights, request: wire.SampleRequest) -> Batch:
        """A sample request as the scheduler takes it; requests of the same weights run as one
        batch."""

        def run(feed: Feed) -> Iterator[None]:
            from posttrain_recipes.engine.generate import batcher

            base = self.state.base_models.get(weights.base_model)
            snapshot = weights.resolve(base)
            if weights.lora is not None:
                self.state.offloading.use(weights)
            yield from batcher.serve(base, snapshot, feed)

        return Batch(weights, request, run, weights.saved)

    def weights(self, name: str) -> SamplerWeights:
        """The weights of a `tinker://` path or a base model. Raises RequestError 404, 422."""
        return self._from_path(name) if name.startswith("tinker:") else self._from_base(name)
