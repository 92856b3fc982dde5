"""What a person sees of a step."""

from __future__ import annotations

import io

import pytest

from posttrain_recipes.cli import progress
from posttrain_recipes.cli.progress import Lines, StageProgress

ROLLOUTS = {
    "train/loss": 1e-9,
    "train/tokens_per_second": 900.0,
    "reward/mean": 0.4,
    "groups/zero_variance_share": 0.35,
    "completions/clipped_ratio": 0.12,
    "completions/mean_length": 83.4,
    "policy/kl_reference": 0.0312,
}


def test_a_step_of_rl_says_what_matters_and_not_a_loss_that_is_0() -> None:
    progress = StageProgress()
    progress.add(ROLLOUTS)
    told = progress.told(ROLLOUTS)
    assert told == "reward 0.400  zero-var 35%  cut 12%  kl 0.031  len 83"
    for i in range(30):
        progress.add({**ROLLOUTS, "reward/mean": 0.4 + 0.01 * i})
    assert progress.told(ROLLOUTS).startswith("reward 0.400 (+0.010/step)  zero-var")


def test_other_steps_show_their_loss_or_their_records() -> None:
    progress = StageProgress()
    assert progress.told({"train/loss": 1.25}) == "loss 1.2500"
    assert progress.told({"data/kept": 1200.0}) == "1,200 records"


def test_a_line_of_rl_fits_a_terminal() -> None:
    out = io.StringIO()
    Lines(out).step(1200, 1200, ROLLOUTS)
    (line,) = out.getvalue().splitlines()
    assert line.startswith("  step 1200/1200  reward 0.400  zero-var 35%")
    assert len(line) <= 100


@pytest.mark.parametrize("done", [0, 40])
def test_the_time_left_is_near_after_three_steps_though_the_first_was_slow(
    monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    told = StageProgress(done)
    total = done + 103
    for step in range(3):
        now += 90.0 if step == 0 else 10.0
        told.add({})
    assert told.left(done + 3, total) == "16 min 40 s"  # 100 steps of 10 s, not of 37 s
