"""Group relative policy optimization (Shao et al. 2024, arXiv 2402.03300) and its kin.

Of every prompt x the policy writes G completions y_i, which are rewarded. The others of the group
are the baseline of each, with no value model:

    A_i = (r_i - mean(r)) / std(r)
    loss = - 1/G sum_i 1/|y_i| sum_t min(rho_it A_i, clip(rho_it, 0.8, 1.2) A_i),   rho = p / q

with q the policy that sampled and p the one that is trained. `advantage:` and `loss:` name the
estimators and surrogates that others have put in their places, each with its paper in
`training/rl/advantages.py` and `training/rl/policy_loss.py`; the length normalization follows the
estimator.

How it departs from the paper: with one update a batch and no staleness (the defaults) p is q at
every step, and the losses differ only in what they do to float noise; what divergence from
the reference costs is taken off the advantage of each token, which every engine can do; `kl_in:
loss` adds it to the loss, as the paper does. A group whose rewards are all the same is not trained
on, so that nothing pulls it to the reference either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from posttrain_recipes.plugin import (
    Checkpoint,
    Conversation,
    Preference,
    Prompt,
    Record,
    StageContext,
    Task,
)
from posttrain_recipes.training.loops.rollout_method import PolicyGradientMethod
from posttrain_recipes.training.rl import collect as collecting
from posttrain_recipes.training.rl import observations
from posttrain_recipes.training.rl.rollout import Group


class GRPO(PolicyGradientMethod):
    """Policy gradients on groups of rewarded replies: GRPO, RLOO, Dr. GRPO, DAPO and kin.

    When: a rule, a program or another model can tell good replies from bad ones, and the model
    already writes some of both. When not: it never gets any right, or always (a group without
    variance teaches nothing: sft first); there are examples to imitate and nothing to search for.
    """

    name = "grpo"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt, Task)
    makes: ClassVar[tuple[type[Record], ...]] = (Conversation, Preference)
    loss = "-mean(min(rho A, clip(rho) A)), log rho = log p - log q, A = (r - mean r) / std r"
    paper = "Shao et al. 2024, DeepSeekMath, arXiv 2402.03300"

    class Config(PolicyGradientMethod.Config):
        """Options of group relative policy optimization."""

        collect: collecting.CollectConfig | None = None
        """Leave good rollouts for later stages (`dataset: {use: collected}`), as
        {min_reward: 1, keep: 2}: conversations, and the best and worst of a group as a pair."""

    config: Config

    def collects(self) -> tuple[type[Record], ...]:
        """What `collect` asks for."""
        return self.makes if self.config.collect else ()

    def train(self, stage: StageContext) -> Checkpoint:
        """Optimizer steps on groups of completions that the policy has just written."""
        config = self.config
        with self.loop(stage) as loop:  # groups of y_1, ..., y_G ~ q(. | x), with r_1, ..., r_G
            for step in loop:
                for groups in step.groups():  # some at a time, as soon as they are scored
                    for group in groups:
                        A = config.estimate(group, step.batch)  # (r - mean(r)) / std(r)
                        w = config.token_weights(group, config.max_tokens)  # 1 / (G |y_i|)
                        group.weigh(A, w, step.size)
                        config.credit(group)  # with its steps, where a reward marks those
                    # - sum w min(rho A, clip(rho) A), and its gradient
                    step.passes += self.learn(loop.client, groups)
                    step.passes += observations.forward_backward(
                        loop.client, groups, config, step.size
                    )
                step.update()  # Adam
        return loop.checkpoint

    def collected(self, groups: Sequence[Group]) -> Sequence[Record]:
        """The good rollouts of a step, where `collect` asks for them."""
        return collecting.records(groups, self.config.collect) if self.config.collect else ()
