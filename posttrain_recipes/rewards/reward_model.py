"""The score of a reward model that an earlier stage trained, or of an ensemble of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from posttrain_recipes.plugin import (
    Message,
    ModelRef,
    PluginConfig,
    PtlError,
    Reward,
    RewardContext,
    Sample,
)
from posttrain_recipes.training.judges import verdicts


class RewardModelReward(Reward):
    """The learned reward of the reply: log-odds, in nats, of a reward model's yes against no.

    A learned reward is a stand-in: what it likes and what it was to measure come apart as the
    policy goes on. Keep an eval by the true rule beside it, and a price on divergence (`kl_beta`).
    Several models, trained from other seeds or on other pairs, differ where the data did not tell:
    there an ensemble is careful (Coste et al. 2023, arXiv 2310.02743, equations 3 to 5).
    """

    name = "reward_model"
    needs = verdicts.NEEDS
    reads_scores = ("model",)

    class Config(PluginConfig):
        """Options of the reward."""

        model: ModelRef | list[ModelRef]
        """The reward model, as {stage: rm}: a stage with the method reward_model. A list of them is
        an ensemble."""
        combine: Literal["mean", "worst", "uncertainty"] = "mean"
        """Of an ensemble's scores of a reply: their mean; worst, the least of them; or uncertainty,
        the mean less penalty times their variance."""
        penalty: float = Field(default=1.0, gt=0)
        """For combine: uncertainty, what a squared nat of variance costs."""

        @model_validator(mode="after")
        def _several_are_combined(self) -> RewardModelReward.Config:
            if self.model == []:
                raise ValueError("the list of models is empty; name at least one")
            if self.combine != "mean" and len(self.models) < 2:
                raise ValueError(
                    f"combine: {self.combine} is of several models; list them in 'model'"
                )
            if self.combine != "uncertainty" and self.penalty != 1.0:
                raise ValueError("penalty is for combine: uncertainty")
            return self

        @property
        def models(self) -> list[ModelRef]:
            """All of them."""
            return self.model if isinstance(self.model, list) else [self.model]

        def combined(self, scores: Sequence[float]) -> float:
            """Of the members' scores (M,) of one reply."""
            mean = sum(scores) / len(scores)
            if self.combine == "worst":
                return min(scores)
            if self.combine == "uncertainty":
                variance = sum((score - mean) ** 2 for score in scores) / len(scores)
                return mean - self.penalty * variance
            return mean

    config: Config
    context: RewardContext | None = None

    def open(self, context: RewardContext) -> None:
        """Resolve the models."""
        self.context = context
        self.served = [context.resolve(model) for model in self.config.models]

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """Every reply has a score."""
        if self.context is None:
            raise PtlError("the reward was not opened before it was asked", code="bad-plugin")
        wait = self.context.wait
        conversations = [
            (*sample.prompt, Message("assistant", sample.completion)) for sample in samples
        ]
        members = [
            list(verdicts.score(one.sampler, one.renderer, wait, conversations))
            for one in self.served
        ]
        return [self.config.combined(scores) for scores in zip(*members, strict=True)]
