"""Win rate: how often a reward prefers the model's reply to that of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    CountTokens,
    Eval,
    EvalContext,
    EvalResult,
    FromData,
    ModelRef,
    PerRecord,
    PluginConfig,
    Prompt,
    Record,
    RewardRef,
    Workload,
)
from posttrain_recipes.training.intervals import proportion
from posttrain_recipes.training.sampling import generation
from posttrain_recipes.training.sampling.rewarded import rewarded


class WinRate(Eval):
    """Share of prompts where a reward prefers the weights' reply to that of other weights.

    Both write one reply to each prompt; a tie is half. Weights against themselves win about 50%.
    """

    name = "win_rate"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    needs = ("sample",)

    class Config(PluginConfig):
        """Options of the eval."""

        against: ModelRef = ModelRef(stage="base")
        """The other weights, such as {stage: sft}."""
        reward: RewardRef
        """What decides, with its own options: a rule, a judge, a reward model."""
        max_tokens: Annotated[int, FromData.REPLY_TOKENS] = Field(default=256, ge=1)
        """Longest reply in tokens.
        By default it follows from the answers in the data; 256 where those do not tell."""
        temperature: float = Field(default=1.0, ge=0)
        """0 takes the likeliest token each time."""

    config: Config

    def workload(
        self, sample: Sequence[Record], count: int, tokens: CountTokens
    ) -> Workload | None:
        """A reply of each side to each prompt, where the reward asks no model."""
        if self.rewards["reward"].asks_model:
            return None
        one = generation.workload(sample, count, tokens, self.config.max_tokens)
        return one + one

    def evaluate(self, context: EvalContext) -> EvalResult:
        """Prompts on which the reward abstains are left out; the interval is Wilson's."""
        prompts = [cast(Prompt, record) for record in context.records]
        served = context.resolve(self.config.against)
        # Another stream of random numbers: equal weights must not write equal replies.
        theirs = replace(
            context,
            sampler=served.sampler,
            renderer=served.renderer,
            seed=context.seed + 10**6,
            progress=lambda done, total, what: context.progress(total + done, 2 * total, what),
        )
        mine = replace(
            context, progress=lambda done, total, what: context.progress(done, 2 * total, what)
        )
        reward, options = self.rewards["reward"], self.config
        ours, others = (
            rewarded(
                side,
                prompts,
                reward,
                max_tokens=options.max_tokens,
                temperature=options.temperature,
            )
            for side in (mine, theirs)
        )
        wins = tuple(
            None if a is None or b is None else 1.0 if a > b else 0.5 if a == b else 0.0
            for (_, a), (_, b) in zip(ours, others, strict=True)
        )
        known = [win for win in wins if win is not None]
        return EvalResult(
            {"win_rate": proportion(sum(known), len(known))},
            tuple(sample for sample, _ in ours),
            higher_is_better={"win_rate": True},
            scores={"win_rate": PerRecord(wins, abstained=True)},
        )
