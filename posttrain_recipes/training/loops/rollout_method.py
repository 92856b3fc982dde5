"""What methods that learn from rollouts share: their options, and what they need of a server."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import model_validator

from posttrain_recipes.plugin import Family, Method, StageContext
from posttrain_recipes.training.loops.rl import RolloutConfig
from posttrain_recipes.training.rl.advantages import ALONE
from posttrain_recipes.training.rl.rollout import Source
from posttrain_recipes.training.rl.sources import CompletionConfig
from posttrain_recipes.waiting import CancellableWaiter


class RolloutMethod(Method):
    """A method that learns from groups of what its policy does."""

    takes_reward: ClassVar[bool] = True
    same_tokenizer: ClassVar[tuple[str, ...]] = ("reference",)
    family: ClassVar[Family] = Family.RL

    class Config(CompletionConfig, RolloutConfig):
        """Options of what is sampled, how it is scored and how it is learned from."""

        @model_validator(mode="after")
        def _compares(self) -> RolloutMethod.Config:
            if self.group_size == 1 and self.advantage not in ALONE:
                raise ValueError(
                    "group_size 1 leaves nothing to compare a reply with; raise it, or take "
                    f"advantage: {', '.join(sorted(ALONE))}, which compares the batch"
                )
            if self.advantage == "maxrl" and self.overlong == "penalize":
                raise ValueError(
                    "overlong: penalize makes rewards below 0, by which advantage 'maxrl' cannot "
                    "divide; take overlong: mask, or another advantage"
                )
            if self.advantage == "gdpo" and self.overlong == "penalize":
                raise ValueError(
                    "overlong: penalize is no reward, which advantage 'gdpo' could normalize by "
                    "itself; take overlong: mask, or another advantage"
                )
            if self.advantage == "pass_at_k" and self.pass_k > self.group_size:
                raise ValueError(
                    f"pass_k {self.pass_k} needs as many replies; raise group_size to it"
                )
            if self.group_size == 1 and self.zero_variance_groups == "replace":
                raise ValueError("zero_variance_groups: replace needs a group_size of 2 or more")
            return self

    config: Config

    @property
    def needs(self) -> Sequence[str]:
        """Its loss, groups of samples, log-probabilities where weights read them, and those of
        the distribution that is sampled from where that is not the policy's own."""
        config = self.config
        return (
            config.loss_need,
            "sample:group",
            "sample:trained",
            *(("prompt_logprobs",) if config.readers else ()),
            *(("prompt_logprobs:top_k",) if config.top_entropy else ()),
            *(("sample:greedy",) if config.wants_greedy else ()),
            *(("forward",) if config.importance_weights else ()),
            *(("sample:tempered_logprobs",) if config.temperature != 1 else ()),
        )

    @abstractmethod
    def source(self, stage: StageContext, waiter: CancellableWaiter) -> Source:
        """Where the groups of a stage come from; its threads wait with `waiter`."""
