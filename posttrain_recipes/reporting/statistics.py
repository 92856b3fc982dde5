"""Statistics for comparing trained models: paired tests with intervals, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from posttrain_recipes.records import Estimate, PerRecord
from posttrain_recipes.training.intervals import Z95, mean, spread, t95

ALPHA = 0.05
OTHER_RECORDS = "not the same records before and after"
READ = "replies to read"
"""Why what an eval shows is not tested."""


@dataclass(frozen=True)
class Paired:
    """A difference that was tested, on the same seeds or the same records where `paired`."""

    difference: float
    low: float
    high: float
    """95% interval of the difference, which is without 0 where p < 0.05; NaN where all differences
    are the same, which says nothing of how they vary."""
    p: float
    """Two-sided."""
    count: int
    test: str
    """What was paired, and the test: `paired t, 3 seeds`."""
    paired: bool = True
    left_out: int = 0
    """Records without a value on one side, on which a judge abstained."""


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of independent runs with Student's t interval (Student 1908)."""
    return mean(values)


def paired_t(after: Sequence[float], before: Sequence[float], what: str) -> Paired:
    """Student's paired t test of `after` minus `before`; `what` is what the pairs are of.

    Where all differences are the same, the sign test (p = 2 / 2^n, or 1 where they are 0).

    Raises:
        ValueError: there are fewer than two pairs.
    """
    ones = (1.0,) * len(after)
    return paired_ratio((after, ones), (before, ones), what)


Ratio = tuple[Sequence[float], Sequence[float]]
"""Numerators and denominators by record."""


def paired_ratio(after: Ratio, before: Ratio, what: str) -> Paired:
    """Student's t test of the difference of two ratios over the same records, such as a loss of
    tokens: by the delta method, each record has the residual (n - R d) / sum(d) after minus before.

    Raises:
        ValueError: there are fewer than two pairs.
    """
    from scipy.special import stdtr

    count = len(after[0])
    if count < 2 or count != len(before[0]):
        raise ValueError("a paired test needs two pairs or more")
    values, residuals, shares = [], [], []
    for numerators, denominators in (after, before):
        total = math.fsum(denominators)
        value = math.fsum(numerators) / total
        pairs = zip(numerators, denominators, strict=True)
        values.append(value)
        residuals.append([(n - value * d) / total for n, d in pairs])
        shares.append([d / total for d in denominators])
    difference = values[0] - values[1]
    apart = [a - b for a, b in zip(*residuals, strict=True)]
    error, degrees = spread(apart, [(a + b) / 2 for a, b in zip(*shares, strict=True)])
    # Equal differences must give 0, whatever the last digit is.
    if error <= 1e-12 * max(1.0, *map(abs, values)):
        same = abs(difference) <= 1e-12 * max(1.0, *map(abs, values))
        p = 1.0 if same else 2.0 ** (1 - count)
        name = f"sign test, {count} {what}, all alike"
        return Paired(difference, math.nan, math.nan, p, count, name)
    if not degrees:  # one record has all of the denominator
        return Paired(difference, math.nan, math.nan, 1.0, 1, f"one of {count} {what} weighs all")
    half = t95(degrees) * error
    p = 2 * float(stdtr(degrees, -abs(difference) / error))
    name = f"paired t, {count} {what}"
    return Paired(difference, difference - half, difference + half, p, count, name)


def mcnemar(after: Sequence[bool], before: Sequence[bool], what: str) -> Paired:
    """McNemar's exact test (McNemar 1947) of two shares on the same records.

    Only records that one way gets right and the other wrong count: under the null hypothesis
    either is as likely, a binomial with probability one half. The interval is Tango's by the score
    test (Tango 1998, Statistics in Medicine 17:891), which has a width at any counts; the exact
    test rejects less often, and where it alone keeps 0, the interval is widened to hold it.
    """
    gained = sum(a and not b for a, b in zip(after, before, strict=True))
    lost = sum(b and not a for a, b in zip(after, before, strict=True))
    count = len(after)
    p, low, high = _mcnemar(gained, lost, count)
    name = f"McNemar exact, {count} {what}"
    return Paired((gained - lost) / count, low, high, p, count, name)


@lru_cache(maxsize=4096)
def _mcnemar(gained: int, lost: int, count: int) -> tuple[float, float, float]:
    from scipy.special import bdtr  # scipy.stats takes seconds to import

    changed = gained + lost
    p = min(1.0, 2 * float(bdtr(min(gained, lost), changed, 0.5))) if changed else 1.0
    # The interval of a loss is that of a gain, mirrored, to the last digit.
    high = _tango(gained, lost, count)
    low = -_tango(lost, gained, count)
    if p >= ALPHA:
        low, high = min(low, 0.0), max(high, 0.0)
    return p, low, high


def _tango(gained: int, lost: int, count: int) -> float:
    """The largest difference that the score test does not reject."""
    from scipy.optimize import brentq

    def excess(difference: float) -> float:
        # The share lost that is likeliest if this is the difference: a root of a quadratic.
        a = 2 * count
        b = -gained - lost + (2 * count - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = count * max(0.0, 2 * share + difference * (1 - difference))
        return count * difference - (gained - lost) - Z95 * math.sqrt(variance)

    # Just above what was found, where no variance is left at its own value (none or all changed).
    found = (gained - lost) / count + 1e-9
    return float(brentq(excess, found, 1.0, xtol=1e-10)) if found < 1 and excess(1.0) > 0 else 1.0


def on_records(after: Sequence[float], before: Sequence[float]) -> Paired:
    """The fitting paired test of scores on the same records: McNemar's for 0 and 1, else t."""
    if all(score in (0.0, 1.0) for score in (*after, *before)):
        return mcnemar([bool(a) for a in after], [bool(b) for b in before], "records")
    return paired_t(after, before, "records")


def unpaired(after: Estimate, before: Estimate) -> Paired | None:
    """A difference of two estimates as if they were of other records, where the scores by record
    are not known: from their intervals (method 10 of Newcombe 1998, Statistics in Medicine 17:873).
    It sees less than a test in pairs. None where an interval is not known.
    """
    from scipy.special import ndtr

    difference = after.value - before.value
    down = math.hypot(after.value - after.low, before.high - before.value)
    up = math.hypot(after.high - after.value, before.value - before.low)
    half = down if difference > 0 else up
    if not all(map(math.isfinite, (difference, down, up))):
        return None
    if not half and difference:  # every value alike on both sides: no spread to judge by
        return None
    p = 2 * float(ndtr(-Z95 * abs(difference) / half)) if half else 1.0
    count = min(after.count, before.count)
    name = f"unpaired, {count} records"
    return Paired(difference, difference - down, difference + up, p, count, name, paired=False)


@dataclass(frozen=True)
class Compared:
    """What can be said of a difference."""

    tested: Paired | None
    why: str = ""
    """Why nothing was tested."""


def compare(
    after: Estimate, before: Estimate, a: PerRecord | None, b: PerRecord | None
) -> Compared:
    """Test `after` against `before`, two estimates of one metric on the same records.

    The only place where it is decided how: in pairs by the scores `a` and `b`, or unpaired where
    one of them is not known.
    """
    if min(after.count, before.count) < 2:
        return Compared(None, "fewer than two records")
    if a is None or b is None or len(a.values) != len(b.values):
        if after.count != before.count:
            return Compared(None, OTHER_RECORDS)
        found = unpaired(after, before)
        return Compared(found, "" if found else "no interval is known")
    there = [(x is not None, y is not None) for x, y in zip(a.values, b.values, strict=True)]
    both = [i for i, found in enumerate(there) if all(found)]
    left_out = sum(map(any, there)) - len(both)
    if left_out and not (a.abstained and b.abstained):
        return Compared(None, OTHER_RECORDS)
    weighed = bool(a.weights and b.weights)
    if weighed:
        both = [i for i in both if a.weights[i] > 0 and b.weights[i] > 0]
    if len(both) < 2:
        return Compared(None, "fewer than two records")
    xs, ys = ([float(one.values[i] or 0.0) for i in both] for one in (a, b))
    if not all(map(math.isfinite, (*xs, *ys))):
        return Compared(None, "a value is not finite")
    if weighed:
        of_a, of_b = ([one.weights[i] for i in both] for one in (a, b))
        tested = paired_ratio((xs, of_a), (ys, of_b), "records")
    else:
        tested = on_records(xs, ys)
    return Compared(replace(tested, left_out=left_out))


def verdict(tested: Paired | None, p: float, higher_is_better: bool | None) -> str:
    """better, worse or changed (neither way is better) where p < 0.05, same where the two are not
    told apart, nothing where nothing was tested. `p` is that of `tested`, adjusted."""
    if tested is None:
        return ""
    if not p < ALPHA:
        return "same"
    if higher_is_better is None:
        return "changed"
    return "better" if (tested.difference > 0) == higher_is_better else "worse"


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for being several (Holm 1979); NaN stays what it is."""
    order = sorted((p, index) for index, p in enumerate(values) if not math.isnan(p))
    adjusted = list(values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted
