"""Negative log-likelihood of held-out conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    Conversation,
    CountTokens,
    Eval,
    EvalContext,
    EvalResult,
    PerRecord,
    PluginConfig,
    Record,
    Usage,
    Workload,
)
from posttrain_recipes.training.intervals import ratio
from posttrain_recipes.training.sampling.generation import log_likelihoods
from posttrain_recipes.training.text.examples import Example, tokenize, usable
from posttrain_recipes.workload import mean


class NLL(Eval):
    """Mean negative log-likelihood of a token that the assistant said, in nats; lower is better."""

    name = "nll"
    takes: ClassVar[tuple[type[Record], ...]] = (Conversation,)
    needs = ("prompt_logprobs",)

    class Config(PluginConfig):
        """Options of the eval."""

        train_on: Literal["last", "all"] = "last"
        """Score a conversation's last assistant message, or all of them."""
        max_length: int = Field(default=2048, ge=2)
        """Longer conversations are cut at this many tokens."""

    config: Config

    def measures(self) -> Sequence[str]:
        return ["nll"]

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Every conversation is read once."""
        lengths = [tokens(cast(Conversation, record).messages) for record in sample]
        return Workload(Usage(prefill=round(count * mean(lengths, self.config.max_length))))

    def evaluate(self, context: EvalContext) -> EvalResult:
        """The mean over tokens; its interval is over conversations."""

        def example(place: int) -> tuple[int, Example]:
            record = context.records[place]
            made = tokenize(
                cast(Conversation, record).messages,
                context.renderer,
                train_on=self.config.train_on,
                max_length=self.config.max_length,
                truncate=True,
                source=record.source,
            )
            return place, made

        count = len(context.records)
        places, examples = zip(*usable(example, range(count), truncate=True), strict=True)
        losses = [-value for value in log_likelihoods(context, examples)]
        tokens = [float(one.learned) for one in examples]
        return EvalResult(
            {"nll": ratio(losses, tokens)},
            higher_is_better={"nll": False},
            scores={"nll": PerRecord.at(places, losses, count, tokens)},
        )
