"""What samplers have given out, for training requests that name it: who sampled which token.

A request for samples with `record_stability_info` has its prompt and its sequences kept, in the
session that sampled them, for a day; each training request that names a sequence restarts that day.
A datum names them by spans: runs of positions, each a part of a prompt or of what was sampled. They
are held to the records, token by token, so that no loss is computed of claims that are not so.
Targets that a span says are of a prompt may be anything: no loss is computed of them, and
tinker-cookbook's rl_loop writes zeros there.

Source: the SDK's `types.provenance_spans`, and the documentation's page on StableReinforce.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from posttrain_recipes.engine.wire import Datum, RequestError, Span

KEEP_S = 86_400.0
MAX_TOKENS = 1 << 27  # of all records; half a gigabyte. The longest unused go first
STABLE_REINFORCE = "stable_reinforce"
SUBSTITUTES = {STABLE_REINFORCE: ("ppo", "importance_sampling", "cispo", "dro")}
"""Losses that this engine does not have, with those that read what a datum for them has."""

Ids = NDArray[np.int32]


def of_sampled(datum: Datum) -> Datum:
    """The datum with `weights` that are 0 on targets of a prompt, where its spans say which are."""
    if datum.spans is None:
        return datum
    spans = datum.spans[1]
    marks = np.repeat([float(s.sampled) for s in spans], [s.length for s in spans])
    weights = marks.astype(np.float32) * datum.inputs.get("weights", np.float32(1))
    return replace(datum, inputs={**datum.inputs, "weights": weights})


@dataclass(eq=False)
class SampleRecord:
    """One sampled sequence: the request's prompt, and its tokens, None until they are there."""

    prompt: Ids
    sampled: Ids | None = None
    used: float = 0.0

    @property
    def size(self) -> int:
        """How many tokens are kept for it."""
        return self.prompt.size + (0 if self.sampled is None else self.sampled.size)


class SampleRecords:
    """The records of all sessions by the ids of their sequences, which begin with the session's.

    Safe for threads: samples are asked for on the event loop and made on the worker.
    """

    def __init__(self) -> None:
        self._records: OrderedDict[str, SampleRecord] = OrderedDict()  # the longest unused first
        self._tokens = 0
        self._lock = threading.Lock()

    def expect(self, ids: Iterable[str], prompt: Sequence[int] | NDArray[np.int64]) -> None:
        """Keep the prompt of sequences that are going to be sampled."""
        kept = np.asarray(prompt, dtype=np.int32)
        with self._lock:
            for name in ids:
                if name not in self._records:
                    self._records[name] = SampleRecord(kept, used=time.monotonic())
                    self._tokens += kept.size
            self._sweep()

    def fill(self, ids: Iterable[str], sequences: Iterable[NDArray[np.int32]]) -> None:
        """Keep the tokens of sequences that were sampled."""
        with self._lock:
            for name, tokens in zip(ids, sequences, strict=True):
                record = self._records.get(name)
                if record is not None and record.sampled is None:
                    record.sampled = tokens.astype(np.int32)
                    self._tokens += tokens.size
            self._sweep()

    def forget(self, session_id: str) -> None:
        """Drop the records of a session that has ended."""
        with self._lock:
            for name in [n for n in self._records if n.startswith(f"{session_id}:")]:
                self._drop(name)

    def check(self, session_id: str, data: Sequence[Datum]) -> None:
        """Hold the spans of datums for `stable_reinforce` to the records.

        Raises:
            RequestError: 422, naming datum, position and reason: spans are missing, name what is
                not on record, or other tokens; or an advantage is not 0 on a token not sampled.
        """
        with self._lock:
            for index, datum in enumerate(data):
                self._check(session_id, datum, f"datum {index}")

    def _check(self, session_id: str, datum: Datum, what: str) -> None:
        if datum.spans is None:
            raise RequestError(
                422,
                f"{what}: stable_reinforce needs to know which sequence each token is of: sample "
                "with record_stability_info=True, and give the datum's spans (with_provenance)",
            )
        targets = datum.inputs.get("target_tokens")
        if targets is None or targets.ndim != 1:
            raise RequestError(422, f"{what}: stable_reinforce needs target_tokens, shape (N,)")
        for name, tokens, spans in (
            ("model_input", datum.tokens, datum.spans[0]),
            ("target_tokens", targets, datum.spans[1]),
        ):
            start = 0
            for span in spans:
                found = self._named(session_id, span, f"{what}, {name}")
                own = tokens[start : start + span.length]
                wrong = np.flatnonzero(own != found)
                if wrong.size and (span.sampled or name == "model_input"):
                    at = int(wrong[0])
                    raise RequestError(
                        422,
                        f"{what}: {name}[{start + at}] is token {own[at]}, and token {found[at]} "
                        f"in {span.sequence_id}, which its span names",
                    )
                start += span.length
        advantages, start = datum.inputs.get("advantages"), 0
        for span in datum.spans[1]:
            if advantages is not None and not span.sampled:
                given = np.flatnonzero(advantages[start : start + span.length])
                if given.size:
                    raise RequestError(
                        422,
                        f"{what}: position {start + int(given[0])} has an advantage, and its span "
                        "says that it is of a prompt: of sampled tokens alone it may not be 0",
                    )
            start += span.length

    def _named(self, session_id: str, span: Span, where: str) -> Ids:
        """The tokens that a span names; its record is used now."""
        record = self._records.get(span.sequence_id)
        mine = span.sequence_id.startswith(f"{session_id}:")
        if record is None or not mine or record.used < time.monotonic() - KEEP_S:
            raise RequestError(
                422,
                f"{where}: nothing is on record of sequence {span.sequence_id!r}: it was not "
                "sampled in this session with record_stability_info=True, or not used for a day",
            )
        record.used = time.monotonic()
        self._records.move_to_end(span.sequence_id)
        kept = record.sampled if span.sampled else record.prompt
        size = 0 if kept is None else kept.size
        if kept is None or span.offset + span.length > size:
            kind = "sampled tokens" if span.sampled else "tokens of its prompt"
            raise RequestError(
                422,
                f"{where}: a span names the {kind} {span.offset} to {span.offset + span.length} of "
                f"{span.sequence_id}, which has {size}",
            )
        return kept[span.offset : span.offset + span.length]

    def _sweep(self) -> None:
        old = time.monotonic() - KEEP_S
        while self._records:
            name, record = next(iter(self._records.items()))
            if record.used >= old and self._tokens <= MAX_TOKENS:
                return
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._tokens -= self._records.pop(name).size
