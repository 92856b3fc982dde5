"""Sampled replies with the scores of a reward, for evals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from posttrain_recipes.errors import PtlError
from posttrain_recipes.plugin import EvalContext, Reward, RewardContext
from posttrain_recipes.records import Prompt, Sample
from posttrain_recipes.training.rl.failing import told_where_it_fails
from posttrain_recipes.training.rl.scoring import scores_of
from posttrain_recipes.training.sampling.generation import generate


def rewarded(
    context: EvalContext,
    prompts: Sequence[Prompt],
    reward: Reward,
    *,
    max_tokens: int,
    temperature: float,
) -> list[tuple[Sample, float | None]]:
    """One reply to each prompt, in order, with its reward; None where the reward abstained.

    Raises:
        PtlError: the reward failed, or abstained on every reply.
    """
    samples = generate(context, prompts, max_tokens=max_tokens, temperature=temperature)
    reward.open(RewardContext(context.seed, context.renderer, context.wait, context.resolve))
    with told_where_it_fails(reward, f"eval '{context.name}': "):
        scores = scores_of(reward, samples)
    if all(score is None for score in scores):
        raise PtlError(
            f"eval '{context.name}': reward '{reward.label}' abstained on every reply",
            hint="do the prompts have what it compares with?",
            code="reward-failed",
        )
    return [
        (sample if score is None else replace(sample, scores={reward.label: score}), score)
        for sample, score in zip(samples, scores, strict=True)
    ]
