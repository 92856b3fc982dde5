"""Proximal policy optimization with a critic (Schulman et al. 2017, arXiv 1707.06347).

The policy p writes a reply y_1, ..., y_T to a prompt, and its reward r comes with the last token. A
critic V says at each s_t, the prompt with y_1, ..., y_{t-1}, what is still to come:

    delta_t = r_t + gamma V_{t+1} - V_t,    A_t = sum_l (gamma lam)^l delta_{t+l}      (GAE)
    policy:  - mean_t min(rho_t A_t, clip(rho_t, 0.8, 1.2) A_t),   rho = p / q
    critic:    mean_t 1/2 (V_t - R_t)^2,    R_t = A_t + V_t as the batch began

with q the policy that sampled and A whitened over the batch.

How it departs from the paper: policy and critic share no trunk, so that the two losses are
minimized apart, each by an adapter and an Adam of its own; the loss has no entropy term (options
`entropy_bonus` and `top_entropy` stand for it). By default a batch is learned from once, where
the paper goes over it several times (`updates_per_batch`, `critic_steps`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from posttrain_recipes.plugin import Checkpoint, Prompt, Record, StageContext, Usage
from posttrain_recipes.training import PolicyGradientMethod, Rollout
from ptl_ppo.critic import Critic, Estimate
from ptl_ppo.gae import explained_variance, whitened


class PPO(PolicyGradientMethod):
    """Policy gradients whose baseline is a critic of every token, trained beside: PPO.

    When: replies are long, so that a reward at their end says little of each token, and one reply
    to a prompt is all that can be had. When not: several replies to a prompt cost little; grpo
    compares those, and needs no critic. On the tasks here it gained nothing over grpo.
    """

    name = "ppo"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    trains_beside: ClassVar[tuple[str, ...]] = ("critic",)
    loss = "-mean(min(rho A, clip(rho) A)), A = GAE(r, V); critic: mean(1/2 (V - R)^2)"
    paper = "Schulman et al. 2017, arXiv 1707.06347"

    class Config(PolicyGradientMethod.Config):
        """Options of PPO."""

        advantage: Literal["gae"] = "gae"  # type: ignore[assignment]
        """Generalized advantage estimation from the critic's values, Schulman et al. 2015, arXiv
        1506.02438."""
        loss: Literal["ppo"] = "ppo"
        """The clipped surrogate, -min(rho A, clip(rho) A)."""
        group_size: int = Field(default=1, ge=1, le=1024)
        """Replies to each prompt. The critic is what they are compared with: one is enough."""
        gamma: float = Field(default=1.0, ge=0, le=1)
        """What a reward is worth one token earlier."""
        lam: float = Field(default=0.95, ge=0, le=1)
        """Lambda of GAE: 1 waits for the reward itself, of which V is the baseline (no bias, most
        variance); 0 believes the critic one token on."""
        critic_scale: float = Field(default=0.1, gt=0)
        """Units of the reward in a nat of the critic's log-odds of `yes` and `no`: the larger, the
        less it has to move to tell a reward, and the coarser are its steps."""
        critic_learning_rate: float | None = Field(default=None, gt=0)
        """Of the critic's Adam, the same at every step; by default the policy's peak."""
        critic_steps: int = Field(default=1, ge=1, le=64)
        """Optimizer steps of the critic for one of the policy, each over the same replies."""
        critic_warmup: int = Field(default=0, ge=0)
        """Optimizer steps at the beginning in which the critic alone learns. They count as steps
        of the stage."""
        critic_clip: float | None = Field(default=None, gt=0)
        """How far a value may move from what it was as its batch began before moving on no longer
        counts, in units of the reward, as in OpenAI's PPO2; by default as far as it likes. Without
        further `critic_steps` or `updates_per_batch` nothing has moved, and it does nothing."""

        @model_validator(mode="after")
        def _critic_is_the_baseline(self) -> PPO.Config:
            if self.length_norm is not None:
                raise ValueError("length_norm means nothing to ppo, whose tokens weigh the same")
            if self.observation_weight:
                raise ValueError("observation_weight is for environments, and ppo takes prompts")
            if self.critic_clip is not None and self.critic_steps * self.updates_per_batch == 1:
                raise ValueError(
                    "critic_clip means nothing where a batch is learned from once; raise "
                    "critic_steps or updates_per_batch"
                )
            return self

        @property
        def critic_rate(self) -> float:
            """The critic's learning rate."""
            return self.critic_learning_rate or self.peak

        @property
        def compares_batch(self) -> bool:
            """Advantages are whitened over the batch."""
            return True

        @property
        def compares_alone(self) -> bool:
            """The critic is what a reply is compared with."""
            return True

        @property
        def forwards(self) -> int:
            """The critic's values, and the pass before each of its losses."""
            return super().forwards + 1 + self.critic_steps

        @property
        def backwards(self) -> int:
            """The policy's, and those of the critic."""
            return 1 + self.critic_steps

    config: Config

    @property
    def needs(self) -> Sequence[str]:
        """A loss of one's own, for the critic, and a pass that reads its values."""
        return (*super().needs, "custom_loss", "forward")

    def train(self, stage: StageContext) -> Checkpoint:
        """Optimizer steps of policy and critic on replies that the policy has just written."""
        config = self.config
        batch: Any = None
        with self.loop(stage) as loop:
            critic = Critic.of(stage, loop.beside["critic"], config)
            for step in loop:
                for groups in step.groups():
                    if step.batch is not batch:  # V and A are those of the critic as it begins
                        batch = step.batch
                        taught = [one for group in batch for one in group.scored if _taught(one)]
                        found = critic.estimate(taught)  # V_t, A_t, R_t
                        for one, A in zip(found, whitened([e.A for e in found]), strict=True):
                            one.rollout.advantage, one.rollout.credits = 0.0, [A]
                        of_rollout = {id(one.rollout): one for one in found}
                    rollouts = [one for group in groups for one in group.scored if _taught(one)]
                    estimates = [of_rollout[id(one)] for one in rollouts]
                    tokens = sum(one.length for one in rollouts)
                    for one in rollouts:
                        one.weight = 1 / tokens
                    if loop.submitted >= config.critic_warmup:
                        # - mean min(rho A, clip(rho) A), and its gradient
                        step.passes += self.learn(loop.client, groups)
                    if estimates:
                        # mean 1/2 (V - R)^2, its gradient, and Adam
                        step.beside += critic.learn(estimates, step.metrics)
                        step.extra += _trained(estimates, config.critic_steps)
                        step.metrics.update(explained_variance(estimates))
                step.update()  # Adam
        return loop.checkpoint


def _taught(rollout: Rollout) -> bool:
    return not rollout.masked and rollout.length > 0


def _trained(estimates: Sequence[Estimate], passes: int) -> Usage:
    """Tokens of the critic's passes with a gradient."""
    return Usage(train=passes * sum(len(e.rollout.segments[0].tokens) for e in estimates))
