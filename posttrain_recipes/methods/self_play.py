"""Self-play: one policy takes every seat of a game, and each seat is rewarded for itself.

Of every beginning G games are played. A seat's advantage is against the same seat of the other
games of that beginning,

    A_is = r_is - mean over i of r_is,

so that a seat which is better off from the start (it moves first, say) is no reason to move: the
role-conditioned advantage of SPIRAL (Liu et al. 2025, arXiv 2506.24119), with the group in place of
its running mean. As the policy gets better so does its opponent, and no data are needed beside the
rules. What it is worth against others is for evals to tell: in self-play the mean reward stays 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    Record,
    StageContext,
    Task,
    UsageError,
)
from posttrain_recipes.training.loops import rl
from posttrain_recipes.training.rl import advantages
from posttrain_recipes.training.rl.rollout import Source
from posttrain_recipes.training.rl.scoring import Patience
from posttrain_recipes.training.rl.sources import Worth, episodes


class SelfPlay(rl.RolloutMethod):
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

    class Config(rl.RolloutMethod.Config):
        """Options of self-play."""

        advantage: advantages.Estimator = "group_mean"
        """From rewards to advantages, by seat: group_mean (r - mean), group_norm (over the spread),
        rloo (against the others), dr_grpo (constant length), reinforce_pp (over the batch)."""
        max_tokens: int = Field(default=16, ge=1)
        """Longest reply in tokens."""

    config: Config

    def source(self, stage: StageContext, patience: Patience) -> Source:
        """Groups of games of the stage's environment, one group a seat."""
        tasks = cast(Sequence[Task], stage.train)
        worth = Worth(stage, self.config, patience)
        source = episodes(tasks, stage, self.config, worth, self.config.retries)
        if source.seats < 2:
            raise UsageError(
                f"stage '{stage.name}': this environment has one seat, and self-play needs two",
                hint="use the method grpo in it, or an environment without an opponent of its own",
            )
        return source
