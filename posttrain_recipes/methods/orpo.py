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
from typing import TYPE_CHECKING

from pydantic import Field

from posttrain_recipes.training.preference import completions, losses, pairs

if TYPE_CHECKING:
    from torch import Tensor


class ORPO(pairs.PairMethod):
    """Odds ratio preference optimization: imitate the chosen reply, and avoid the rejected one.

    When: from a base model, in one stage instead of sft and dpo, where the chosen replies are good
    enough to imitate. When not: the model answers well already and has only to prefer (dpo,
    simpo), or the chosen replies are merely the better of two bad ones.
    """

    name = "orpo"
    loss = (
        "-log p(chosen)/len - beta * log sigmoid(log odds(chosen) - log odds(rejected)), "
        "log odds of log p/len"
    )
    paper = "Hong et al. 2024, ORPO: Monolithic Preference Optimization, arXiv 2403.07691"

    class Config(pairs.PairConfig):
        """Options of odds ratio preference optimization."""

        beta: float = Field(default=0.1, ge=0)
        """Weight of the odds ratio beside imitation, the paper's lambda; 0 is sft on the chosen."""

    config: Config

    def of_pairs(
        self, batch: Sequence[completions.Replies], logps: completions.Logps
    ) -> tuple[Tensor, completions.Metrics]:
        from torch.nn.functional import logsigmoid

        chosen, rejected = logps.mean.unbind(1)
        values = losses.orpo(chosen, rejected, self.config.beta)
        log_odds = losses.log_odds_ratio(chosen, rejected).detach()
        return values.mean(), {
            **completions.pair_metrics(self.config.beta * logps.mean, logps.mean),
            "nll_loss": -chosen.detach().mean().item(),
            "log_odds_ratio": logsigmoid(log_odds).mean().item(),
            "log_odds_chosen": log_odds.mean().item(),
        }
