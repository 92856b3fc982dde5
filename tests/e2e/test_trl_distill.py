"""Distillation's divergences and alignments agree with TRL's own code, where TRL is installed.

What differs by intent: TRL's GKD takes the divergence over the whole vocabulary, ours over the
teacher's K likeliest tokens and the others as one; with K the whole vocabulary but one token they
are the same. TRL draws once a batch who writes, ours once a prompt.
"""

from __future__ import annotations

import pytest
import torch

from posttrain_recipes.training.distill import divergence
from posttrain_recipes.training.distill.spans import TextPieces, align

pytest.importorskip("trl", reason="TRL is not installed")

T, V = 5, 9
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Of a student and a teacher (T, V), float64."""
    random = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(T, V, generator=random, dtype=torch.float64) for _ in range(2))
    return student, teacher


def slope(loss: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(loss, by, retain_graph=True)
    return found


@pytest.mark.parametrize("beta", BETAS)
def test_generalized_jsd(beta: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    z, teacher = logits()
    z.requires_grad_()
    labels = torch.ones(1, T, dtype=torch.long)
    theirs = GKDTrainer.generalized_jsd_loss(z[None], teacher[None], labels=labels, beta=beta)
    logq, ids = teacher.log_softmax(-1).topk(V - 1, -1)
    own = z.log_softmax(-1).gather(-1, ids)
    ours = divergence.top_k_jsd(own, logq, torch.ones_like(ids, dtype=torch.bool), beta).mean()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(slope(ours, z), slope(theirs, z))


def test_spans_of_two_tokenizers() -> None:
    """TRL puts what comes after the last boundary of both into a span of its own; ours leaves it
    out, as the text of both is one."""
    from trl.experimental.gold.gold_trainer import ULDLoss

    random = torch.Generator().manual_seed(7)
    for _ in range(50):
        length = int(torch.randint(1, 30, (), generator=random))
        both = []
        for _ in range(2):
            cuts = torch.rand(length, generator=random) < 0.4
            both.append([*(i + 1 for i in range(length - 1) if cuts[i]), length])
        offsets = [[(a, b) for a, b in zip([0, *ends], ends, strict=False)] for ends in both]
        theirs = ULDLoss._align_by_byte_offsets(*offsets)
        found = align(*(TextPieces("x" * length, list[int | None](ends)) for ends in both))
        ours = [[*span.ours] for span in found], [[*span.theirs] for span in found]
        assert ours == tuple(theirs)


@pytest.mark.parametrize("beta", BETAS)
def test_the_others_as_one_outcome(beta: float) -> None:
    """As its SDPO has it with `distillation_add_tail`, on a support of our choice."""
    from trl.experimental.sdpo.loss_utils import add_tail_bucket, compute_divergence

    z, teacher = logits()
    z.requires_grad_()
    logq, ids = teacher.log_softmax(-1).topk(3, -1)
    own = z.log_softmax(-1).gather(-1, ids)
    theirs = compute_divergence(add_tail_bucket(own), add_tail_bucket(logq), beta).sum()
    ours = divergence.top_k_jsd(own, logq, torch.ones_like(ids, dtype=torch.bool), beta).sum()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(slope(ours, z), slope(theirs, z))
