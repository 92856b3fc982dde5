"""Many replies or log-probabilities of a fixed model at once, for evals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from posttrain_recipes.plugin import CountTokens, EvalContext, Record, Usage, Workload
from posttrain_recipes.records import Prompt, Sample
from posttrain_recipes.training.requests import awaited, derive_seed, reply, sample
from posttrain_recipes.training.text.examples import Example
from posttrain_recipes.workload import mean

if TYPE_CHECKING:
    import tinker

IN_FLIGHT = 256
"""Requests submitted before the first is awaited; bounds memory on large evals."""


def workload(
    some: Sequence[Record], prompts: int, tokens: CountTokens, max_tokens: int, count: int = 1
) -> Workload:
    """`count` replies to each of `prompts`, judged by `some` of them: each is read once, and a
    reply may end before `max_tokens`."""
    lengths = [tokens(cast(Prompt, record).messages) for record in some]
    usage = Usage(prefill=round(prompts * mean(lengths)), sample=prompts * count * max_tokens)
    return Workload(usage, at_most=True)


def generate(
    context: EvalContext,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    temperature: float,
    count: int = 1,
) -> list[Sample]:
    """`count` replies to each prompt, in order; temperature 0 is greedy. The seed is the context's.

    The replies to one prompt stand side by side.
    """
    samples: list[Sample] = []

    def seed(place: int) -> int:
        # That of a further reply follows from the first one's, which neighbours may not share.
        return context.seed + place if count == 1 else derive_seed(context.seed, place)

    def tell(before: int, there: int) -> None:
        context.progress(count * (before + there), count * len(prompts), "replies")

    for begin in range(0, len(prompts), IN_FLIGHT):
        block = prompts[begin : begin + IN_FLIGHT]
        futures = [
            sample(
                context.sampler,
                context.renderer.prompt(prompt.messages),
                count,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed(begin + offset),
                stop=context.renderer.stop,
            )
            for offset, prompt in enumerate(block)
        ]
        answers = awaited(futures, context.wait, partial(tell, begin))
        for prompt, answer in zip(block, answers, strict=True):
            samples += [reply(prompt, one, context.renderer) for one in answer.sequences]
    return samples


def log_likelihoods(context: EvalContext, examples: Sequence[Example]) -> list[float]:
    """sum_t w_t log p(x_t | x_<t) of each example, in nats."""
    import tinker

    sums: list[float] = []

    def tell(before: int, there: int) -> None:
        context.progress(before + there, len(examples), "texts")

    for begin in range(0, len(examples), IN_FLIGHT):
        block = examples[begin : begin + IN_FLIGHT]
        futures: list[tinker.APIFuture[list[float | None]]] = [
            context.sampler.compute_logprobs(tinker.ModelInput.from_ints(e.tokens)) for e in block
        ]
        answers = awaited(futures, context.wait, partial(tell, begin))
        for example, logprobs in zip(block, answers, strict=True):
            pairs = zip(example.weights[1:], logprobs[1:], strict=True)
            sums.append(sum(weight * (logprob or 0.0) for weight, logprob in pairs))
    return sums
