"""Contrastive preference optimization (Xu et al. 2024, arXiv 2401.08417).

    loss = - log sigmoid(beta * (log p(y+|x) - log p(y-|x))) - nll_weight * log p(y+|x) / |y+|

averaged over the pairs of a batch: DPO with a uniform reference (equation 3), which costs no
second model, and imitation of the chosen reply (equation 4), which keeps p near the data in
the reference's stead. The second term is a mean over tokens, as in the authors' code and in TRL,
where it is one over the tokens of the batch; here it is one over a reply's and then over pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from posttrain_recipes.training.preference import completions, losses, pairs

if TYPE_CHECKING:
    from torch import Tensor


class CPO(pairs.PairMethod):
    """Contrastive preference optimization: dpo without a reference, imitating the chosen reply.

    When: pairs of which both replies are good and one is better, as translations are, and memory
    or time for a reference is short. When not: chosen replies that should not be imitated (dpo),
    or replies of very different lengths, since sums of log p favour the short (simpo).
    """

    name = "cpo"
    loss = "-log sigmoid(beta * (log p(chosen) - log p(rejected))) - nll_weight * log p(chosen)/len"
    paper = "Xu et al. 2024, Contrastive Preference Optimization, arXiv 2401.08417"

    class Config(pairs.PairConfig):
        """Options of contrastive preference optimization."""

        beta: float = Field(default=0.1, gt=0)
        """Scale of the margin between the two replies."""
        nll_weight: float = Field(default=1.0, ge=0)
        """Weight of imitating the chosen reply (nats per token); 0 only contrasts."""

    config: Config

    def of_pairs(
        self, batch: Sequence[completions.Replies], logps: completions.Logps
    ) -> tuple[Tensor, completions.Metrics]:
        config = self.config
        nll = -logps.mean[:, 0]
        values = losses.cpo(logps.policy[:, 0], logps.policy[:, 1], config.beta)
        return (values + config.nll_weight * nll).mean(), {
            **completions.pair_metrics(config.beta * logps.policy, logps.policy),
            "nll_loss": nll.detach().mean().item(),
        }
