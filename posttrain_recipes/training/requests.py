"""What every request to a sampler is made of, and what becomes of its answer.

Some servers give every sample of a request its one seed, so that a group of replies is one reply
many times (github.com/thinking-machines-lab/tinker-feedback/issues/79). Of such a group nothing is
learned, and a rate over its replies is that of fewer: copies are noticed, and drawn again.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from posttrain_recipes.plugin import Prompt, Renderer, Sample, Waiter
from posttrain_recipes.waiting import in_thread

if TYPE_CHECKING:
    import tinker


T = TypeVar("T")
log = logging.getLogger(__name__)
CHANCE = -20.0
"""Nats: replies that agree by less than this chance are copies of each other."""

_repeats: WeakSet[object] = WeakSet()
"""Connections to servers that were seen to do it."""

Draw = Callable[[int, int], "tinker.APIFuture[tinker.SampleResponse]"]
"""(number of samples, number of the sample that they begin with) -> their request, submitted."""


def awaited(
    futures: Sequence[tinker.APIFuture[T] | Future[T]],
    wait: Waiter,
    tell: Callable[[int], None],
) -> list[T]:
    """The answers to requests, in the order of these. `tell` hears how many are there: 0 at once,
    and one more with each that comes, whichever it is, as a long one may be the first of them."""
    turns: list[Future[int]] = [Future() for _ in futures]
    turn = iter(turns)

    def answered(place: int, _: object) -> None:
        next(turn).set_result(place)

    tell(0)
    for place, future in enumerate(futures):
        inner: Future[T] = future.future() if hasattr(future, "future") else future
        inner.add_done_callback(partial(answered, place))
    found: dict[int, T] = {}
    for one in turns:
        place = wait(one)
        found[place] = wait(futures[place])
        tell(len(found))
    return [found[place] for place in range(len(futures))]


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2^31) that is a function of `parts`, such as the stage's seed, the number of
    the batch and the place in it: an interrupted stage draws the same again."""
    return random.Random(":".join(map(str, parts))).getrandbits(31)


def sample(
    sampler: tinker.SamplingClient,
    prompt: Sequence[int],
    count: int,
    *,
    max_tokens: int,
    temperature: float = 1.0,
    seed: int | None = None,
    stop: Sequence[int] | None = None,
    top_k: int = 0,
    prompt_top_k: int = 0,
) -> tinker.APIFuture[tinker.SampleResponse] | Future[Drawn]:
    """Ask for `count` completions of a prompt (P,), without waiting.

    Args:
        temperature: of the softmax; 0 takes the likeliest token each time.
        seed: of the first of them; at temperature 1 or above the others differ from it even where
            the server repeats itself.
        stop: token ids that end a completion; None: what the engine takes for an end.
        top_k: how many of the likeliest tokens come with each that is sampled.
        prompt_top_k: how many come with each of the prompt's.
    """
    import tinker

    more: dict[str, Any] = {"topk_sample_logprobs": top_k} if top_k else {}
    if prompt_top_k:
        more |= {"include_prompt_logprobs": True, "topk_prompt_logprobs": prompt_top_k}

    def draw(number: int, begin: int) -> tinker.APIFuture[tinker.SampleResponse]:
        params = tinker.SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed if seed is None or not begin else derive_seed(seed, begin),
            stop=None if stop is None else list(stop),
        )
        return sampler.sample(tinker.ModelInput.from_ints(list(prompt)), number, params, **more)

    if count == 1 or seed is None or temperature < 1:
        return draw(count, 0)
    return independent(sampler, count, draw)


def reply(prompt: Prompt, sequence: tinker.SampledSequence, renderer: Renderer) -> Sample:
    """What was sampled, as a reply to a prompt."""
    return Sample(
        prompt=prompt.messages,
        completion=renderer.parse(sequence.tokens),
        answer=prompt.answer,
        truncated=sequence.stop_reason == "length",
        metadata=prompt.metadata,
        raw=renderer.raw(sequence.tokens),
    )


# --- copies ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """As much of a `SampleResponse` as samplers are asked for."""

    sequences: Sequence[tinker.SampledSequence]


def independent(sampler: tinker.SamplingClient, count: int, draw: Draw) -> Future[Drawn]:
    """`count` samples at temperature 1 or above, none of them a copy.

    Args:
        draw: asks for samples, with a seed that follows from the number of the first.
    """
    connection = getattr(sampler, "holder", sampler)
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
