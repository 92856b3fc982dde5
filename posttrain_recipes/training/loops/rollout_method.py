"""What methods that learn from rollouts share: their options, and what they need of a server."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import model_validator

from posttrain_recipes.plugin import Family, Method, StageContext
from posttrain_recipes.training.loops.rl import RolloutConfig
from posttrain_recipes.training.rl.advantages import ALONE
from posttrain_recipes.training.rl.behaviour import BehaviourLogprobs
from posttrain_recipes.training.rl.policy_loss import PolicyConfig
from posttrain_recipes.training.rl.rollout import Source
from posttrain_recipes.training.rl.sources import CompletionConfig
from posttrain_recipes.waiting import CancellableWaiter


class RolloutMethod(Method):
    """A method that learns from groups of what its policy does."""

    takes_reward: ClassVar[bool] = True
    same_tokenizer: ClassVar[tuple[str, ...]] = ("reference",)
    family: ClassVar[Family] = Family.RL

    class Config(CompletionConfig, RolloutConfig):
        """Options of what is sampled, how it is scored and of the loop."""

    config: Config

    @property
    def needs(self) -> Sequence[str]:
        """Groups of samples, and log-probabilities where weights read them."""
        return (
            "sample:group",
            "sample:trained",
            *(("prompt_logprobs",) if self.config.readers else ()),
        )

    @abstractmethod
    def source(self, stage: StageContext, waiter: CancellableWaiter) -> Source:
        """Where the groups of a stage come from; its threads wait with `waiter`."""


class PolicyGradientMethod(RolloutMethod):
    """One whose loss is a policy gradient."""

    class Config(PolicyConfig, RolloutMethod.Config):
        """Options of what is sampled, how it is scored and how it is learned from."""

        @model_validator(mode="after")
        def _read_at_temperature_1(self) -> PolicyGradientMethod.Config:
            if self.behaviour_logprobs == "recomputed" and self.temperature != 1:
                raise ValueError(
                    "behaviour_logprobs: recomputed needs temperature 1: weights are read at no "
                    "other"
                )
            return self

        @model_validator(mode="after")
        def _compares(self) -> PolicyGradientMethod.Config:
            if self.group_size == 1 and self.advantage not in ALONE:
                raise ValueError(
                    "group_size 1 leaves nothing to compare a reply with; raise it, or take "
                    f"advantage: {', '.join(sorted(ALONE))}, which compares with others"
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

        @property
        def reads_reference(self) -> bool:
            """It does where divergence costs something too."""
            return self.reference is not None or self.kl_beta > 0

        @property
        def reads_policy(self) -> BehaviourLogprobs:
            """As `behaviour_logprobs` says; importance weights see to a difference themselves."""
            weighed = self.importance_weights is not None and self.behaviour_logprobs == "auto"
            return "sampled" if weighed else self.behaviour_logprobs

        @property
        def measures_policy(self) -> bool:
            """It is where the policy is the one that samples."""
            return self.importance_weights is None and self.temperature == 1

        @property
        def compares_parts(self) -> bool:
            """GDPO normalizes each reward."""
            return self.advantage == "gdpo"

        @property
        def reads_entropy(self) -> bool:
            """They do where the most uncertain tokens alone are learned."""
            return self.top_entropy is not None

    config: Config

    @property
    def needs(self) -> Sequence[str]:
        """Its loss beside, and log-probabilities of the distribution that is sampled from where
        that is not the policy's own."""
        config = self.config
        return (
            config.loss_need,
            *(("loss:cross_entropy",) if config.observation_weight else ()),
            *super().needs,
            *(("prompt_logprobs:top_k",) if config.top_entropy else ()),
            *(("sample:greedy",) if config.wants_greedy else ()),
            *(("forward",) if config.importance_weights else ()),
            *(("sample:tempered_logprobs",) if config.temperature != 1 else ()),
        )
