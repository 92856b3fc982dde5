"""What is told of RL while it trains, and that nothing is told of what is well."""

from __future__ import annotations

import math
import random
import re
from typing import Any

import numpy as np
import pytest

from posttrain_recipes.running.health import (
    FALLING_SHORT,
    RAISE,
    SHORTEST,
    WINDOW,
    Health,
    overview,
    slope_t,
)

WELL = {
    "groups/learned": 4.0,
    "groups/zero_variance_share": 0.3,
    "reward/mean": 0.5,
    "policy/entropy": 1.0,
    "completions/clipped_ratio": 0.05,
}


def told(steps: list[dict[str, float]], **options: Any) -> list[tuple[int, str]]:
    health = Health(**options)
    return [(i, text) for i, step in enumerate(steps, 1) for text in health.step(step)]


def test_a_stage_that_learns_is_not_spoken_of() -> None:
    draw = random.Random(0)
    steps = [
        {**WELL, "reward/mean": 0.3 + 0.005 * i + draw.gauss(0, 0.1), "policy/entropy": 1 - i / 250}
        for i in range(100)
    ]
    assert told(steps) == []
    assert told([{"train/loss": 1.0}] * 50) == [], "other methods have none of these metrics"


@pytest.mark.parametrize(
    ("changed", "words", "at"),
    [
        ({"groups/learned": 0.0, "groups/zero_variance_share": 1.0}, "no group taught", 10),
        ({"groups/zero_variance_share": 0.8}, "80% of the groups of the last 10 steps", 10),
        ({"feedback/learned_share": 0.0}, "nothing was learned in 10 steps: no attempt", 10),
        ({"data/truncated": 0.5}, "50% of the replies of a batch were cut at max_tokens=64", 1),
        ({"completions/clipped_ratio": 0.78}, "78% .* were cut at .*: raise max_tokens", 5),
    ],
)
def test_what_is_wrong_from_the_start_is_told_once_with_what_to_do(
    changed: dict[str, float], words: str, at: int
) -> None:
    found = told([{**WELL, **changed}] * 40, max_tokens=64)
    assert [step for step, _ in found] == [at]
    assert re.search(words, found[0][1])
    assert ";" in found[0][1] or ":" in found[0][1]


@pytest.mark.parametrize(
    ("metric", "what"),
    [
        ("data/truncated", "replies"),
        ("critic/truncated_critiques", "critiques"),
        ("critic/truncated_revisions", "revisions"),
        ("judge/truncated", "judge's answers"),
    ],
)
def test_what_is_cut_while_records_are_made_is_told_of_whoever_wrote_it(
    metric: str, what: str
) -> None:
    assert told([{metric: 0.05}] * 9) == []
    words = f"25% of the {what} of a batch were cut at max_tokens=64, {RAISE}"
    assert told([{metric: 0.0}, {metric: 0.25}, {metric: 0.5}], max_tokens=64) == [(2, words)]


@pytest.mark.parametrize("steps", [1, 3])
def test_cut_replies_of_a_short_stage_are_told_at_its_end(steps: int) -> None:
    health = Health(max_tokens=16)
    found = []
    for number in range(1, steps + 1):
        found += health.step({**WELL, "completions/clipped_ratio": 0.5}, last=number == steps)
        assert bool(found) == (number == steps)
    (text,) = found
    words = "the only step" if steps == 1 else f"the last {steps} steps"
    assert text.startswith(f"50% of the replies of {words} were cut at max_tokens=16")
    assert list(health.step({**WELL, "completions/clipped_ratio": 0.5}, last=True)) == []


def test_a_reward_that_falls_is_told() -> None:
    draw = random.Random(1)
    steps = [{**WELL, "reward/mean": 0.5 + draw.gauss(0, 0.02)} for _ in range(20)]
    steps += [{**WELL, "reward/mean": 0.5 - 0.02 * i + draw.gauss(0, 0.02)} for i in range(20)]
    ((step, text),) = told(steps)
    assert 20 < step <= 40
    assert text.startswith("the reward falls, from 0.")
    assert "lower learning_rate" in text


def test_an_entropy_that_falls_by_half_is_told() -> None:
    steps = [{**WELL, "policy/entropy": 2.0 * 0.95**i} for i in range(40)]
    ((step, text),) = told(steps)
    assert 14 <= step <= 20
    assert "the entropy of the policy fell by half, from 1.8" in text


def test_a_slow_fall_is_told_too() -> None:
    draw = random.Random(3)
    steps = [{**WELL, "reward/mean": 0.4 - 0.002 * i + draw.gauss(0, 0.08)} for i in range(150)]
    ((step, text),) = told(steps)
    assert step <= 130
    assert f"in {step} steps" in text


def test_noise_seldom_looks_like_a_fall() -> None:
    draw = np.random.default_rng(0)
    stages = [[{"reward/mean": x} for x in row] for row in draw.normal(size=(500, 200))]
    assert sum(bool(told(stage)) for stage in stages) / 500 < 0.03


@pytest.mark.parametrize("steps", [6, 18, 27])
def test_a_short_stage_is_judged_at_its_end(steps: int) -> None:
    draw = random.Random(4)
    health, found = Health(), []
    for i in range(1, steps + 1):
        reward = 2.0 - i / steps + draw.gauss(0, 0.02)
        made = {**WELL, "reward/mean": reward, "policy/entropy": 2.0 * 0.1 ** (i / steps)}
        found += [(i, text) for text in health.step(made, last=i == steps)]
    falls = [(i, text) for i, text in found if text.startswith("the reward falls")]
    entropy = [(i, text) for i, text in found if text.startswith("the entropy of the policy fell")]
    assert [i for i, _ in falls] == [min(steps, 20)]
    assert [i for i, _ in entropy] == [min(steps, max(i for i, _ in entropy))]


def test_noise_of_a_short_stage_seldom_looks_like_a_fall() -> None:
    draw = np.random.default_rng(1)
    alarms = 0
    for row in draw.normal(size=(2000, 12)):
        health = Health()
        steps = [({"reward/mean": x}, i == 11) for i, x in enumerate(row)]
        alarms += any([*health.step(made, last=last)] for made, last in steps)
    assert 0 < alarms <= 20


def test_the_bounds_of_short_stages_are_students() -> None:
    from scipy import stats

    lengths = range(SHORTEST, 2 * WINDOW)
    assert pytest.approx([stats.t.ppf(0.005, n - 2) for n in lengths], abs=0.006) == [
        *FALLING_SHORT
    ]


def test_the_slope_is_that_of_a_regression() -> None:
    from scipy import stats

    draw = random.Random(2)
    values = [0.1 * i + draw.gauss(0, 1) for i in range(20)]
    fit = stats.linregress(range(20), values)
    assert slope_t(values) == pytest.approx(fit.slope / fit.stderr)
    assert slope_t([1.0] * 20) == 0.0
    assert slope_t([1.0 - i for i in range(20)]) == -math.inf


def test_what_matters_of_a_step_of_rl_is_what_mlflow_shows_first() -> None:
    found = overview(
        {"reward/mean": 0.5, "completions/clipped_ratio": 0.25, "train/loss": 0.0, "reward/std": 1}
    )
    assert found == {
        "Overview/reward": 0.5,
        "Overview/share of replies cut at max_tokens": 0.25,
    }
    assert min([*found, "completions/x", "during/x", "advantage/x"]) in found
    assert overview({"train/loss": 1.0, "completions/mean_length": 3.0}) == {}


def test_a_policy_that_comes_apart_is_told_with_its_cause_alone() -> None:
    """As a learning rate of a hundred times the usual does: other advice would not help."""
    entropy = [0.44, 0.5, 1.9, 3.1, 3.4, 3.4]
    reward = [0.38, 0.1, 0.0, 0.0, 0.0, 0.0]
    steps = [
        {"policy/entropy": e, "reward/mean": r, "completions/clipped_ratio": 0.9}
        | {"groups/learned": float(r > 0), "groups/zero_variance_share": 1.0}
        for e, r in zip(entropy + [3.4] * 30, reward + [0.0] * 30, strict=True)
    ]
    ((step, text),) = told(steps, max_tokens=12)
    assert step == 4
    assert "the learning_rate is too high: 'learning_rate: auto' takes" in text
    ((_, text),) = told(steps, max_tokens=12, auto_rate=True)
    assert text.endswith("the learning_rate is too high: lower it")
    rising = [{**one, "reward/mean": 0.3 + 0.1 * i} for i, one in enumerate(steps[:6])]
    # Entropy differs with the prompts: of steps that taught nothing it says nothing.
    level = [{**one, "reward/mean": 1.0} for one in steps[:6]]
    idle = [{**one, "groups/learned": 0.0} for one in steps[:6]]
    # Two groups of four replies at one prompt each, a bound that such a step crosses by itself.
    prompts = [
        {**steps[0], "policy/entropy": e, "reward/mean": r}
        for e, r in zip([0.859, 2.318, 2.243, 1.446], [0.512, 0.475, 0.537, 0.512], strict=True)
    ]
    for fine in (rising, level, idle, prompts):
        assert not any("comes apart" in text for _, text in told(fine))


def test_a_reward_that_is_always_the_same_is_looked_at_before_the_model() -> None:
    never = {**WELL, "groups/learned": 0.0, "reward/mean": 0.0}
    ((_, text),) = told([never] * 20)
    assert "every reply got the same reward, 0; see first whether a right answer is paid" in text


def test_a_short_stage_without_a_lesson_is_told_at_its_end() -> None:
    health = Health(max_tokens=8)
    dead = {"groups/learned": 0.0, "reward/mean": 0.0, "groups/zero_variance_share": 1.0}
    found = [list(health.step(dead, last=step == 4)) for step in range(1, 5)]
    assert found[:3] == [[], [], []]
    assert "no group taught anything in 4 steps" in found[3][0]


def test_at_the_ceiling_nothing_is_advised_that_would_not_help() -> None:
    rising = [{**WELL, "reward/mean": 0.1 * i} for i in range(10)]
    full = {**WELL, "reward/mean": 1.0, "groups/learned": 0.0, "groups/zero_variance_share": 1.0}
    found = [text for _, text in told(rising + [full] * 20)]
    assert len([text for text in found if "nothing is left to learn" in text]) == 1
    assert not any("sft first" in text for text in found)
