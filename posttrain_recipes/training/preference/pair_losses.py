"""The losses that `dpo` may have, as functions of how much likelier than the reference finds them
the policy finds both replies of a pair: one value each (B,).

Of each reply s = f'(p/p_ref) is its score, 0 where the two agree: log p/p_ref for the reverse KL,
which DPO is derived from; other divergences from the reference have others (`DIVERGENCES`). The
margin is h = s(chosen) - s(rejected). Sums are over the reply's tokens, in nats.

To add one: a function with `@pair_loss()` here, and its test. It is then a value of `loss`; `ptl
schema -o schemas/recipe.schema.json` and `tools/method_docs.py` write it into schema and docs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from posttrain_recipes.options import PluginConfig, summaries
from posttrain_recipes.training.preference import losses
from posttrain_recipes.training.preference.completions import Logps

if TYPE_CHECKING:
    from torch import Tensor

    Formula = Callable[["ScoredPairs"], Tensor]


@dataclass(frozen=True)
class ScoredPairs:
    """B pairs as a loss sees them; column 0 of a tensor (B, 2) is the chosen reply."""

    logps: Logps
    score: Tensor
    """f'(p/p_ref), (B, 2)."""
    beta: float
    smoothing: float
    """The share of labels that are taken to be wrong."""

    @property
    def h(self) -> Tensor:
        """s(chosen) - s(rejected), (B,)."""
        return self.score[:, 0] - self.score[:, 1]

    @property
    def h_mean(self) -> Tensor:
        """The same of means over each reply's tokens, (B,)."""
        mean = self.score / self.logps.lengths
        return mean[:, 0] - mean[:, 1]


PAIR_LOSSES: dict[str, Formula] = {}
SMOOTHED: set[str] = set()
"""Losses for which `label_smoothing` means something."""


OF_RATIO: set[str] = set()
"""Losses of log p/p_ref itself, whatever the divergence."""
RANKED: set[str] = set()
"""Losses that rank the pairs of a batch, and are `sigmoid` of one pair."""


def pair_loss(
    smoothed: bool = False, of_ratio: bool = False, ranked: bool = False
) -> Callable[[Formula], Formula]:
    """Make a function a value of the option `loss` of `dpo`, by its name."""

    def register(formula: Formula) -> Formula:
        PAIR_LOSSES[formula.__name__] = formula
        if smoothed:
            SMOOTHED.add(formula.__name__)
        if of_ratio:
            OF_RATIO.add(formula.__name__)
        if ranked:
            RANKED.add(formula.__name__)
        return formula

    return register


@pair_loss(smoothed=True)
def sigmoid(pairs: ScoredPairs) -> Tensor:
    """-log sigmoid(beta h), DPO.

    Rafailov et al. 2023, arXiv 2305.18290, equation 7; with smoothing their conservative DPO.
    """
    return losses.dpo_sigmoid(pairs.h, pairs.beta, pairs.smoothing)


@pair_loss()
def ipo(pairs: ScoredPairs) -> Tensor:
    """(h - 1/(2 beta))^2 of means over tokens, which does not push h without end.

    Azar et al. 2023, arXiv 2310.12036; the means are TRL's.
    """
    return losses.dpo_ipo(pairs.h_mean, pairs.beta)


@pair_loss()
def hinge(pairs: ScoredPairs) -> Tensor:
    """max(0, 1 - beta h), which stops at h = 1/beta.

    SLiC-HF: Zhao et al. 2023, arXiv 2305.10425.
    """
    return losses.dpo_hinge(pairs.h, pairs.beta)


@pair_loss(smoothed=True)
def robust(pairs: ScoredPairs) -> Tensor:
    """DPO's loss, unbiased where a share label_smoothing of the labels is flipped.

    Chowdhury, Kini and Natarajan 2024, arXiv 2403.00409.
    """
    return losses.dpo_robust(pairs.h, pairs.beta, pairs.smoothing)


@pair_loss(smoothed=True)
def exo_pair(pairs: ScoredPairs) -> Tensor:
    """KL of sigmoid(beta h) to 1 - label_smoothing, mode-seeking where DPO covers.

    Ji et al. 2024, arXiv 2402.00856, equation 16: with q = sigmoid(beta h) and e the smoothing,
    q log(q/(1 - e)) + (1 - q) log((1 - q)/e). It needs e > 0.
    """
    from torch.nn.functional import logsigmoid

    won, lost = logsigmoid(pairs.beta * pairs.h), logsigmoid(-pairs.beta * pairs.h)
    e = pairs.smoothing
    return won.exp() * (won - math.log1p(-e)) + lost.exp() * (lost - math.log(e))


@pair_loss(of_ratio=True)
def nca_pair(pairs: ScoredPairs) -> Tensor:
    """Noise contrastive alignment: the chosen reply's likelihood must not fall.

    Chen et al. 2024, arXiv 2402.05369: -log sigmoid(r+) - (log sigmoid(-r+) + log sigmoid(-r-))/2
    of the rewards r = beta log p/p_ref.
    """
    from torch.nn.functional import logsigmoid

    good, bad = (pairs.beta * pairs.logps.ratio).unbind(1)
    return -logsigmoid(good) - 0.5 * logsigmoid(-good) - 0.5 * logsigmoid(-bad)


@pair_loss(of_ratio=True)
def bco_pair(pairs: ScoredPairs) -> Tensor:
    """A binary classifier's loss: -log sigmoid(r+) - log sigmoid(-r-), r = beta log p/p_ref.

    Jung et al. 2024, arXiv 2404.04656, without its shift of the rewards.
    """
    from torch.nn.functional import logsigmoid

    good, bad = (pairs.beta * pairs.logps.ratio).unbind(1)
    return -logsigmoid(good) - logsigmoid(-bad)


@pair_loss(of_ratio=True)
def sppo_hard(pairs: ScoredPairs) -> Tensor:
    """(l+ - 1/(2 beta))^2 + (l- + 1/(2 beta))^2 of l = log p/p_ref, as if the winner always won.

    Wu et al. 2024, arXiv 2405.00675, equation 4.7 with P of the winner 1 and of the loser 0.
    """
    good, bad = pairs.logps.ratio.unbind(1)
    return (good - 0.5 / pairs.beta) ** 2 + (bad + 0.5 / pairs.beta) ** 2


@pair_loss(smoothed=True, of_ratio=True, ranked=True)
def aot(pairs: ScoredPairs) -> Tensor:
    """DPO's loss of sorted margins: those of the policy dominate the reference's as a distribution.

    Melnyk et al. 2024, arXiv 2406.05882: within a batch log p(chosen)/p(rejected) is compared with
    the reference's of the same rank. A batch of one is DPO.
    """
    policy, reference = pairs.logps.policy, pairs.logps.reference
    ours = (policy[:, 0] - policy[:, 1]).sort().values
    theirs = (reference[:, 0] - reference[:, 1]).sort().values
    return losses.dpo_sigmoid(ours - theirs, pairs.beta, pairs.smoothing)


@pair_loss(smoothed=True, of_ratio=True, ranked=True)
def aot_unpaired(pairs: ScoredPairs) -> Tensor:
    """DPO's loss of sorted log p/p_ref, chosen against rejected of the same rank in the batch.

    Melnyk et al. 2024, arXiv 2406.05882.
    """
    good, bad = (column.sort().values for column in pairs.logps.ratio.unbind(1))
    return losses.dpo_sigmoid(good - bad, pairs.beta, pairs.smoothing)


@pair_loss(of_ratio=True)
def apo_zero(pairs: ScoredPairs) -> Tensor:
    """sigmoid(-r+) + sigmoid(r-): chosen up, rejected down; for chosen replies better than its own.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7, with r = beta log p/p_ref.
    """
    good, bad = (pairs.beta * pairs.logps.ratio).unbind(1)
    return (-good).sigmoid() + bad.sigmoid()


@pair_loss(of_ratio=True)
def apo_down(pairs: ScoredPairs) -> Tensor:
    """sigmoid(r+) + sigmoid(-(r+ - r-)): both down, the rejected more; for chosen ones worse.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 8, with r = beta log p/p_ref.
    """
    good, bad = (pairs.beta * pairs.logps.ratio).unbind(1)
    return good.sigmoid() + (bad - good).sigmoid()


@pair_loss()
def discopop(pairs: ScoredPairs) -> Tensor:
    """A blend of DPO's loss and exp(-beta h), found by a language model.

    Lu et al. 2024, arXiv 2406.08414, equation 5, with its temperature 0.05.
    """
    from torch.nn.functional import logsigmoid

    margin = pairs.beta * pairs.h
    # In one exponential: e^-margin alone overflows where its share is 0.
    exponential = (logsigmoid(margin / 0.05) - margin).exp()
    return (-margin / 0.05).sigmoid() * -logsigmoid(margin) + exponential


@pair_loss()
def sigmoid_norm(pairs: ScoredPairs) -> Tensor:
    """-log sigmoid(beta h) of means over tokens: length-normalized DPO.

    Lambert et al. 2024, arXiv 2411.15124, section 5.1.2; beta is larger than DPO's, 2 to 10.
    """
    return losses.dpo_sigmoid(pairs.h_mean, pairs.beta)


@pair_loss(of_ratio=True)
def sft(pairs: ScoredPairs) -> Tensor:
    """-log p of the chosen reply, a mean over the batch's tokens, beside another loss.

    RPO: Pang et al. 2024, arXiv 2404.19733, equation 1, whose mean over each reply is TRL's over
    the batch here.
    """
    chosen, lengths = pairs.logps.policy[:, 0], pairs.logps.lengths[:, 0]
    return -chosen * len(chosen) / lengths.sum()


# --- divergences from the reference --------------------------------------------------------------
#
# Wang et al. 2023, arXiv 2309.16240: f'(t) of t = p/p_ref, where f'(1) = 0, in place of log t.


MOST = 30.0
"""Largest exponent of e: of log p_ref/p, or of a multiple of log p/p_ref."""


def _forward_kl(ratio: Tensor, alpha: float) -> Tensor:
    return 1 - (-ratio).clamp(max=MOST).exp()


def _js(ratio: Tensor, alpha: float) -> Tensor:
    from torch.nn.functional import logsigmoid

    return math.log(2) + logsigmoid(ratio)


def _reverse_kl(ratio: Tensor, alpha: float) -> Tensor:
    return ratio


def _alpha(ratio: Tensor, alpha: float) -> Tensor:
    return ((alpha - 1) * ratio).clamp(max=MOST).expm1() / (alpha - 1)


ALPHA = 0.5
"""Of the divergence `alpha`, by default."""
DIVERGENCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reverse_kl": _reverse_kl,
    "forward_kl": _forward_kl,
    "js": _js,
    "alpha": _alpha,
}
"""Scores of log p/p_ref; only that of `alpha` reads the second argument."""

# --- options -------------------------------------------------------------------------------------


if TYPE_CHECKING:
    PairLoss = str
    Divergence = str
else:
    PairLoss = Literal[tuple(PAIR_LOSSES)]
    Divergence = Literal[tuple(DIVERGENCES)]

Weight = Annotated[float, Field(gt=0)]


class PairLossConfig(PluginConfig):
    """Options of a loss of pairs that is held by a reference."""

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
    """From the reference, for which the loss is derived: the score of a reply is f'(t) of t =
    p/p_ref. forward_kl: 1 - 1/t; js: log 2t/(t + 1); alpha: (t^(a - 1) - 1)/(a - 1), a the
    divergence_alpha."""
    divergence_alpha: float | None = Field(default=None, ge=-10, le=10)
    """For divergence: alpha, a; 0.5 by default. Towards 0 it is the forward KL, towards 1 the
    reverse."""
    ld_alpha: float = Field(default=1.0, ge=0, le=1)
    """What log p of tokens counts that stand beyond the length of the pair's shorter reply, the
    policy's and the reference's: below 1 a reply gains less by being long. LD-DPO, Liu et al.
    2024, arXiv 2409.06411."""

    @property
    def losses(self) -> dict[str, float]:
        """What each loss weighs."""
        return {self.loss: 1.0} if isinstance(self.loss, str) else dict(self.loss)

    @model_validator(mode="after")
    def _smoothing_has_a_loss(self) -> PairLossConfig:
        names = self.losses
        if not names:
            raise ValueError("loss is a name, or a mapping of names to weights; it is empty")
        if self.label_smoothing and not SMOOTHED & names.keys():
            named = ", ".join(names)
            raise ValueError(f"label_smoothing means nothing to loss '{named}'; remove it")
        if "robust" in names and not self.label_smoothing:
            raise ValueError(
                "loss 'robust' is sigmoid without a label_smoothing; set the share of labels that "
                "are wrong, as 0.1"
            )
        if "exo_pair" in names and not self.label_smoothing:
            raise ValueError("loss 'exo_pair' needs a label_smoothing above 0, as 0.001")
        if self.divergence != "reverse_kl" and not names.keys() - OF_RATIO:
            named = ", ".join(names)
            raise ValueError(f"divergence means nothing to loss '{named}'; remove it")
        if self.divergence_alpha is not None and self.divergence != "alpha":
            raise ValueError("divergence_alpha is for divergence: alpha; remove it, or set that")
        if self.divergence_alpha == 1:
            raise ValueError("divergence_alpha 1 is divergence: reverse_kl; set that")
        if "sft" in names and len(names) == 1:
            raise ValueError("loss 'sft' compares nothing; add one, as {sigmoid: 1, sft: 0.2}")
        if "sft" in names and self.ld_alpha != 1:
            raise ValueError("loss 'sft' learns whole replies; leave ld_alpha out, or that loss")
        return self

    def check_ranked(self, pairs: int) -> None:
        """Raise ValueError for a loss that ranks the pairs of a step of at most so many."""
        if pairs == 1 and (ranked := RANKED & self.losses.keys()):
            raise ValueError(
                f"loss '{min(ranked)}' ranks the pairs of a step, and is sigmoid of one pair; "
                "raise batch_size"
            )

    def counts_by_token(self, lengths: Sequence[int]) -> list[list[float]]:
        """What log p of each token of a pair's replies counts, from how many tokens they have."""
        shared = min(lengths)
        return [[1.0] * shared + [self.ld_alpha] * (length - shared) for length in lengths]

    def of_pairs(self, logps: Logps) -> Tensor:
        """The loss of each pair (B,); column 0 is the chosen reply."""
        alpha = ALPHA if self.divergence_alpha is None else self.divergence_alpha
        score = DIVERGENCES[self.divergence](logps.ratio, alpha)
        scored = ScoredPairs(logps, score, self.beta, self.label_smoothing)
        weighted = [w * PAIR_LOSSES[name](scored) for name, w in self.losses.items()]
        return sum(weighted[1:], weighted[0])
