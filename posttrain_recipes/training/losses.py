"""Losses over sequence log-probabilities, as pure functions of tensors: one value a pair (B,).

`h_B` is the margin of a pair, [log p - log p_ref](chosen) - [log p - log p_ref](rejected): sums
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
