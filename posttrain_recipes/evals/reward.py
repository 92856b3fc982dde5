"""Share of held-out pairs whose chosen reply the weights, as a reward model, score higher."""

from __future__ import annotations

from typing import ClassVar, cast

from posttrain_recipes.plugin import (
    Eval,
    EvalContext,
    EvalResult,
    Preference,
    Record,
)
from posttrain_recipes.training import verdicts
from posttrain_recipes.training.estimates import mean, proportion


class RewardAccuracy(Eval):
    """Share of pairs whose chosen reply gets the higher reward from the weights; a tie is half.

    The reward is that of the method and the reward `reward_model`. About 50% for weights that know
    nothing of the preference.
    """

    name = "reward_accuracy"
    takes: ClassVar[tuple[type[Record], ...]] = (Preference,)

    def evaluate(self, context: EvalContext) -> EvalResult:
        """Accuracy, and the margin: the reward of chosen minus that of rejected, in nats."""
        pairs = [cast(Preference, record) for record in context.records]
        rewards = verdicts.score(
            context.sampler,
            context.renderer,
            context.wait,
            [(*pair.prompt, *reply) for pair in pairs for reply in (pair.chosen, pair.rejected)],
        )
        margins = [c - r for c, r in zip(rewards[::2], rewards[1::2], strict=True)]
        wins = sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins)
        return EvalResult(
            {"reward_accuracy": proportion(wins, len(margins)), "margin": mean(margins)}
        )
