"""Intervals against published and resampled values; answers as people write them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from posttrain_recipes.records import Sample
from posttrain_recipes.rewards.exact_match import ExactMatchReward
from posttrain_recipes.training.intervals import mean, proportion, ratio
from posttrain_recipes.training.text import answer_extraction

# --- shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (score).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # Brown, Cai & DasGupta's form at both ends: z^2 / (n + z^2).
        (10, 10, 0.7225, 1.0000),
        (0, 10, 0.0000, 0.2775),
    ],
)
def test_shares_have_wilsons_interval(successes: int, count: int, low: float, high: float) -> None:
    found = proportion(successes, count)
    assert found.value == successes / count
    assert (found.low, found.high) == pytest.approx((low, high), abs=5.1e-5)
    assert found.count == count


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (0, 300), (300, 300), (0.5, 1)])
def test_shares_stay_between_nothing_and_all(successes: float, count: int) -> None:
    found = proportion(successes, count)
    assert 0.0 <= found.low <= found.value <= found.high + 1e-12 <= 1.0 + 1e-12
    assert found.low < found.high


def test_wilsons_bounds_solve_its_equation() -> None:
    """|p - phat| = z sqrt(p (1 - p) / n) at both bounds."""
    found = proportion(7.5, 23)
    for bound in (found.low, found.high):
        spread = 1.959963984540054 * math.sqrt(bound * (1 - bound) / 23)
        assert abs(bound - 7.5 / 23) == pytest.approx(spread, rel=1e-12)


def test_nothing_is_unknown() -> None:
    for found in (proportion(0, 0), mean([]), ratio([0.0], [0.0])):
        assert math.isnan(found.value)
        assert math.isnan(found.low)
    assert proportion(0, 0).count == 0


def test_a_share_of_none_or_all_lies_within_its_interval() -> None:
    for count in range(1, 300):
        for hits in (0, count):
            found = proportion(hits, count)
            assert found.low <= found.value <= found.high, (hits, count)


# --- means ---------------------------------------------------------------------------------------


def test_a_mean_has_students_interval() -> None:
    found = mean([1.0, 2.0, 3.0, 6.0])
    # Mean 3, sample variance 14/3, standard error sqrt(14/12); t(3) from a table.
    half = 3.182446305 * math.sqrt(14 / 12)
    assert (found.value, found.count) == (3.0, 4)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))


def test_one_value_has_no_interval() -> None:
    found = mean([2.5])
    assert (found.value, found.count) == (2.5, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_equal_values_are_certain() -> None:
    found = ratio([2.0, 4.0], [1.0, 2.0])
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_a_mean_over_tokens_is_uncertain_over_records() -> None:
    """The delta method against a bootstrap of whole records."""
    random = np.random.default_rng(0)
    tokens = random.integers(2, 60, size=400).astype(float)
    of_record = random.gamma(4.0, 0.4, size=400)  # tokens of one record are alike
    losses = tokens * of_record
    found = ratio(losses.tolist(), tokens.tolist())
    assert found.value == pytest.approx(losses.sum() / tokens.sum(), rel=1e-12)
    draws = random.integers(0, 400, size=(4000, 400))
    resampled = losses[draws].sum(axis=1) / tokens[draws].sum(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert found.high - found.low == pytest.approx(high - low, rel=0.06)
    # Treating tokens as independent would claim far more certainty than there is.
    naive = 2 * 1.96 * of_record.std() / math.sqrt(tokens.sum())
    assert found.high - found.low > 3 * naive


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "text", "expected"),
    [
        ("whole", "  Paris \n", "Paris"),
        ("whole", "", ""),
        ("number", "3 apples and 4 pears make 7.", "7"),
        ("number", "It is 1,234.50 euros", "1,234.50"),
        ("number", "so -5 degrees", "-5"),
        ("number", "none", None),
        ("hashes", "48 - 7 = 41\n#### 41", "41"),
        ("hashes", "#### 1\n#### 2 ", "2"),
        ("hashes", "41", None),
        ("boxed", r"so \boxed{12} or \boxed{ 13 }", "13"),
        ("boxed", "12", None),
    ],
)
def test_the_answer_in_a_reply(
    how: answer_extraction.Extract, text: str, expected: str | None
) -> None:
    assert answer_extraction.extract(text, how) == expected


@pytest.mark.parametrize(
    ("found", "answer", "same"),
    [
        ("Paris", "Paris", True),
        (" New   York\n", "New York", True),
        ("paris", "Paris", False),
        ("1,000", "1000.0", True),
        ("007", "7", True),
        ("-3", "-3.00", True),
        ("3", "-3", False),
        ("3 apples", "3", False),
        ("1e3", "1000", False),
        ("", "", True),
        (None, "", False),
        ("", "x", False),
    ],
)
def test_answers_are_the_same_as_numbers_or_words(
    found: str | None, answer: str, same: bool
) -> None:
    assert answer_extraction.equal(found, answer) is same


def test_capitals_may_not_matter() -> None:
    assert answer_extraction.equal("STRASSE", "Straße", ignore_case=True)
    assert not answer_extraction.equal("STRASSE", "Straße")


def test_the_reward_is_one_nothing_or_an_abstention() -> None:
    reward = ExactMatchReward(ExactMatchReward.Config(extract="number", ignore_case=True))
    samples = [
        Sample((), "the answer is 1,000", "1000"),
        Sample((), "the answer is 999", "1000"),
        Sample((), "no idea", "1000"),
        Sample((), "1000", None),
    ]
    assert reward.score(samples) == [1.0, 0.0, 0.0, None]
