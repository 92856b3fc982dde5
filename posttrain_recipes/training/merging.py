"""Sums and arcs of LoRA updates, and the nearest update of a smaller rank. Float64, exact but for
that rank.

An update of a matrix is B A, with A (rank, in) and B (out, rank). A sum of updates is one whose
factors are theirs side by side, of the rank sum_i r_i. The best approximation of a rank keeps the
largest singular values (Eckart and Young 1936); they come from the factors' QR decompositions, so
that B A itself, (out, in), is never made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from posttrain_recipes.plugin import LoraFactorPair

Arc = Literal["linear", "slerp"]
PARALLEL = 1e-6
"""Sine of an angle below which an arc is the straight line."""
ROW = 3**-0.5
"""The norm of a row of A as a fresh adapter has it: uniform in +- 1 / sqrt(in)."""


def inner(one: LoraFactorPair, other: LoraFactorPair) -> float:
    """<B A, B' A'>, the sum of the products of their entries."""
    return float(((one.b.T @ other.b) * (one.a @ other.a.T)).sum())


def coefficients(
    how: Arc, weights: Sequence[float], updates: Sequence[LoraFactorPair | None]
) -> list[float]:
    """What each update counts in the merged one, of one matrix.

    Args:
        weights: w_i of the updates but the first.
        updates: D_0, which the others are counted from, then D_1, ..., D_n; None: 0.

    Returns:
        c_0, ..., c_n, of D = sum_i c_i D_i = D_0 + sum_i c_i (D_i - D_0) over i > 0. Linear: c_i =
        w_i. Slerp (Shoemake 1985, of vectors of any norm): c_1
        = sin((1 - w_2) a) / sin a, c_2 = sin(w_2 a) / sin a, a the angle between D_1 - D_0 and D_2
        - D_0 as vectors; where one of them is 0, or a is 0 or 180 degrees, linear.
    """
    chosen = list(weights)
    if how == "slerp":
        gram = [[inner(x, y) if x and y else 0.0 for y in updates] for x in updates]

        def product(i: int, j: int) -> float:
            return gram[i][j] - gram[i][0] - gram[0][j] + gram[0][0]

        norms = math.sqrt(max(0.0, product(1, 1)) * max(0.0, product(2, 2)))
        angle = math.acos(min(1.0, max(-1.0, product(1, 2) / norms))) if norms else 0.0
        if math.sin(angle) > PARALLEL:
            chosen = [math.sin(share * angle) / math.sin(angle) for share in weights]
    return [1.0 - math.fsum(chosen), *chosen]


def total(
    updates: Sequence[LoraFactorPair | None], counts: Sequence[float]
) -> LoraFactorPair | None:
    """sum_i c_i D_i, of the rank that its parts have together; None where nothing counts."""
    parts = [(one, c) for one, c in zip(updates, counts, strict=True) if one is not None and c]
    if not parts:
        return None
    return LoraFactorPair(
        np.concatenate([one.a for one, _ in parts]),
        np.concatenate([c * one.b for one, c in parts], axis=1),
    )


@dataclass(frozen=True)
class FittedRank:
    """An update in factors of a rank."""

    pair: LoraFactorPair
    """The rows of A are orthogonal and as long as those of a fresh adapter, so that it trains on
    where B is 0 too."""
    whole: float
    """The square of the update's norm."""
    lost: float
    """What is missing of it."""


def fit(update: LoraFactorPair, rank: int, rng: np.random.Generator) -> FittedRank:
    """The nearest update that factors of this rank can hold, by the Frobenius norm.

    Args:
        rng: draws the rows of A that an update of a smaller rank leaves free; their B is 0.
    """
    left, upper = np.linalg.qr(update.b)
    right, lower = np.linalg.qr(update.a.T)
    u, s, vt = np.linalg.svd(upper @ lower.T)
    kept = min(rank, len(s))
    a = ROW * (right @ vt[:kept].T).T
    b = (left @ u[:, :kept]) * (s[:kept] / ROW)
    if kept < rank:
        width = 1 / math.sqrt(a.shape[1])
        a = np.concatenate([a, rng.uniform(-width, width, (rank - kept, a.shape[1]))])
        b = np.concatenate([b, np.zeros((b.shape[0], rank - kept))], axis=1)
    squares = s**2
    return FittedRank(LoraFactorPair(a, b), float(squares.sum()), float(squares[kept:].sum()))
