"""Many replies or log-probabilities of a fixed model at once, for evals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from posttrain_recipes.plugin import CountTokens, EvalContext, Record, Usage, Workload
from posttrain_recipes.records import Prompt, Sample
from posttrain_recipes.training.requests import reply, sample
from posttrain_recipes.training.text.examples import Example
from posttrain_recipes.workload import mean

if TYPE_CHECKING:
    import tinker

IN_FLIGHT = 256
"""Requests submitted before the first is awaited; bounds memory on large evals."""


def workload(
    some: Sequence[Record], prompts: int, tokens: CountTokens, max_tokens: int
) -> Workload:
    """One reply to each of `prompts`, judged by `some` of them: each is read once, and a reply
    may end before `max_tokens`."""
    lengths = [tokens(cast(Prompt, record).messages) for record in some]
    usage = Usage(prefill=round(prompts * mean(lengths)), sample=prompts * max_tokens)
    return Workload(usage, at_most=True)


def generate(
    context: EvalContext, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float
) -> list[Sample]:
    """One reply to each prompt, in order; temperature 0 is greedy. The seed is the context's."""
    samples: list[Sample] = []
    for begin in range(0, len(prompts), IN_FLIGHT):
        block = prompts[begin : begin + IN_FLIGHT]
        futures = [
            sample(
                context.sampler,
                context.renderer.prompt(prompt.messages),
                1,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=context.seed + begin + offset,
                stop=context.renderer.stop,
            )
            for offset, prompt in enumerate(block)
        ]
        for prompt, future in zip(block, futures, strict=True):
            sequence = context.wait(future).sequences[0]
            samples.append(reply(prompt, sequence, context.renderer))
            context.progress(len(samples), len(prompts), "replies")
    return samples


def log_likelihoods(context: EvalContext, examples: Sequence[Example]) -> list[float]:
    """sum_t w_t log p(x_t | x_<t) of each example, in nats."""
    import tinker

    sums: list[float] = []
    for begin in range(0, len(examples), IN_FLIGHT):
        block = examples[begin : begin + IN_FLIGHT]
        futures: list[tinker.APIFuture[list[float | None]]] = [
            context.sampler.compute_logprobs(tinker.ModelInput.from_ints(e.tokens)) for e in block
        ]
        for example, future in zip(block, futures, strict=True):
            logprobs = context.wait(future)
            pairs = zip(example.weights[1:], logprobs[1:], strict=True)
            sums.append(sum(weight * (logprob or 0.0) for weight, logprob in pairs))
            context.progress(len(sums), len(examples), "texts")
    return sums
