"""Sampling results in protobuf: sequences, and log-probabilities of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain_recipes.engine.wire.base import PROTOBUF
from posttrain_recipes.engine.wire.tensors import Cells, fill_cells, fill_tensor

MASK_LOGPROB = -99999.0  # with token id 0: "no entry here" in a top-k table


@dataclass(frozen=True)
class TopK:
    """The K likeliest tokens at each position: ids (n, K) int32, logprobs (n, K) float32."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True)
class SampledTokens:
    """One sampled sequence: tokens (n,), their log-probabilities (n,), and whether a stop token or
    string ended it (else the maximum length did)."""

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    stopped: bool
    topk: TopK | None = None


@dataclass(frozen=True)
class AltTokens:
    """k tokens sampled at every prompt position but the first: tokens (n - 1, k) int64, and their
    log-probabilities, float32."""

    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True)
class SampleResult:
    """The result of a sample request; log-probabilities are in nats.

    `prompt_logprobs` (length of the prompt,) is NaN at the first token, and where none were asked
    for. `target_logprobs` has float32 values in the layout of the request's cells.
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
            fill_cells(message.target_prompt_logprobs, self.target_logprobs)
        if self.alt_tokens is not None:
            fill_tensor(message.prompt_alt_tokens.tokens, self.alt_tokens.tokens)
            fill_tensor(message.prompt_alt_tokens.logprobs, self.alt_tokens.logprobs)
        return message.SerializeToString(), PROTOBUF


def _fill_topk(message: Any, topk: TopK) -> None:
    message.length, message.k = topk.ids.shape
    message.token_ids = topk.ids.astype(np.int32).tobytes()
    message.logprobs = topk.logprobs.astype(np.float32).tobytes()
