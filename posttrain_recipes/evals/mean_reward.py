"""Mean reward of sampled replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, cast

from pydantic import Field

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
    RewardRef,
    Workload,
)
from posttrain_recipes.training.intervals import summary
from posttrain_recipes.training.sampling import generation
from posttrain_recipes.training.sampling.rewarded import rewarded


class MeanReward(Eval):
    """Mean of a reward over one sampled reply to each prompt.

    With the reward that a stage is trained on it tells how far that was pushed; with another one,
    such as the true rule behind a learned reward, what came of it.
    """

    name = "mean_reward"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    needs = ("sample",)

    class Config(PluginConfig):
        """Options of the eval."""

        reward: RewardRef
        """The reward, with its own options."""
        max_tokens: Annotated[int, FromData.REPLY_TOKENS] = Field(default=256, ge=1)
        """Longest reply in tokens.
        By default it follows from the answers in the data; 256 where those do not tell."""
        temperature: float = Field(default=1.0, ge=0)
        """0 takes the likeliest token each time."""

    config: Config

    def workload(
        self, sample: Sequence[Record], count: int, tokens: CountTokens
    ) -> Workload | None:
        """One reply to each prompt, where the reward asks no model."""
        if self.rewards["reward"].asks_model:
            return None
        return generation.workload(sample, count, tokens, self.config.max_tokens)

    def evaluate(self, context: EvalContext) -> EvalResult:
        """The mean over the prompts on which the reward does not abstain."""
        scored = rewarded(
            context,
            [cast(Prompt, record) for record in context.records],
            self.rewards["reward"],
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
        )
        values = tuple(value for _, value in scored)
        return EvalResult(
            {"mean_reward": summary([value for value in values if value is not None])},
            tuple(sample for sample, _ in scored),
            higher_is_better={"mean_reward": True},
            scores={"mean_reward": PerRecord(values, abstained=True)},
        )
