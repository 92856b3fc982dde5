"""Sampled replies for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    CountTokens,
    Eval,
    EvalContext,
    EvalResult,
    PerRecord,
    PluginConfig,
    Prompt,
    Record,
    Workload,
)
from posttrain_recipes.training.intervals import mean, proportion
from posttrain_recipes.training.sampling import generation


class Generations(Eval):
    """Samples replies for people to read, the same prompts before and after training."""

    name = "generations"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    needs = ("sample",)
    undirected = frozenset({"words"})

    class Config(PluginConfig):
        """Options of the eval."""

        count: int = Field(default=8, ge=1)
        """How many prompts, the first of the data."""
        max_tokens: int = Field(default=128, ge=1)
        """Longest reply in tokens."""
        temperature: float = Field(default=0.7, ge=0)
        """0 takes the likeliest token each time."""

    config: Config

    def measures(self) -> Sequence[str]:
        return ["words", "cut_off"]

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Every prompt is read once, and a reply may end before its limit."""
        count = min(count, self.config.count)
        return generation.workload(sample, count, tokens, self.config.max_tokens)

    def evaluate(self, context: EvalContext) -> EvalResult:
        """The replies, their mean length in words and how many were cut off."""
        prompts = [cast(Prompt, record) for record in context.records[: self.config.count]]
        samples = generation.generate(
            context,
            prompts,
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
        )
        words = [float(len(s.completion.split())) for s in samples]
        cut = [float(s.truncated) for s in samples]
        return EvalResult(
            {"words": mean(words), "cut_off": proportion(sum(cut), len(cut))},
            tuple(samples),
            higher_is_better={"words": None, "cut_off": False},
            scores={"words": PerRecord(tuple(words)), "cut_off": PerRecord(tuple(cut))},
            tested=False,
        )
