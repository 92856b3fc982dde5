"""log q of what the policy wrote: as the server told it with each sample, or read again.

A server may sample with other kernels, or in another precision, than it reads with: what it tells
of a sample then differs from what the same weights say of the same tokens. Ratios p/q and KL would
take that noise for a difference of policies (Yao et al. 2025, fengyao.notion.site/off-policy-rl).
Read again, p, q and p_ref are of one kind: where the weights are the same, their KL is 0.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from posttrain_recipes.training.rl.rollout import Rollout
from posttrain_recipes.waiting import CancellableWaiter

if TYPE_CHECKING:
    import tinker

log = logging.getLogger(__name__)
BehaviourLogprobs = Literal["auto", "sampled", "recomputed"]
GAP = 0.03
"""Nats a token (root mean square) from which on `auto` reads again. In float32 the embedded engine
is below 1e-4, in bfloat16 below this; hosted servers are said to be near 0.05."""

ENOUGH = 64
"""Tokens that the gap is measured on: noise of GAP and noise of 0.05 nats then differ by 7 standard
errors. Of a group of short replies it is a matter of luck."""

Asked = list[list["tinker.APIFuture[list[float | None]]"]]


class Behaviour:
    """Sees to log q of a stage's rollouts. May be used from many threads at once.

    Args:
        how: whether they are read again; `auto` measures on the first `ENOUGH` tokens that come.
        measure: whether those are read in any case, to say how far they are off: not where that is
            known, as of the embedded engine.
    """

    def __init__(
        self, how: BehaviourLogprobs, waiter: CancellableWaiter, *, measure: bool = True
    ) -> None:
        self.how = how
        self.waiter = waiter
        self._first = threading.Lock()
        self._again: bool | None = None if measure else how == "recomputed"
        self._gaps: list[float] = []

    def ask(self, rollouts: Sequence[Rollout], sampler: tinker.SamplingClient) -> Asked:
        """Have the sampler's own weights read rollouts, without waiting, where that is to be."""
        if self._again is None:
            with self._first:
                if self._again is None:
                    self._again = self._measured(rollouts, sampler)
                    return []
        return _asked(rollouts, sampler) if self._again else []

    def take(self, rollouts: Sequence[Rollout], asked: Asked) -> None:
        """Put what was read in the place of what the samples told."""
        for rollout, futures in zip(rollouts, asked, strict=bool(asked)):
            for place, future in enumerate(futures):
                segment = rollout.segments[place]
                read = [value or 0.0 for value in self.waiter(future)]
                pairs = zip(segment.own(segment.logprobs), segment.own(read), strict=True)
                rollout.gaps += [told - value for told, value in pairs]
                own = [value * wrote for value, wrote in zip(read, segment.sampled, strict=True)]
                rollout.segments[place] = replace(segment, logprobs=own)

    def _measured(self, rollouts: Sequence[Rollout], sampler: tinker.SamplingClient) -> bool | None:
        """What the gap so far tells; None while too few tokens were read."""
        told = [list(rollout.segments) for rollout in rollouts]
        self.take(rollouts, _asked(rollouts, sampler))
        self._gaps += [gap for rollout in rollouts for gap in rollout.gaps]
        off = rms(self._gaps)
        again = self.how == "recomputed" or (self.how == "auto" and off > GAP)
        if not again:
            for rollout, segments in zip(rollouts, told, strict=True):
                rollout.segments = segments
        if len(self._gaps) < ENOUGH:
            return None
        if off > GAP and self.how != "recomputed":
            log.warning("%s; %s", gap_told(self._gaps), _READ if again else _NOT_READ)
        return again


_READ = (
    "each reply is read again by the weights that wrote it, one prefill more of each that the plan "
    "has not counted (behaviour_logprobs: auto)"
)
_NOT_READ = (
    "ratios and KL are of that noise too, and a narrow clip (gspo) leaves sequences without a "
    "gradient; 'behaviour_logprobs: recomputed' reads them again"
)


def gap_told(gaps: Sequence[float]) -> str:
    """How far what samples tell is off, in words."""
    return (
        f"log-probabilities that come with samples are off by {rms(gaps):.3f} nats a token (root "
        f"mean square; mean {math.fsum(gaps) / max(1, len(gaps)):+.4f}) from what the same weights "
        "read"
    )


def rms(values: Sequence[float]) -> float:
    """The root of the mean of squares; 0 of none."""
    return math.sqrt(math.fsum(value * value for value in values) / max(1, len(values)))


def _asked(rollouts: Sequence[Rollout], sampler: tinker.SamplingClient) -> Asked:
    import tinker

    return [
        [
            sampler.compute_logprobs(tinker.ModelInput.from_ints(segment.tokens))
            for segment in rollout.segments
        ]
        for rollout in rollouts
    ]
