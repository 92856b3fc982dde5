"""The generalized Jensen-Shannon divergence over a teacher's likeliest tokens and all the others.

With q the teacher, p the student and m = beta q + (1 - beta) p,

    JSD = beta KL(q || m) + (1 - beta) KL(p || m)                  (arXiv 2306.13649, equation 1)

is taken over the K + 1 outcomes "token k of the teacher's top K" and "any other token". To lump
outcomes together never makes a divergence larger, so it is a lower bound on the one over the whole
vocabulary, and nearly that where the K have nearly all of the teacher's probability. Renormalized
over the K, it would not see what the student puts on other tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from posttrain_recipes.training.distill.teachers import Likeliest

if TYPE_CHECKING:
    import tinker
    from torch import Tensor

    ClientLoss = Callable[[list[tinker.Datum], list[Tensor]], tuple[Tensor, dict[str, float]]]

REST = 1e-6
"""The least probability that all other tokens have together: log-probabilities come in float32, and
what is left of 1 beside them is not known better."""


def terms(logp: Tensor, logq: Tensor, beta: float) -> Tensor:
    """What each outcome adds to the divergence, of log-probabilities of any one shape.

    At `beta` 0 it is KL(q || p), the forward KL, and at 1 KL(p || q), the reverse, as the limits of
    JSD / (beta (1 - beta)) are; JSD itself is 0 there.
    """
    import torch

    if beta == 0:
        return logq.exp() * (logq - logp)
    if beta == 1:
        return logp.exp() * (logp - logq)
    m = torch.logaddexp(logq + math.log(beta), logp + math.log1p(-beta))
    return beta * logq.exp() * (logq - m) + (1 - beta) * logp.exp() * (logp - m)


def with_rest(logs: Tensor, known: Tensor) -> Tensor:
    """Log-probabilities (T, K + 1) of K tokens and of all others, from those of the K (T, K).

    Those that are not `known` (T, K; bool) belong to the others.
    """
    import torch

    mass = logs.masked_fill(~known, -math.inf).logsumexp(-1, keepdim=True)
    rest = torch.log(-torch.expm1(mass.clamp(max=math.log1p(-REST))))
    return torch.cat([logs, rest], -1)


def top_k_jsd(logp: Tensor, logq: Tensor, known: Tensor, beta: float) -> Tensor:
    """The divergence at each position (T,), in nats; the gradient flows through `logp`.

    Args:
        logp: the student's log-probabilities of the teacher's K likeliest tokens (T, K).
        logq: the teacher's.
        known: which of the K the teacher named (T, K; bool); the wire fills in the others.
    """
    import torch

    logp, logq = (x.double().where(known, 0.0) for x in (logp, logq))
    every = torch.cat([known, torch.ones_like(known[:, :1])], -1)
    each = terms(with_rest(logp, known), with_rest(logq, known), beta)
    return each.where(every, 0.0).sum(-1)


def of_replies(read: Sequence[Likeliest], beta: float, scale: float) -> ClientLoss:
    """`scale` times the sum of the divergence over the positions of replies, as a loss on our side.

    Args:
        read: what the teacher told of each reply; its last positions are learned, as many as that.
    """

    def loss(data: list[tinker.Datum], logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        import torch

        total = torch.zeros((), dtype=torch.float64)
        for q, found in zip(read, logprobs, strict=True):
            T, K = q.ids.shape
            p = found.reshape(-1, K)[-T:]
            logq, known = torch.from_numpy(q.logprobs.copy()), torch.from_numpy(q.known)
            total = total + top_k_jsd(p, logq, known, beta).sum()
        return scale * total, {}

    return loss
