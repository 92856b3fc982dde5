"""A double of hosted Tinker, for tests: what a program meets there and never on a laptop.

`ptl serve --like hosted`. It is made from public words, each habit with its source, and is no more
than that: nobody with a key has compared the two. What is not named here is not imitated.

- Log-probabilities that come with samples are off: by noise of mean -0.0015 and standard deviation
  0.05 nats a token, as measured there; the same tokens read again are as ever
  (github.com/thinking-machines-lab/tinker-cookbook/issues/396).
- Samples of one request that has a seed repeat each other: here every second one the one before it
  (github.com/thinking-machines-lab/tinker-feedback/issues/79).
- A LoRA has a rank that is a power of two, at most 128, and 32 for a mixture of experts
  (github.com/thinking-machines-lab/tinker-cookbook/issues/9).
- Of the likeliest tokens at most 20 are told
  (github.com/thinking-machines-lab/tinker-feedback/issues/64).
- A model may be sampled from and not be trained, as `SupportedModel.trainable` of the SDK has it.
- The answer to a save may be lost, and the save that is asked for again is refused with 409
  (github.com/thinking-machines-lab/tinker-cookbook/issues/401).
- Requests are turned away (429), wait in a queue that is paused (408 with a `queue_state`), and for
  a bill (402): the SDK goes on by itself (`tinker/lib/api_future_impl.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain_recipes.engine import wire
from posttrain_recipes.engine.wire import RequestError
from posttrain_recipes.shape import Shape

MEAN, DEVIATION = -0.0015, 0.05
"""Of the noise on what is told of a sampled token, in nats."""
MOST_LIKELY = 20
RANK, RANK_OF_EXPERTS = 128, 32


@dataclass(frozen=True)
class HostedDouble:
    """What is done otherwise. `sample_only` names models that are not trained."""

    sample_only: frozenset[str] = frozenset()

    def trains(self, model: str) -> bool:
        """Whether a model may be trained."""
        return model not in self.sample_only

    def check_model(self, model: str, folder: str, rank: int) -> None:
        """Raise RequestError 400 for a model that is not trained, or not with such a rank."""
        if not self.trains(model):
            raise RequestError(400, f"{model} can be sampled from, and not be trained")
        shape = Shape.read(Path(folder))
        most = RANK_OF_EXPERTS if shape is not None and shape.experts else RANK
        if rank > most:
            raise RequestError(
                400, f"lora_config.rank {rank} exceeds max LoRA rank {most} for model {model}"
            )
        if rank < 1 or rank & (rank - 1):
            raise RequestError(400, f"lora_config.rank {rank} is no power of two")

    def sampling(self, request: wire.SampleRequest) -> wire.SampleRequest:
        """The request as it is done here. Raises RequestError 400 for what is not."""
        asked = max(request.topk_prompt_logprobs, request.topk_sample_logprobs)
        if asked > MOST_LIKELY:
            raise RequestError(400, f"top-k log-probabilities: {asked} is more than {MOST_LIKELY}")
        if request.prompt_alt_tokens_k > MOST_LIKELY:
            raise RequestError(400, f"prompt_alt_tokens_k is more than {MOST_LIKELY}")
        seeded = request.sampling_params.seed is not None
        return dataclasses.replace(
            request, on_result=_then(request.on_result, lambda result: _disturb(result, seeded))
        )


def _then(
    first: Callable[[Any], None] | None, second: Callable[[Any], None]
) -> Callable[[Any], None]:
    def both(result: Any) -> None:
        second(result)
        if first is not None:
            first(result)

    return both


def _disturb(result: wire.SampleResult, seeded: bool) -> None:
    sequences = list(result.sequences)
    if seeded:
        sequences = [sequences[place & ~1] for place in range(len(sequences))]
    told = []
    for sequence in sequences:
        draw = np.random.default_rng(sequence.tokens.astype(np.uint32))
        noise = draw.normal(MEAN, DEVIATION, len(sequence.logprobs)).astype(np.float32)
        told.append(dataclasses.replace(sequence, logprobs=sequence.logprobs + noise))
    assert isinstance(result.sequences, list)
    result.sequences[:] = told
