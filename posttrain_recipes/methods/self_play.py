"""Self-play: one policy takes every seat of a game, and each seat is rewarded for itself.

Of every beginning G games are played. A seat's advantage is against the same seat of the other
games of that beginning,

    A_is = r_is - mean over i of r_is,

so that a seat which is better off from the start (it moves first, say) is no reason to move: the
role-conditioned advantage of SPIRAL (Liu et al. 2025, arXiv 2506.24119), with the group in place of
its running mean. As the policy gets better so does its opponent, and no data are needed beside the
rules. How good it is against others is for evals to tell: in self-play the mean reward stays 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from pydantic import Field

from posttrain_recipes.options import summaries
from posttrain_recipes.plugin import (
    Checkpoint,
    Record,
    StageContext,
    Task,
    UsageError,
)
from posttrain_recipes.training.loops.rollout_method import PolicyGradientMethod
from posttrain_recipes.training.rl import advantages, observations
from posttrain_recipes.training.rl.rollout import Source
from posttrain_recipes.training.rl.sources import episodes
from posttrain_recipes.waiting import CancellableWaiter


class SelfPlay(PolicyGradientMethod):
    """Self-play: one policy takes both seats of a game and learns from who wins.

    When: there is a game, a debate or a negotiation with opposing rewards and no good opponent to
    learn from. When not: replies can be judged on their own (grpo); there is one seat (grpo in
    the environment).
    """

    name = "self_play"
    takes: ClassVar[tuple[type[Record], ...]] = (Task,)
    takes_reward: ClassVar[bool] = False
    loss = "-mean(min(rho A, clip(rho) A)) over all seats, log rho = log p - log q, A by seat"
    paper = "Liu et al. 2025, SPIRAL: self-play on zero-sum games, arXiv 2506.24119"

    class Config(PolicyGradientMethod.Config):
        """Options of self-play."""

        advantage: advantages.Estimator = Field(
            default="group_mean",
            description="From the rewards of a seat to advantages: "
            f"{summaries(advantages.ESTIMATORS)}.",
        )
        max_tokens: int = Field(default=16, ge=1)
        """Longest reply in tokens."""

    config: Config

    def train(self, stage: StageContext) -> Checkpoint:
        """Optimizer steps on games that the policy has just played against itself."""
        config = self.config
        with self.loop(stage) as loop:  # G games, a group of each seat's parts and rewards
            for step in loop:
                for groups in step.groups():  # some at a time, as soon as they are played
                    for group in groups:
                        A = config.estimate(group, step.batch)  # r_is - mean_i(r_is)
                        w = config.token_weights(group, config.max_tokens)
                        group.weigh(A, w, step.size)
                    # - sum w min(rho A, clip(rho) A), and its gradient
                    step.passes += self.learn(loop.client, groups)
                    step.passes += observations.forward_backward(
                        loop.client, groups, config, step.size
                    )
                step.update()  # Adam
        return loop.checkpoint

    def source(self, stage: StageContext, waiter: CancellableWaiter) -> Source:
        """Groups of games of the stage's environment, one group a seat."""
        tasks = cast(Sequence[Task], stage.train)
        config = self.config
        source = episodes(tasks, stage, config, waiter, config.retries, config.wants_greedy)
        if source.seats < 2:
            raise UsageError(
                f"stage '{stage.name}': this environment has one seat, and self-play needs two",
                hint="use the method grpo in it, or an environment without an opponent of its own",
                code="wrong-data",
            )
        return source
