"""Share of prompts whose reply is the reference answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, cast

from pydantic import Field, model_validator

from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import (
    CountTokens,
    Eval,
    EvalContext,
    EvalResult,
    FromData,
    PerRecord,
    PluginConfig,
    Prompt,
    Record,
    Workload,
)
from posttrain_recipes.training.intervals import summary
from posttrain_recipes.training.sampling import generation
from posttrain_recipes.training.text import answer_extraction


class ExactMatch(Eval):
    """Share of prompts whose reply, or the answer extracted from it, equals the reference."""

    name = "exact_match"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    needs = ("sample:greedy",)

    class Config(PluginConfig):
        """Options of the eval."""

        max_tokens: Annotated[int, FromData.REPLY_TOKENS] = Field(default=256, ge=1)
        """Longest reply in tokens; a reply that is cut there is wrong unless it matches.
        By default it follows from the answers in the data; 256 where those do not tell."""
        temperature: float = Field(default=0.0, ge=0)
        """0 takes the likeliest token each time."""
        samples: int = Field(default=1, ge=1, le=1024)
        """Replies to each prompt. With several, as {samples: 8, temperature: 1}, exact_match is the
        share of all of them, and pass_at_8 that of prompts of whose 8 replies one is right."""

        @model_validator(mode="after")
        def _samples_differ(self) -> ExactMatch.Config:
            if self.samples > 1 and not self.temperature:
                raise ValueError("samples at temperature 0 are all the same; set temperature: 1")
            return self

        extract: answer_extraction.Extract = "whole"
        """What of the reply is compared: whole, the last number, after hashes (####), boxed."""
        ignore_case: bool = False
        """Whether capital letters do not matter."""

    config: Config

    def measures(self) -> Sequence[str]:
        count = self.config.samples
        return ["exact_match", *([f"pass_at_{count}"] if count > 1 else [])]

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Every prompt is read once, and a reply may end before its limit."""
        config = self.config
        return generation.workload(sample, count, tokens, config.max_tokens, config.samples)

    def evaluate(self, context: EvalContext) -> EvalResult:
        """Each prompt's replies; of shares of prompts the interval is Wilson's."""
        prompts = [cast(Prompt, record) for record in context.records]
        for prompt in prompts:
            if prompt.answer is None:
                raise UsageError(
                    f"{prompt.source}: eval '{context.name}' needs an answer to compare with",
                    hint="add an 'answer' to each prompt, or use the 'generations' eval",
                    code="wrong-data",
                )
        config = self.config
        samples = generation.generate(
            context,
            prompts,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            count=config.samples,
        )
        scored = []
        for sample in samples:
            found = answer_extraction.extract(sample.completion, config.extract)
            right = answer_extraction.equal(
                found, sample.answer or "", ignore_case=config.ignore_case
            )
            scored.append(replace(sample, scores={"exact_match": float(right)}))
        each = [sample.scores["exact_match"] for sample in scored]
        n = config.samples
        shares = tuple(sum(each[i : i + n]) / n for i in range(0, len(each), n))
        solved = tuple(float(share > 0) for share in shares)
        values = dict(zip(self.measures(), (shares, solved), strict=False))
        return EvalResult(
            {name: summary(found) for name, found in values.items()},
            tuple(scored),
            higher_is_better=dict.fromkeys(values, True),
            scores={name: PerRecord(found) for name, found in values.items()},
        )
