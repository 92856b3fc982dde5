"""Methods that learn from pairs by a loss over both replies: dpo, orpo, simpo and cpo."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    Checkpoint,
    CountTokens,
    Family,
    Method,
    Preference,
    Record,
    StageContext,
    Workload,
)
from posttrain_recipes.training.loops import supervised, token_counts
from posttrain_recipes.training.preference import completions

if TYPE_CHECKING:
    from torch import Tensor


class PairConfig(supervised.GradientConfig):
    """Options of methods that learn from pairs."""

    batch_size: int = Field(default=16, ge=1)
    """Pairs in one optimizer step."""


class PairMethod(Method):
    """A method that is its loss: over log p of the chosen and of the rejected reply."""

    takes: ClassVar[tuple[type[Record], ...]] = (Preference,)
    needs: ClassVar[tuple[str, ...]] = ("custom_loss",)
    family: ClassVar[Family] = Family.PREFERENCE
    reference: ClassVar[bool] = False
    """Whether the loss reads log p under the weights that the stage starts from."""

    config: PairConfig

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Both replies, with a pass before the one that has a gradient; each also once under
        the reference where there is one."""
        pairs = [cast(Preference, record) for record in sample]
        lengths = [tokens((*p.prompt, *reply)) for p in pairs for reply in (p.chosen, p.rejected)]
        return token_counts.replies(self.config, lengths, count, reference=self.reference)

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the stage's preference pairs."""
        pairs = self.pairs(stage)
        return completions.train(stage, self.config, pairs, self.of_pairs, reference=self.reference)

    def pairs(self, stage: StageContext) -> list[completions.Replies]:
        """The stage's preferences as tokens, (chosen, rejected)."""
        return completions.pairs(stage, self.config)

    @abstractmethod
    def of_pairs(
        self, batch: Sequence[completions.Replies], logps: completions.Logps
    ) -> tuple[Tensor, completions.Metrics]:
        """The loss of a batch, a scalar, and what to log; column 0 is the chosen reply."""
