"""Accuracy as a reward model: share of held-out pairs whose chosen reply scores higher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from posttrain_recipes.plugin import (
    CountTokens,
    Eval,
    EvalContext,
    EvalResult,
    PerRecord,
    Preference,
    Record,
    Usage,
    Workload,
)
from posttrain_recipes.training.intervals import mean, proportion
from posttrain_recipes.training.judges import verdicts


class RewardAccuracy(Eval):
    """Share of pairs whose chosen reply gets the higher reward from the weights; a tie is half.

    The reward is that of the method and the reward `reward_model`. About 50% for weights that know
    nothing of the preference.
    """

    name = "reward_accuracy"
    takes: ClassVar[tuple[type[Record], ...]] = (Preference,)
    needs = verdicts.NEEDS

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Both replies are read with the question about them; a verdict is one token."""
        pairs = [cast(Preference, record) for record in sample]
        lengths = [
            tokens(verdicts.question((*p.prompt, *reply)))
            for p in pairs
            for reply in (p.chosen, p.rejected)
        ]
        # An unlikely verdict is asked for by itself.
        return Workload(
            Usage(
                prefill=round(2 * count * (sum(lengths) / max(1, len(lengths)))), sample=2 * count
            ),
            about=True,
        )

    def evaluate(self, context: EvalContext) -> EvalResult:
        """Accuracy, and the margin: the reward of chosen minus that of rejected, in nats."""
        pairs = [cast(Preference, record) for record in context.records]
        rewards = verdicts.score(
            context.sampler,
            context.renderer,
            context.wait,
            [(*pair.prompt, *reply) for pair in pairs for reply in (pair.chosen, pair.rejected)],
            context.progress,
        )
        margins = [c - r for c, r in zip(rewards[::2], rewards[1::2], strict=True)]
        wins = tuple(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins)
        return EvalResult(
            {"reward_accuracy": proportion(sum(wins), len(wins)), "margin": mean(margins)},
            higher_is_better={"reward_accuracy": True, "margin": True},
            scores={"reward_accuracy": PerRecord(wins), "margin": PerRecord(tuple(margins))},
        )
