"""Means and shares with 95% confidence intervals.

Means have Student's t interval (Student 1908). It holds for normal values at any count, where the
normal one covers 70% at 2 and 88% at 5. Of skewed values it covers less (92% of exponential and 87%
of log-normal ones at 20); so does the BCa bootstrap, which also covers less at small counts (87% of
5 normal ones), so that none is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from posttrain_recipes.records import Estimate

Z95 = 1.959963984540054
"""The 97.5% quantile of the standard normal distribution."""


def t95(degrees: float) -> float:
    """The 97.5% quantile of Student's t distribution with so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def proportion(successes: float, count: int) -> Estimate:
    """A share with Wilson's interval (Wilson 1927), which stays within [0, 1] and holds for
    small counts. `successes` may be fractional: a tie counts as half.
    """
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    share = successes / count
    return Estimate(share, *_wilson(share, count), count)


def _wilson(share: float, count: float) -> tuple[float, float]:
    z2 = Z95 * Z95 / count
    centre = (share + z2 / 2) / (1 + z2)
    half = Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    # Of 0 and 1 an end is the share itself, but for rounding.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def share_of_parts(hits: Sequence[float], parts: Sequence[float]) -> Estimate:
    """sum(hits) / sum(parts), where each record has some parts of which some are hits, with
    Wilson's interval of the records' effective number, (sum parts)^2 / sum parts^2 (Kish 1965).

    That holds where the parts of a record are all alike, and is wide where they are not; unlike the
    delta method's it has a width where all are hits, and no more than [0, 1] where records are few.
    Records without parts are not counted.
    """
    total = math.fsum(parts)
    if total == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value, effective = math.fsum(hits) / total, total * total / math.fsum(n * n for n in parts)
    return Estimate(value, *_wilson(value, effective), sum(n > 0 for n in parts))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """sum(numerators) / sum(denominators) over records, by the delta method, with Student's t.

    A mean over tokens whose uncertainty is over records: tokens of one record are not independent.
    Where records are of unequal length, they count as their effective number (Kish 1965). One
    record has no interval (NaN).
    """
    count = len(numerators)
    total = math.fsum(denominators)
    if count == 0 or total == 0:
        return Estimate(math.nan, math.nan, math.nan, count)
    value = math.fsum(numerators) / total
    if count == 1:
        return Estimate(value, math.nan, math.nan, 1)
    residuals = [(n - value * d) / total for n, d in zip(numerators, denominators, strict=True)]
    error, degrees = spread(residuals, [d / total for d in denominators])
    if not any(residuals):
        return Estimate(value, value, value, count)
    half = t95(degrees) * error if degrees > 0 else math.nan
    return Estimate(value, value - half, value + half, count)


def spread(residuals: Sequence[float], shares: Sequence[float]) -> tuple[float, float]:
    """The standard error of a ratio and its degrees of freedom, from each record's residual and its
    share of the denominator; the second is 0 where one record has all of that."""
    effective = 1 / math.fsum(share * share for share in shares)
    if effective <= 1 + 1e-9:
        return math.nan, 0.0
    variance = math.fsum(r * r for r in residuals) * effective / (effective - 1)
    return math.sqrt(variance), effective - 1


def mean(values: Sequence[float]) -> Estimate:
    """The mean with Student's t interval; one value has none (NaN)."""
    return ratio(values, [1.0] * len(values))


def summary(values: Sequence[float]) -> Estimate:
    """The mean of scores that may or may not be 0 and 1: as a share if all of them are, so that its
    interval has a width even where all are the same, else as a mean."""
    if values and set(values) <= {0.0, 1.0}:
        return proportion(sum(values), len(values))
    return mean(values)
