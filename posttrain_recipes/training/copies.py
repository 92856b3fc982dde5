"""Samples of one request that a server drew alike: noticed, and drawn again with other seeds.

Some servers give every sample of a request its one seed, so that a group of replies is one reply
many times (github.com/thinking-machines-lab/tinker-feedback/issues/79). Of such a group nothing is
learned, and a rate over its replies is that of fewer.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakSet

from posttrain_recipes import sdk
from posttrain_recipes.waiting import in_thread

if TYPE_CHECKING:
    import tinker

log = logging.getLogger(__name__)
CHANCE = -20.0
"""Nats: replies that agree by less than this chance are copies of each other."""

_repeats: WeakSet[object] = WeakSet()
"""Connections to servers that were seen to do it."""

Draw = Callable[[int, int], "tinker.APIFuture[tinker.SampleResponse]"]
"""(number of samples, number of the sample that they begin with) -> their request, submitted."""


@dataclass(frozen=True)
class Drawn:
    """As much of a `SampleResponse` as samplers are asked for."""

    sequences: Sequence[tinker.SampledSequence]


def independent(sampler: tinker.SamplingClient, count: int, draw: Draw) -> Future[Drawn]:
    """`count` samples at temperature 1 or above, none of them a copy.

    Args:
        draw: asks for samples, with a seed that follows from the number of the first.
    """
    connection = sdk.connection_of(sampler)
    if connection in _repeats:
        alone = [draw(1, number) for number in range(count)]
        return in_thread(lambda: Drawn([one.result().sequences[0] for one in alone]))
    first = draw(count, 0)

    def mended() -> Drawn:
        sequences = list(first.result().sequences)
        again = copies(sequences)
        if not again:
            return Drawn(sequences)
        if connection not in _repeats:
            _repeats.add(connection)
            log.warning(
                "the server repeats itself: %d of %d samples of one request are copies. They are "
                "drawn again, and from now on each is a request of its own, which reads its "
                "prompt anew",
                len(again),
                count,
            )
        asked = {number: draw(1, number) for number in again}
        for number, one in asked.items():
            sequences[number] = one.result().sequences[0]
        return Drawn(sequences)

    return in_thread(mended)


def copies(sequences: Sequence[tinker.SampledSequence]) -> list[int]:
    """Which samples say what one before them says, where that is no chance.

    That m of n independent samples are one of log-probability l has a chance of at most
    C(n, m) exp(m l). One of them may have come about in any way: of m alike, m - 1 are counted.
    """
    said = [tuple(one.tokens) for one in sequences]
    times = Counter(said)
    seen: set[tuple[int, ...]] = set()
    found = []
    for number, (tokens, one) in enumerate(zip(said, sequences, strict=True)):
        ways = math.log(math.comb(len(said), times[tokens]))
        likely = math.fsum(one.logprobs or ())
        if tokens in seen and ways + (times[tokens] - 1) * likely < CHANCE:
            found.append(number)
        seen.add(tokens)
    return found
