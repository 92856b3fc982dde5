"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290).

    loss = - log sigmoid(beta * h),   h = log p(y+|x)/p_ref(y+|x) - log p(y-|x)/p_ref(y-|x)

averaged over the pairs of a batch; `loss:` names others, each with its paper in
`training/preference/pair_losses.py`, or several with weights. The reference p_ref is the
checkpoint that the stage starts from. It stays that one after a resume: its
log-probabilities are asked of the start, never of the weights that are being trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import model_validator

from posttrain_recipes.plugin import StageContext
from posttrain_recipes.training.preference import completions, pairs
from posttrain_recipes.training.preference.pair_losses import PairLossConfig

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

    class Config(PairLossConfig, pairs.PairConfig):
        """Options of direct preference optimization."""

        @model_validator(mode="after")
        def _pairs_are_ranked(self) -> DPO.Config:
            self.check_ranked(self.batch_size)
            return self

    config: Config

    def pairs(self, stage: StageContext) -> list[completions.Replies]:
        """The stage's preferences, the tails of longer replies counted as `ld_alpha` says."""
        pairs = super().pairs(stage)
        if self.config.ld_alpha == 1:
            return pairs
        return [replace(pair, counted=tuple(self._counted(pair))) for pair in pairs]

    def _counted(self, pair: completions.Replies) -> Iterator[list[float]]:
        lengths = [sum(w != 0 for w in example.weights) for example in pair.examples]
        for example, counts in zip(
            pair.examples, map(iter, self.config.counts_by_token(lengths)), strict=True
        ):
            yield [next(counts) if w else 0.0 for w in example.weights]

    def of_pairs(
        self, batch: Sequence[completions.Replies], logps: completions.Logps
    ) -> tuple[Tensor, completions.Metrics]:
        # The implicit rewards, beta log p/p_ref, whatever the loss takes its margin of.
        rewards = self.config.beta * logps.ratio
        metrics = completions.pair_metrics(rewards, logps.policy)
        return self.config.of_pairs(logps).mean(), metrics
