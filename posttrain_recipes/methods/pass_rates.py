"""How often a model gets each prompt right, kept with the prompt.

    pass_rate(x) = mean of the reward over `samples` replies y ~ p(. | x)

Where no reply passes there is nothing to reward, and where all do there is nothing to learn: RL
learns from the prompts in between. The dataset `curriculum` sorts by the rate, or leaves out both
ends; the share of prompts at each end is logged. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    CountTokens,
    DataMethod,
    ModelRef,
    Prompt,
    Record,
    Rendered,
    Renderer,
    StageContext,
    Workload,
)
from posttrain_recipes.training.loops import token_counts
from posttrain_recipes.training.sampling import datagen
from posttrain_recipes.training.text import rendered

FIELD = "pass_rate"
"""The field of the prompts that the rate is kept in."""


class PassRates(DataMethod):
    """Makes prompts with their pass rates: how often a model's replies earn the reward.

    When: before RL, to order prompts from the easy to the hard, or to leave out those that teach
    nothing. When not: the data say how hard they are, or there are so many prompts that dropping
    groups without variance costs less.
    """

    name = "pass_rates"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    makes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    takes_reward: ClassVar[bool] = True
    needs = ("sample:group",)
    loss = "none: it samples y ~ p(. | x) and keeps the mean reward; log p is not touched"
    paper = "Yu et al. 2025, DAPO, arXiv 2503.14476, whose dynamic sampling it does beforehand"

    class Config(datagen.MakingConfig):
        """Options of measuring pass rates."""

        model: ModelRef | None = None
        """Who replies; the stage's own start where not given."""
        samples: int = Field(default=8, ge=1)
        """Replies to each prompt; one that is cut off is scored as it is."""

    config: Config

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """`samples` replies to every prompt."""
        lengths = [tokens(cast(Prompt, record).messages) for record in sample]
        return token_counts.made(self.config, lengths, count, self.config.samples)

    def rendered(
        self, record: Record, renderers: Callable[[ModelRef | None], Renderer]
    ) -> Sequence[Rendered]:
        """The prompt, as whoever replies to it reads it."""
        return [rendered.prompt(cast(Prompt, record).messages, renderers(self.config.model))]

    def make(self, stage: StageContext, skip: int) -> Iterator[Sequence[Prompt]]:
        """A batch of prompts at a time."""
        config = self.config
        replies = datagen.rewarded_replies(stage, config, config.model, config.samples, skip)
        for number, group, answers in replies:
            samples = [
                said.sample(p)
                for p, written in zip(group, answers, strict=True)
                for said in written
            ]
            totals = iter(datagen.totals(stage.rewards, samples))
            rates = [
                [score for _ in written if (score := next(totals)) is not None]
                for written in answers
            ]
            rated = [
                replace(p, metadata={**p.metadata, FIELD: sum(scores) / len(scores)})
                for p, scores in zip(group, rates, strict=True)
                if scores
            ]
            passed = [float(p.metadata[FIELD]) for p in rated]
            stage.sink.log(
                {
                    "data/kept": len(rated),
                    "data/truncated": datagen.cut_share([r for said in answers for r in said]),
                    "data/pass_rate": sum(passed) / max(1, len(passed)),
                    "data/never": sum(rate <= 0 for rate in passed) / max(1, len(passed)),
                    "data/always": sum(rate >= 1 for rate in passed) / max(1, len(passed)),
                },
                number,
            )
            yield rated
