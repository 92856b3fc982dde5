"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290).

    loss = - log sigmoid(beta * h),   h = log p(y+|x)/p_ref(y+|x) - log p(y-|x)/p_ref(y-|x)

averaged over the pairs of a batch; `loss:` names others on the same margin h. The reference p_ref
is the checkpoint that the stage starts from. It stays that one after a resume: its
log-probabilities are asked of the start, never of the weights that are being trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from posttrain_recipes.training.preference import completions, losses, pairs

if TYPE_CHECKING:
    from torch import Tensor


class DPO(pairs.PairMethod):
    """Direct preference optimization: prefer the chosen reply over the rejected one.

    When: there are pairs of which people, or a judge, preferred one; after sft, whose checkpoint
    is the reference. When not: replies can be checked by a rule (reward them instead), or there
    are good examples but no bad ones (sft).
    """

    name = "dpo"
    needs = ("custom_loss", "prompt_logprobs")
    reference = True
    loss = "-log sigmoid(beta * (log p/p_ref(chosen) - log p/p_ref(rejected)))"
    paper = "Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290"

    class Config(pairs.PairConfig):
        """Options of direct preference optimization."""

        loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
        """On the margin h: sigmoid is DPO; ipo does not push h without end (its h is of means over
        tokens, so its margins are small); hinge stops at 1/beta; robust expects flipped labels."""
        beta: float = Field(default=0.1, gt=0)
        """Strength of the pull towards the reference; smaller moves further away from it."""
        label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
        """Share of pairs whose labels are taken to be wrong; for the losses sigmoid and robust."""

        @model_validator(mode="after")
        def _smoothing_has_a_loss(self) -> DPO.Config:
            if self.label_smoothing and self.loss in ("ipo", "hinge"):
                raise ValueError(f"label_smoothing means nothing to loss '{self.loss}'; remove it")
            return self

    config: Config

    def of_pairs(
        self, batch: Sequence[completions.Replies], logps: completions.Logps
    ) -> tuple[Tensor, completions.Metrics]:
        config = self.config
        ratio = logps.ratio / logps.lengths if config.loss == "ipo" else logps.ratio
        h = ratio[:, 0] - ratio[:, 1]
        if config.loss == "ipo":
            values = losses.dpo_ipo(h, config.beta)
        elif config.loss == "hinge":
            values = losses.dpo_hinge(h, config.beta)
        elif config.loss == "robust":
            values = losses.dpo_robust(h, config.beta, config.label_smoothing)
        else:
            values = losses.dpo_sigmoid(h, config.beta, config.label_smoothing)
        # The implicit rewards, beta log p/p_ref, whatever the loss takes its margin of.
        metrics = completions.pair_metrics(config.beta * logps.ratio, logps.policy)
        return values.mean(), metrics
