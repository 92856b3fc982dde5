"""Losses over log-probabilities of replies, as pure functions of tensors: one value each (B,).

`h_B` is the margin of a pair, (log p - log p_ref)(chosen) - (log p - log p_ref)(rejected): sums
over the reply's tokens in nats, except where a loss says that it takes means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def dpo_sigmoid(h_B: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), with e the label smoothing.

    Equation 7 of Rafailov et al. 2023, arXiv 2305.18290; with smoothing, their conservative DPO,
    which takes a share e of the labels to be wrong and stops where the odds say so.
    """
    from torch.nn.functional import logsigmoid

    kept, flipped = logsigmoid(beta * h_B), logsigmoid(-beta * h_B)
    return -(1 - label_smoothing) * kept - label_smoothing * flipped


def dpo_robust(h_B: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """((1 - e) l(h) - e l(-h)) / (1 - 2e) with l(h) = -log sigmoid(beta h).

    Unbiased where a share e < 1/2 of the labels is flipped at random: the robust DPO of Chowdhury,
    Kini and Natarajan 2024, arXiv 2403.00409.
    """
    from torch.nn.functional import logsigmoid

    kept, flipped = -logsigmoid(beta * h_B), -logsigmoid(-beta * h_B)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def dpo_hinge(h_B: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta h): the loss of SLiC-HF on the margin, Zhao et al. 2023, arXiv 2305.10425."""
    return (1 - beta * h_B).clamp(min=0)


def dpo_ipo(h_B: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2, with h of means over the reply's tokens.

    IPO of Azar et al. 2023, arXiv 2310.12036, whose tau is beta here; the means are TRL's.
    """
    return (h_B - 1 / (2 * beta)) ** 2


def log_odds_ratio(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """log of odds(chosen) over odds(rejected), odds P / (1 - P), from log P of each.

    Equation 4 of Hong et al. 2024, arXiv 2403.07691, with log P a mean over tokens.
    """
    return chosen_B - rejected_B - (_log1mexp(chosen_B) - _log1mexp(rejected_B))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, without cancellation: Maechler 2012, equation 7.

    A likelihood of 1, which rounding makes of those near it, counts as the nearest below.
    """
    import torch

    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -0.6931471805599453
    # Each branch sees harmless numbers where the other is taken: NaN times 0 is NaN.
    return torch.where(
        near,
        torch.log(-torch.expm1(x.where(near, -0.5))),
        torch.log1p(-torch.exp(x.where(~near, -1.0))),
    )


def orpo(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """-log P(chosen) - beta log sigmoid(log odds ratio), with log P a mean over tokens.

    Equations 6 and 7 of Hong et al. 2024, arXiv 2403.07691; beta is their lambda.
    """
    from torch.nn.functional import logsigmoid

    return -chosen_B - beta * logsigmoid(log_odds_ratio(chosen_B, rejected_B))


def simpo(chosen_B: Tensor, rejected_B: Tensor, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected) - gamma), of means of log p over tokens.

    Equation 6 of Meng et al. 2024, arXiv 2405.14734.
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (chosen_B - rejected_B) - gamma)


def cpo(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)), of sums of log p: DPO with a uniform reference.

    Equation 3 of Xu et al. 2024, arXiv 2401.08417, without its second term.
    """
    return dpo_sigmoid(chosen_B - rejected_B, beta)


def kto(ratio_B: Tensor, good_B: Tensor, z: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta (r - z)) where good, 1 - sigmoid(beta (z - r)) where not.

    `ratio_B` is log p/p_ref of a reply, `good_B` (bool) its label, `z` () the baseline. Equation 8
    of Ethayarajh et al. 2024, arXiv 2402.01306, its weights left to the caller.
    """
    import torch

    signed = torch.where(good_B, ratio_B - z, z - ratio_B)
    return torch.sigmoid(-beta * signed)


def bradley_terry(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected), of rewards: Bradley and Terry 1952.

    Equation 1 of Stiennon et al. 2020, arXiv 2009.01325.
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(chosen_B - rejected_B)
