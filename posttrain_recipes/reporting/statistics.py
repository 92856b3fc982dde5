"""Statistics for comparing trained models: means over seeds, paired tests, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain_recipes.records import Estimate

ALPHA = 0.05


@dataclass(frozen=True)
class Paired:
    """A paired difference, on the same seeds or the same records."""

    difference: float
    low: float
    high: float
    """95% interval of the difference."""
    p: float
    """Two-sided; NaN where all differences are equal, which no test can judge."""
    count: int
    test: str
    """What was paired, and the test: `paired t, 3 seeds`."""


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of independent runs with Student's t interval (Student 1908)."""
    count = len(values)
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    half = _quantile(count - 1) * _standard_error(values)
    return Estimate(mean, mean - half, mean + half, count)


def paired_t(after: Sequence[float], before: Sequence[float], what: str) -> Paired:
    """Student's paired t test of `after` minus `before`; `what` is what the pairs are of."""
    from scipy.special import stdtr

    differences = [a - b for a, b in zip(after, before, strict=True)]
    count = len(differences)
    estimate = over_seeds(differences)
    error = _standard_error(differences)
    if error > 0:
        p = 2 * float(stdtr(count - 1, -abs(estimate.value) / error))
    else:
        p = math.nan if estimate.value else 1.0
    name = f"paired t, {count} {what}"
    return Paired(estimate.value, estimate.low, estimate.high, p, count, name)


def mcnemar(after: Sequence[bool], before: Sequence[bool], what: str) -> Paired:
    """McNemar's exact test (McNemar 1947) of two shares on the same records.

    Only records that one way gets right and the other wrong count: under the null hypothesis
    either is as likely, a binomial with probability one half.
    """
    gained = sum(a and not b for a, b in zip(after, before, strict=True))
    lost = sum(b and not a for a, b in zip(after, before, strict=True))
    count, apart = len(after), gained + lost
    tail = sum(math.comb(apart, k) for k in range(min(gained, lost) + 1)) / 2**apart
    difference = (gained - lost) / count
    variance = (apart / count - difference**2) / count
    half = 1.959963984540054 * math.sqrt(max(0.0, variance))
    p = min(1.0, 2 * tail)
    name = f"McNemar exact, {count} {what}"
    return Paired(difference, difference - half, difference + half, p, count, name)


def on_records(after: Sequence[float], before: Sequence[float]) -> Paired:
    """The fitting paired test of scores on the same records: McNemar's for 0 and 1, else t."""
    if all(score in (0.0, 1.0) for score in (*after, *before)):
        return mcnemar([bool(a) for a in after], [bool(b) for b in before], "records")
    return paired_t(after, before, "records")


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for being several (Holm 1979); NaN stays what it is."""
    order = sorted((p, index) for index, p in enumerate(values) if not math.isnan(p))
    adjusted = list(values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted


def _standard_error(values: Sequence[float]) -> float:
    count = len(values)
    if count < 2:
        return math.nan
    mean = math.fsum(values) / count
    # Equal values must give 0, whatever the mean's last digit is.
    if max(values) - min(values) <= 1e-12 * max(1.0, abs(mean)):
        return 0.0
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)


def _quantile(degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - ALPHA / 2))
