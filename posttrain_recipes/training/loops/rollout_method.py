"""What methods that learn from rollouts share: their options, and what they need of a server."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import model_validator

from posttrain_recipes.plugin import (
    CountTokens,
    Family,
    Method,
    Prompt,
    Record,
    StageContext,
    Task,
    UsageError,
    Workload,
)
from posttrain_recipes.training.loops import token_counts
from posttrain_recipes.training.loops.rl import RolloutConfig, RolloutLoop
from posttrain_recipes.training.rl.advantages import ALONE
from posttrain_recipes.training.rl.behaviour import BehaviourLogprobs
from posttrain_recipes.training.rl.policy_gradient import PolicyGradient
from posttrain_recipes.training.rl.policy_loss import PolicyConfig, forward_backward
from posttrain_recipes.training.rl.rollout import Group, Passes, Source
from posttrain_recipes.training.rl.scoring import RolloutScorer
from posttrain_recipes.training.rl.sources import CompletionConfig, PromptSource, episodes
from posttrain_recipes.waiting import CancellableWaiter

if TYPE_CHECKING:
    import tinker


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
            if self.group_size == 1 and not self.compares_alone:
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

    def workload(
        self, sample: Sequence[Record], count: int, tokens: CountTokens
    ) -> Workload | None:
        """Of replies to prompts; how long an episode is, nobody knows beforehand."""
        if any(isinstance(record, Task) for record in sample):
            return None
        config = self.config
        return token_counts.rollouts(
            config,
            [tokens(cast(Prompt, record).messages) for record in sample],
            count,
            group_size=config.group_size + config.wants_greedy,
            max_tokens=config.max_tokens,
            readers=config.readers,
            forwards=config.forwards,
            backwards=config.backwards,
        )

    def source(self, stage: StageContext, waiter: CancellableWaiter) -> Source:
        """Groups of completions of the stage's prompts, or of episodes of its environment."""
        config = self.config
        if stage.train and isinstance(stage.train[0], Task):
            tasks = cast(Sequence[Task], stage.train)
            return episodes(tasks, stage, config, waiter, config.retries, config.wants_greedy)
        if config.observation_weight:
            raise UsageError(
                f"stage '{stage.name}': observation_weight is for environments, and its data are "
                "prompts",
                why="nobody answers between a reply's tokens",
                hint="remove it, or give the stage an environment",
                code="wrong-value",
            )
        prompts = cast(Sequence[Prompt], stage.train)
        return PromptSource(prompts, stage.renderer, config, waiter, config.wants_greedy)

    def collected(self, groups: Sequence[Group]) -> Sequence[Record]:
        """What the groups of a step leave for later stages."""
        return ()

    def loop(self, stage: StageContext) -> RolloutLoop:
        """The optimizer steps of a stage, a context manager to go through:

            with self.loop(stage) as loop:
                for step in loop:
                    for groups in step.groups():  # some at a time, as soon as they are scored
                        ...  # each scored rollout gets its advantage and weight
                        step.passes += self.learn(loop.client, groups)
                    step.update()
            return loop.checkpoint

        Groups are sampled by the policy and scored by the stage's rewards, or by its environment,
        in threads. `loop.beside` has the clients of `trains_beside`.
        """
        config, waiter = self.config, CancellableWaiter()
        source = self.source(stage, waiter)
        scorer, learner = RolloutScorer(stage, config, waiter), PolicyGradient(config)

        def rollout(index: int, seed: int, sampler: tinker.SamplingClient) -> list[Group]:
            groups = source.sample(index, seed, sampler)  # y_1, ..., y_G ~ q(. | x)
            return [scorer.score(group, sampler) for group in groups]  # r_1, ..., r_G

        return RolloutLoop(
            stage, config, source, rollout, waiter, learner, self.collected, self.trains_beside
        )

    def learn(self, client: tinker.TrainingClient, groups: Sequence[Group]) -> Passes:
        """Submit the forward and backward pass of `loss` over groups, without waiting: it belongs
        into `passes` of the step. None where nothing is learned.

        Of each scored rollout it reads `advantage`, which all of its tokens have, `credits`, what
        is added to that at each of them, and `weight`, what one of them weighs in the loss.
        """
        return forward_backward(client, groups, self.config)
