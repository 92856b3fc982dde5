"""Odds ratio preference optimization (Hong, Lee and Thorne 2024, arXiv 2403.07691).

    loss = - log P(y+|x) - beta * log sigmoid(log odds(y+|x) / odds(y-|x)),   odds = P / (1 - P)

averaged over the pairs of a batch (equations 6 and 7), with log P the mean of log p over the
reply's tokens and beta the paper's lambda. The first term imitates the chosen reply, so that
one stage does what sft and dpo do in two, without a reference.

TRL's first term is a mean over the tokens of a batch, prompts included; here, as in the paper, it
is the mean over a reply's tokens and then over pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    Checkpoint,
    CountTokens,
    Method,
    Preference,
    Record,
    StageContext,
    Workload,
)
from posttrain_recipes.training import gradient, loads, losses, replies

if TYPE_CHECKING:
    from torch import Tensor


class ORPO(Method):
    """Odds ratio preference optimization: imitate the chosen reply, and avoid the rejected one.

    When: from a base model, in one stage instead of sft and dpo, where the chosen replies are good
    enough to imitate. When not: the model answers well already and has only to prefer (dpo,
    simpo), or the chosen replies are merely the better of two bad ones.
    """

    name = "orpo"
    takes: ClassVar[tuple[type[Record], ...]] = (Preference,)
    needs = ("custom_loss",)
    loss = (
        "-log p(chosen)/len - beta * log sigmoid(log odds(chosen) - log odds(rejected)), "
        "log odds of log p/len"
    )
    paper = "Hong et al. 2024, ORPO: Monolithic Preference Optimization, arXiv 2403.07691"

    class Config(gradient.GradientConfig):
        """Options of odds ratio preference optimization."""

        batch_size: int = Field(default=16, ge=1)
        """Pairs in one optimizer step."""
        beta: float = Field(default=0.1, ge=0)
        """Weight of the odds ratio beside imitation, the paper's lambda; 0 is sft on the chosen."""

    config: Config

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Both replies, with a pass before the one that has a gradient."""
        pairs = [cast(Preference, record) for record in sample]
        lengths = [tokens((*p.prompt, *reply)) for p in pairs for reply in (p.chosen, p.rejected)]
        return loads.replies(self.config, lengths, count)

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the stage's preference pairs."""
        return replies.train(stage, self.config, replies.pairs(stage, self.config), self._loss)

    def _loss(
        self, batch: Sequence[replies.Replies], logps: replies.Logps
    ) -> tuple[Tensor, replies.Metrics]:
        from torch.nn.functional import logsigmoid

        chosen, rejected = logps.mean.unbind(1)
        values = losses.orpo(chosen, rejected, self.config.beta)
        log_odds = losses.log_odds_ratio(chosen, rejected).detach()
        return values.mean(), {
            **replies.pair_metrics(self.config.beta * logps.mean, logps.mean),
            "nll_loss": -chosen.detach().mean().item(),
            "log_odds_ratio": logsigmoid(log_odds).mean().item(),
            "log_odds_chosen": log_odds.mean().item(),
        }
