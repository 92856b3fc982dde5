"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290).

    loss = - log sigmoid(beta * h),   h = log p(y+|x)/p_ref(y+|x) - log p(y-|x)/p_ref(y-|x)

averaged over the pairs of a batch; `loss:` names others, each with its paper in
`training/preference/pair_losses.py`, or several with weights. The reference p_ref is the
checkpoint that the stage starts from. It stays that one after a resume: its
log-probabilities are asked of the start, never of the weights that are being trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from posttrain_recipes.options import summaries
from posttrain_recipes.training.preference import completions, pairs
from posttrain_recipes.training.preference.pair_losses import (
    DIVERGENCES,
    OF_RATIO,
    PAIR_LOSSES,
    SMOOTHED,
    ScoredPairs,
)

if TYPE_CHECKING:
    from torch import Tensor

    PairLoss = str
    Divergence = str
else:
    PairLoss = Literal[tuple(PAIR_LOSSES)]
    Divergence = Literal[tuple(DIVERGENCES)]

Weight = Annotated[float, Field(gt=0)]


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

        loss: PairLoss | dict[PairLoss, Weight] = Field(
            default="sigmoid",
            description="Of the margin h and the scores s = log p/p_ref of both replies: "
            + summaries(PAIR_LOSSES)
            + ". Several are summed, as {sigmoid: 1, nca_pair: 0.5}.",
        )
        beta: float = Field(default=0.1, gt=0)
        """Strength of the pull towards the reference; smaller moves further away from it."""
        label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
        """Share of pairs whose labels are taken to be wrong; for the losses sigmoid, robust,
        exo_pair, aot and aot_unpaired."""
        divergence: Divergence = "reverse_kl"
        """From the reference, for which the loss is derived: with forward_kl and js the score of a
        reply is f'(p/p_ref), 1 - p_ref/p or log 2p/(p + p_ref)."""

        @property
        def losses(self) -> dict[str, float]:
            """What each loss weighs."""
            return {self.loss: 1.0} if isinstance(self.loss, str) else dict(self.loss)

        @model_validator(mode="after")
        def _smoothing_has_a_loss(self) -> DPO.Config:
            names = self.losses
            if not names:
                raise ValueError("loss is a name, or a mapping of names to weights; it is empty")
            if self.label_smoothing and not SMOOTHED & names.keys():
                named = ", ".join(names)
                raise ValueError(f"label_smoothing means nothing to loss '{named}'; remove it")
            if "exo_pair" in names and not self.label_smoothing:
                raise ValueError("loss 'exo_pair' needs a label_smoothing above 0, as 0.001")
            if self.divergence != "reverse_kl" and not names.keys() - OF_RATIO:
                named = ", ".join(names)
                raise ValueError(f"divergence means nothing to loss '{named}'; remove it")
            return self

    config: Config

    def of_pairs(
        self, batch: Sequence[completions.Replies], logps: completions.Logps
    ) -> tuple[Tensor, completions.Metrics]:
        config = self.config
        score = DIVERGENCES[config.divergence](logps.ratio)
        scored = ScoredPairs(logps, score, config.beta, config.label_smoothing)
        values = sum(w * PAIR_LOSSES[name](scored) for name, w in config.losses.items())
        # The implicit rewards, beta log p/p_ref, whatever the loss takes its margin of.
        metrics = completions.pair_metrics(config.beta * logps.ratio, logps.policy)
        return values.mean(), metrics
