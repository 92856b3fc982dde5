"""What a person sees of a step."""

from __future__ import annotations

import io
from typing import Any

import pytest

from posttrain_recipes.progress import lines as progress
from posttrain_recipes.progress.lines import Lines
from posttrain_recipes.progress.live import Live
from posttrain_recipes.progress.pace import StageProgress
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.records import Estimate
from posttrain_recipes.reporting import report
from posttrain_recipes.reporting.report import TableRow

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
    merged = {"merge/norm": 0.30712, "merge/lost": 0.041}
    assert progress.told(merged) == "norm 0.307  lost 4% of it"


def test_learning_from_what_is_said_shows_its_loss_and_how_many_were_learned() -> None:
    said = {"reward/mean": 0.5, "train/loss": 0.25, "feedback/learned_share": 0.75}
    assert StageProgress().told(said) == "reward 0.500  loss 0.2500  learned 75%"


def test_a_step_that_reads_no_tokens_has_no_speed() -> None:
    out = io.StringIO()
    Lines(out).step(1, 1, {"merge/norm": 1.0, "merge/lost": 0.0})
    assert out.getvalue() == "  step 1/1  norm 1  lost 0% of it\n"


def test_a_line_of_rl_fits_a_terminal() -> None:
    out = io.StringIO()
    Lines(out).step(1200, 1200, ROLLOUTS)
    (line,) = out.getvalue().splitlines()
    assert line.startswith("  step 1200/1200  reward 0.400  zero-var 35%")
    assert len(line) <= 100


def test_what_is_too_long_for_a_line_keeps_how_it_ends() -> None:
    texts = [f"evaluating held_out after sft@learning_rate={rate}" for rate in ("1e-4", "2e-4")]
    shown = [progress.shortened(text, 30) for text in texts]
    assert [len(text) for text in shown] == [30, 30]
    assert all(text.startswith("evaluating") for text in shown)
    assert [text[-4:] for text in shown] == ["1e-4", "2e-4"]
    assert progress.shortened(texts[0], 100) == texts[0]
    assert progress.shortened(texts[0], 1) == "…"


def test_variants_of_a_matrix_differ_in_80_columns_and_verdicts_are_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    found = [Estimate(value, value - 0.05, value + 0.05, 500) for value in (0.1, 0.9)]
    rates = ("0.0001", "0.0002")
    names = [f"sft@learning_rate={rate},rank=8" for rate in rates]
    rows = [TableRow(n, "held_out", "acc", "held_out", *found, True, True) for n in names]
    monkeypatch.setattr(report, "rows", lambda record: rows)
    monkeypatch.setattr(report, "notes", lambda rows: [])
    out = io.StringIO()
    record: Any = None
    Live(Lasting(out)).table(record)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.rstrip().endswith("better") for line in lines) == 2
    stages = "".join(line.split()[0] for line in lines if line.strip())
    assert all(name in stages for name in names)
