"""Simple preference optimization (Meng, Xia and Chen 2024, arXiv 2405.14734).

    loss = - log sigmoid(beta/|y+| * log p(y+|x) - beta/|y-| * log p(y-|x) - gamma)

averaged over the pairs of a batch (equation 6). The reward is what generation maximizes, the mean
log-probability of a token, so no reference is needed and a long reply gains nothing by its length;
it has to win by the margin gamma. `nll_weight` adds imitation of the chosen reply: CPO-SimPO (Xu et
al. 2024, arXiv 2401.08417, with the loss above).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from posttrain_recipes.training.preference import completions, losses, pairs

if TYPE_CHECKING:
    from torch import Tensor


class SimPO(pairs.PairMethod):
    """Simple preference optimization: make the chosen reply likelier per token, by a margin.

    When: as dpo, where long replies should not win by their length or the reference's passes cost
    too much. When not: drifting far from the start would hurt, since nothing holds it there
    (dpo, or some nll_weight).
    """

    name = "simpo"
    loss = "-log sigmoid(beta * (log p(chosen)/len - log p(rejected)/len) - gamma)"
    paper = "Meng et al. 2024, SimPO: Simple Preference Optimization, arXiv 2405.14734"

    class Config(pairs.PairConfig):
        """Options of simple preference optimization."""

        beta: float = Field(default=2.0, gt=0)
        """Scale of the reward; the paper takes 2 to 10."""
        gamma: float = Field(default=0.5, ge=0)
        """The margin to win by, in units of the reward; the paper takes 0.3 to 1.6."""
        nll_weight: float = Field(default=0.0, ge=0)
        """Weight of imitating the chosen reply (nats per token); 1 is CPO-SimPO."""

    config: Config

    def of_pairs(
        self, batch: Sequence[completions.Replies], logps: completions.Logps
    ) -> tuple[Tensor, completions.Metrics]:
        config = self.config
        chosen, rejected = logps.mean.unbind(1)
        values = losses.simpo(chosen, rejected, config.beta, config.gamma)
        return (values - config.nll_weight * chosen).mean(), {
            **completions.pair_metrics(config.beta * logps.mean, logps.mean),
            "nll_loss": -chosen.detach().mean().item(),
        }
