"""Means with 95% confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from posttrain_recipes.records import Estimate

Z95 = 1.959963984540054
"""The 97.5% quantile of the standard normal distribution."""


def proportion(successes: float, count: int) -> Estimate:
    """A share with Wilson's interval (Wilson 1927), which stays within [0, 1] and holds for
    small counts. `successes` may be fractional: a tie counts as half.
    """
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    share = successes / count
    z2 = Z95 * Z95 / count
    centre = (share + z2 / 2) / (1 + z2)
    half = Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), count)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """sum(numerators) / sum(denominators) over records, by the delta method.

    A mean over tokens whose uncertainty is over records: tokens of one record are not independent.
    """
    count = len(numerators)
    total = sum(denominators)
    if count == 0 or total == 0:
        return Estimate(math.nan, math.nan, math.nan, count)
    value = sum(numerators) / total
    if count == 1:
        return Estimate(value, math.nan, math.nan, 1)
    residuals = (n - value * d for n, d in zip(numerators, denominators, strict=True))
    variance = sum(r * r for r in residuals) * count / (count - 1) / total**2
    half = Z95 * math.sqrt(variance)
    return Estimate(value, value - half, value + half, count)


def mean(values: Sequence[float]) -> Estimate:
    """The mean with its normal interval."""
    return ratio(values, [1.0] * len(values))
