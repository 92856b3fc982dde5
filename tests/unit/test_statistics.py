"""Intervals cover, tests keep their level and have power: simulated, with fixed seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import optimize, stats

from posttrain_recipes.records import Estimate, PerRecord
from posttrain_recipes.reporting import statistics
from posttrain_recipes.reporting.statistics import Compared
from posttrain_recipes.training.intervals import (
    mean,
    proportion,
    ratio,
    share_of_parts,
    summary,
    t95,
)

DRAWS = 4000


def pairs(gained: int, lost: int, count: int, right: int = 0) -> tuple[PerRecord, PerRecord]:
    """Scores after and before, of which `right` are right both times."""
    rest = count - gained - lost - right
    after = (1.0,) * gained + (0.0,) * lost + (1.0,) * right + (0.0,) * rest
    before = (0.0,) * gained + (1.0,) * lost + (1.0,) * right + (0.0,) * rest
    return PerRecord(after), PerRecord(before)


def compared(a: PerRecord, b: PerRecord) -> Compared:
    estimates = (summary([v for v in one.values if v is not None]) for one in (a, b))
    after, before = estimates
    return statistics.compare(after, before, a, b)


def verdict(a: PerRecord, b: PerRecord, higher: bool | None = True) -> str:
    found = compared(a, b).tested
    return statistics.verdict(found, found.p if found else math.nan, higher)


# --- shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gained", "lost", "right", "before", "after", "p", "said"),
    [
        (12, 28, 51, 0.395, 0.315, 0.017, "worse"),
        (5, 19, 69, 0.44, 0.37, 0.007, "worse"),
        (19, 1, 61, 0.31, 0.40, 0.00004, "better"),
    ],
)
def test_what_a_test_in_pairs_sees_is_said(
    gained: int, lost: int, right: int, before: float, after: float, p: float, said: str
) -> None:
    a, b = pairs(gained, lost, 200, right)
    assert (sum(v or 0 for v in b.values) / 200, sum(v or 0 for v in a.values) / 200) == (
        pytest.approx(before, abs=1e-9),
        pytest.approx(after, abs=1e-9),
    )
    found = compared(a, b).tested
    assert found
    assert found.p == pytest.approx(p, rel=0.06)
    assert verdict(a, b) == said
    alone = statistics.unpaired(*(proportion(sum(v or 0 for v in s.values), 200) for s in (a, b)))
    assert alone
    assert statistics.verdict(alone, alone.p, True) == "same", "which it is not, unpaired"


@pytest.mark.parametrize("count", [5, 10, 25, 60])
def test_the_interval_of_a_paired_share_agrees_with_its_exact_test(count: int) -> None:
    for gained in range(count + 1):
        for lost in range(count + 1 - gained):
            a, b = pairs(gained, lost, count)
            found = compared(a, b).tested
            assert found
            apart = gained + lost
            exact = stats.binomtest(gained, apart).pvalue if apart else 1.0
            assert found.p == pytest.approx(exact)
            assert (found.low > 0 or found.high < 0) == (exact < 0.05)
            assert -1 <= found.low <= found.difference + 1e-9
            assert found.difference - 1e-9 <= found.high <= 1
            assert found.high - found.low > 0.01, "never of no width, not at 5 of 5"


@pytest.mark.parametrize(("gained", "lost", "count"), [(16, 2, 200), (9, 3, 20), (40, 0, 60)])
def test_the_interval_is_tangos(gained: int, lost: int, count: int) -> None:
    """Where the score with the likeliest nuisance share, found by a search, is the quantile."""
    found = statistics.mcnemar(
        [bool(v) for v in pairs(gained, lost, count)[0].values],
        [bool(v) for v in pairs(gained, lost, count)[1].values],
        "records",
    )

    def score(difference: float) -> float:
        def unlikely(share: float) -> float:
            both = (share + difference, share, 1 - 2 * share - difference)
            seen = (gained, lost, count - gained - lost)
            return -sum(n * math.log(max(p, 1e-300)) for n, p in zip(seen, both, strict=True))

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        share = optimize.minimize_scalar(
            unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        variance = count * (2 * share + difference * (1 - difference))
        return (gained - lost - count * difference) / math.sqrt(variance)

    assert score(found.low) == pytest.approx(1.959963984540054, abs=1e-3)
    assert score(found.high) == pytest.approx(-1.959963984540054, abs=1e-3)


def draws(gain: float, loss: float, count: int, seed: int = 0) -> list[statistics.Paired]:
    random = np.random.default_rng(seed)
    found = random.multinomial(count, [gain, loss, 1 - gain - loss], DRAWS)
    tested = []
    for gained, lost, _ in found:
        p, low, high = statistics._mcnemar(int(gained), int(lost), count)
        tested.append(statistics.Paired((gained - lost) / count, low, high, p, count, ""))
    return tested


def test_8_percent_gained_and_1_lost_of_200_is_better() -> None:
    """The unpaired intervals saw 13% of these."""
    found = draws(0.08, 0.01, 200)
    assert np.mean([statistics.verdict(one, one.p, True) == "better" for one in found]) >= 0.9


@pytest.mark.parametrize("count", [5, 20, 200])
@pytest.mark.parametrize("changing", [0.0, 0.05, 0.3])
def test_nothing_changed_is_rarely_said_to_be_better_or_worse(count: int, changing: float) -> None:
    found = draws(changing, changing, count)
    assert np.mean([one.p < 0.05 for one in found]) <= 0.05


@pytest.mark.parametrize("count", [5, 20, 50, 200])
@pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.05), (0.08, 0.01), (0.3, 0.1), (0.8, 0.0)])
def test_the_interval_of_a_paired_share_covers(gain: float, loss: float, count: int) -> None:
    found = draws(gain, loss, count)
    true = gain - loss
    assert np.mean([one.low <= true + 1e-9 and true - 1e-9 <= one.high for one in found]) > 0.94


@pytest.mark.parametrize("count", [2, 5, 10, 50])
def test_a_share_covers_at_small_counts(count: int) -> None:
    """Wilson's coverage swings around 95%; its mean over shares does not."""
    shares = np.linspace(0.02, 0.98, 97)
    bounds = [proportion(k, count) for k in range(count + 1)]
    covered = [
        sum(
            stats.binom.pmf(k, count, share)
            for k, one in enumerate(bounds)
            if one.low <= share <= one.high
        )
        for share in shares
    ]
    assert np.mean(covered) > 0.945
    assert all(one.low < one.high for one in bounds), "never of no width"


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [3, 10, 50])
def test_a_share_of_parts_covers_however_alike_the_parts_of_a_record_are(
    count: int, alike: float
) -> None:
    """`alike`: how many records have parts that are all hits or all misses."""
    random = np.random.default_rng(count)
    covered = 0
    for share in np.linspace(0.05, 0.95, 19).repeat(60):
        sizes = random.integers(1, 4, count)
        one = random.random(count) < share
        own = random.binomial(sizes, share)
        hits = np.where(random.random(count) < alike, one * sizes, own)
        found = share_of_parts(hits.tolist(), sizes.tolist())
        covered += found.low <= share <= found.high
        assert 0 <= found.low < found.high <= 1
    assert covered / (19 * 60) > 0.935


# --- means ---------------------------------------------------------------------------------------


def covers(values: np.ndarray, true: float) -> float:
    found = [mean(row) for row in values.tolist()]
    return float(np.mean([one.low <= true <= one.high for one in found]))


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_a_mean_covers_at_small_counts(count: int) -> None:
    """z covers 70% at 2 and 88% at 5."""
    random = np.random.default_rng(count)
    assert covers(random.normal(3.0, 2.0, (DRAWS, count)), 3.0) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(
    ("skewed", "true", "least"),
    [
        (lambda random, shape: random.exponential(1.0, shape), 1.0, 0.91),
        (lambda random, shape: random.lognormal(0.0, 1.0, shape), math.exp(0.5), 0.85),
    ],
)
def test_a_mean_of_skewed_values_covers_as_much_as_is_told(
    skewed: Callable[..., np.ndarray], true: float, least: float
) -> None:
    assert covers(skewed(np.random.default_rng(0), (DRAWS, 20)), true) > least


@pytest.mark.parametrize("count", [2, 5, 30])
@pytest.mark.parametrize("tokens", [False, True])
def test_means_that_did_not_change_are_rarely_told_apart(count: int, tokens: bool) -> None:
    random = np.random.default_rng(count)
    found = []
    for _ in range(DRAWS // 2):
        hard = random.normal(0, 5, count)  # what is hard about a record is so both times
        weights = random.integers(20, 60, count).astype(float) if tokens else np.ones(count)
        a, b = (tuple(((hard + random.normal(0, 1, count)) * weights).tolist()) for _ in "ab")
        given = tuple(weights.tolist()) if tokens else ()
        estimates = [ratio(one, given or [1.0] * count) for one in (a, b)]
        scores = [PerRecord(one, given) for one in (a, b)]
        said = statistics.compare(estimates[0], estimates[1], scores[0], scores[1]).tested
        assert said
        assert (said.low <= 0 <= said.high) == (said.p >= 0.05)
        found.append(said.p < 0.05)
    assert np.mean(found) == pytest.approx(0.05, abs=0.013)


def test_a_loss_of_tokens_is_tested_in_pairs() -> None:
    """The difference over its delta-method error is that of a jackknife over records."""
    random = np.random.default_rng(0)
    tokens = random.integers(5, 80, 120).astype(float)
    hard = random.normal(2.0, 0.6, 120)
    before = hard * tokens
    after = (hard - random.normal(0.03, 0.06, 120)) * tokens
    a, b = (PerRecord(tuple(one.tolist()), tuple(tokens.tolist())) for one in (after, before))
    estimates = [ratio(one.values, one.weights) for one in (a, b)]  # type: ignore[arg-type]
    found = statistics.compare(estimates[0], estimates[1], a, b).tested
    assert found
    whole = (after - before).sum() / tokens.sum()
    assert found.difference == pytest.approx(whole)
    gone = np.array(
        [np.delete(after - before, i).sum() / np.delete(tokens, i).sum() for i in range(120)]
    )
    error = math.sqrt(119 / 120 * ((gone - gone.mean()) ** 2).sum())
    assert (found.high - found.low) / 2 == pytest.approx(t95(119) * error, rel=0.02)
    assert statistics.verdict(found, found.p, False) == "better", "less is better"
    alone = statistics.unpaired(*estimates)
    assert alone
    assert alone.p > 0.3, "unpaired, the records' own difference drowns it"


# --- what can be said ----------------------------------------------------------------------------


def test_one_record_has_no_verdict() -> None:
    a, b = pairs(1, 0, 1)
    assert compared(a, b) == Compared(None, "fewer than two records")
    assert verdict(a, b) == ""
    shares = proportion(1, 1), proportion(0, 1)
    assert statistics.compare(*shares, None, None) == Compared(None, "fewer than two records")


@pytest.mark.parametrize(
    ("differences", "p"), [([0.2] * 3, 0.25), ([0.2] * 8, 2 / 256), ([0.0] * 4, 1.0)]
)
def test_differences_that_are_all_alike_have_the_sign_test(
    differences: Sequence[float], p: float
) -> None:
    before = [0.3 * i for i in range(len(differences))]
    after = [b + d for b, d in zip(before, differences, strict=True)]
    found = statistics.paired_t(after, before, "seeds")
    assert found.p == pytest.approx(p)
    assert found.test == f"sign test, {len(differences)} seeds, all alike"
    assert math.isnan(found.low), "nothing is known of how they vary"


def test_p_is_always_a_number() -> None:
    random = np.random.default_rng(0)
    for _ in range(2000):
        count = int(random.integers(2, 8))
        few = [-1.0, 0.0, 0.5, 1.0, 3.5][: int(random.integers(1, 6))]
        a, b = (PerRecord(tuple(random.choice(few, count).tolist())) for _ in "ab")
        found = compared(a, b).tested
        assert found
        assert 0 <= found.p <= 1


def test_a_mean_over_other_records_has_no_verdict() -> None:
    """Moves of the games that mated: 3.4 over few, then 6.6 over all."""
    before = PerRecord((3.0, 4.0, *[None] * 98))
    after = PerRecord(tuple([6.0, 7.0] * 50))
    assert compared(after, before) == Compared(None, statistics.OTHER_RECORDS)
    same = compared(PerRecord((2.0, 2.5, *[None] * 98)), before).tested
    assert same, "the same games: a fair comparison"
    assert same.count == 2
    estimates = Estimate(6.6, 6.4, 6.8, 100), Estimate(3.4, 2.4, 4.4, 2)
    assert statistics.compare(*estimates, None, None) == Compared(None, statistics.OTHER_RECORDS)


def test_where_a_judge_abstains_the_others_are_tested_and_that_is_known() -> None:
    before = PerRecord((None, 1.0, 2.0, 4.0, 3.0, None), abstained=True)
    after = PerRecord((1.0, None, 3.0, 5.5, 3.5, None), abstained=True)
    found = compared(after, before).tested
    assert found
    assert (found.count, found.left_out) == (3, 2)
    assert found.p == pytest.approx(stats.ttest_rel([3, 5.5, 3.5], [2, 4, 3]).pvalue)


def test_two_constants_have_no_verdict_without_their_records() -> None:
    """Intervals of no width say nothing of how the values vary."""
    two = mean([1.0] * 9), mean([3.0] * 9)
    assert statistics.compare(*two, None, None) == Compared(None, "no interval is known")
    assert statistics.compare(two[0], two[0], None, None).tested


def test_values_that_are_not_finite_are_not_tested() -> None:
    a, b = PerRecord((1.0, math.inf, 2.0)), PerRecord((1.0, 2.0, 3.0))
    assert compared(a, b) == Compared(None, "a value is not finite")


def test_without_scores_by_record_the_difference_is_unpaired() -> None:
    """Newcombe 1998, Statistics in Medicine 17:873, table II, method 10: 56/70 and 48/80."""
    found = statistics.compare(proportion(56, 70), proportion(48, 80), None, None)
    assert found.tested is None, "not as many records cannot be the same ones"
    alone = statistics.unpaired(proportion(56, 70), proportion(48, 80))
    assert alone
    assert (alone.low, alone.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert alone.p < 0.05
    assert not alone.paired


def test_a_record_with_all_tokens_is_one_record() -> None:
    a, b = PerRecord((5.0, 0.0, 0.0), (9.0, 0.0, 0.0)), PerRecord((1.0, 0.0, 0.0), (9.0, 0.0, 0.0))
    assert compared(a, b) == Compared(None, "fewer than two records")
    a, b = PerRecord((5.0, 0.0), (9.0, 1e-12)), PerRecord((1.0, 0.0), (9.0, 1e-12))
    found = compared(a, b).tested
    assert found
    assert found.p == 1.0
