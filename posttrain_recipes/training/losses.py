"""Losses over sequence log-probabilities, as pure functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def dpo_sigmoid(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """The loss of direct preference optimization, one value a pair (B,).

    -log sigmoid(beta * (chosen - rejected)), equation 7 of Rafailov et al. 2023, arXiv 2305.18290.

    Args:
        chosen_B: log p(chosen) - log p_ref(chosen), summed over the reply's tokens, in nats.
        rejected_B: the same for the rejected reply.
        beta: strength of the pull towards the reference.
    """
    import torch

    return -torch.nn.functional.logsigmoid(beta * (chosen_B - rejected_B))
