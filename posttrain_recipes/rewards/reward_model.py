"""The score of a reward model that an earlier stage trained."""

from __future__ import annotations

from collections.abc import Sequence

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
    """

    name = "reward_model"
    needs = verdicts.NEEDS

    class Config(PluginConfig):
        """Options of the reward."""

        model: ModelRef
        """The reward model, as {stage: rm}: a stage with the method reward_model."""

    config: Config
    context: RewardContext | None = None

    def open(self, context: RewardContext) -> None:
        """Resolve the model."""
        self.context = context
        self.served = context.resolve(self.config.model)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """Every reply has a score."""
        if self.context is None:
            raise PtlError("the reward was not opened before it was asked", code="bad-plugin")
        conversations = [
            (*sample.prompt, Message("assistant", sample.completion)) for sample in samples
        ]
        served, wait = self.served, self.context.wait
        return list(verdicts.score(served.sampler, served.renderer, wait, conversations))
