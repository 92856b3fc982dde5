"""What every request to a sampler is made of, and what becomes of its answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from posttrain_recipes.plugin import Prompt, Renderer, Sample
from posttrain_recipes.training.copies import Drawn, independent

if TYPE_CHECKING:
    import tinker


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
