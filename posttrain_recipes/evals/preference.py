"""Share of held-out pairs of which the model finds the chosen reply likelier."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import ClassVar, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    CountTokens,
    Eval,
    EvalContext,
    EvalResult,
    PerRecord,
    PluginConfig,
    Preference,
    Record,
    Usage,
    Workload,
)
from posttrain_recipes.training.intervals import mean, proportion
from posttrain_recipes.training.sampling.generation import log_likelihoods
from posttrain_recipes.training.text.examples import Example, learned_whole, tokenize, usable
from posttrain_recipes.workload import mean as average


class PreferenceAccuracy(Eval):
    """Share of pairs whose chosen reply the model finds likelier, per token; a tie is half.

    It asks the model alone, with no reference model: about 50% for a model without the preference.
    """

    name = "preference_accuracy"
    takes: ClassVar[tuple[type[Record], ...]] = (Preference,)
    needs = ("prompt_logprobs",)

    class Config(PluginConfig):
        """Options of the eval."""

        max_length: int = Field(default=2048, ge=2)
        """Longer conversations are cut at this many tokens."""

    config: Config

    def measures(self) -> Sequence[str]:
        return ["preference_accuracy", "margin"]

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Both replies of every pair are read once."""
        pairs = [cast(Preference, record) for record in sample]
        lengths = [tokens((*p.prompt, *reply)) for p in pairs for reply in (p.chosen, p.rejected)]
        each = average(lengths, self.config.max_length)
        return Workload(Usage(prefill=round(2 * count * each)))

    def evaluate(self, context: EvalContext) -> EvalResult:
        """Accuracy, and the margin: mean log p per token of chosen minus rejected, in nats."""
        pairs = [cast(Preference, record) for record in context.records]

        def both(place: int) -> tuple[int, list[Example]]:
            pair = pairs[place]
            return place, [
                tokenize(
                    learned_whole(pair.prompt, reply),
                    context.renderer,
                    max_length=self.config.max_length,
                    truncate=True,
                    source=pair.source,
                )
                for reply in (pair.chosen, pair.rejected)
            ]

        places, made = zip(*usable(both, range(len(pairs)), truncate=True), strict=True)
        examples = list(chain.from_iterable(made))
        per_token = [
            value / example.learned
            for value, example in zip(log_likelihoods(context, examples), examples, strict=True)
        ]
        margins = [c - r for c, r in zip(per_token[::2], per_token[1::2], strict=True)]
        wins = tuple(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins)
        return EvalResult(
            {"preference_accuracy": proportion(sum(wins), len(wins)), "margin": mean(margins)},
            higher_is_better={"preference_accuracy": True, "margin": True},
            scores={
                "preference_accuracy": PerRecord.at(places, wins, len(pairs)),
                "margin": PerRecord.at(places, margins, len(pairs)),
            },
        )
