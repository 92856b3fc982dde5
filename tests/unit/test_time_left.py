"""The time left of a stage in training: its steps, and the evals and checkpoints between them."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.progress.lines import Lines
from posttrain_recipes.progress.pace import BetweenSteps, StageProgress
from posttrain_recipes.records import EvalResult
from posttrain_recipes.store import Spent, StageRecord

FIRST, STEP, EVAL, SAVE = 3.0, 1.0, 4.0, 0.5
"""Seconds of each."""
UNITS = {"s": 1, "min": 60, "h": 3600}


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def planned(name: str, every: int | None) -> Any:
    return SimpleNamespace(name=name, fingerprint=name, every=every, eval=None)


def stage(*evals: Any, save_every: int = 50, keep: Any = None) -> Any:
    method = SimpleNamespace(name="sft", config=SimpleNamespace(save_every=save_every))
    return SimpleNamespace(name="sft", index=1, start="base", method=method, evals=evals, keep=keep)


def seconds(text: str) -> int:
    """Of `3 min 05 s left`."""
    return sum(int(n) * UNITS[unit] for n, unit in re.findall(r"(\d+) (s|min|h)\b", text))


def run(
    lines: Lines, clock: Clock, of: Any, total: int, record: StageRecord, done: int = 0
) -> dict[int, tuple[float, float]]:
    """A stage from its start to its last step: step -> seconds that it said to be left, and those
    that it took."""
    found = EvalResult({}, ())

    def evaluate(one: Any, when: str) -> None:
        lines.evaluating(one, when, f"{one.name} {when} sft")
        clock.now += EVAL
        lines.evaluated(of, one, when, found)

    lines.stage_started(of, record, 1)
    for one in of.evals:
        if not done:
            evaluate(one, "before")
    lines.training(of, done, total)
    out: Any = lines.out
    said: dict[int, tuple[float, float]] = {}
    for number in range(done + 1, total + 1):
        due = [one for one in of.evals if one.every and number % one.every == 0 and number < total]
        saves = bool(due) or number == total or number % of.method.config.save_every == 0
        clock.now += FIRST if number == done + 1 else STEP
        clock.now += SAVE if saves else 0.0
        lines.told[""] = lines.now.last = float("-inf")
        out.truncate(out.seek(0))
        lines.step(number, total, {"train/loss": 1.0})
        said[number] = seconds(out.getvalue().split("1.0000")[1]), clock.now
        if saves:
            lines.saved(SimpleNamespace(step=number))  # type: ignore[arg-type]
        for one in due:
            evaluate(one, f"step {number}")
    return {number: (told, clock.now - then) for number, (told, then) in said.items()}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(clock: Clock) -> Lines:
    return Lines(io.StringIO(), clock)


@pytest.mark.parametrize("done", [0, 40])
def test_it_is_near_after_three_steps_though_the_first_was_slow(clock: Clock, done: int) -> None:
    told = StageProgress(done, pauses=BetweenSteps(clock))
    total = done + 103
    for step in range(3):
        clock.now += 90.0 if step == 0 else 10.0
        told.add({})
    assert told.left(done + 3, total) == "16 min 40 s"  # 100 steps of 10 s, not of 37 s


@pytest.mark.parametrize("every", [1, 3, 5, 7])
@pytest.mark.parametrize("save_every", [4, 50])
def test_evals_and_checkpoints_that_are_due_are_in_it(
    lines: Lines, clock: Clock, every: int, save_every: int
) -> None:
    of = stage(planned("loss", every), planned("once", None), save_every=save_every)
    said = run(lines, clock, of, 30, StageRecord("sft", "", "sft"))
    for number, (told, took) in said.items():
        if number >= 3:
            assert told == pytest.approx(took, rel=0.25, abs=1.0), number


def test_checkpoints_are_no_part_of_a_step_and_are_counted(lines: Lines, clock: Clock) -> None:
    said = run(lines, clock, stage(save_every=4), 30, StageRecord("sft", "", "sft"))
    told, took = said[9]
    assert took == 21 * STEP + 6 * SAVE
    assert told == pytest.approx(took, abs=0.5)


def test_an_eval_that_was_measured_before_says_nothing_of_time(lines: Lines, clock: Clock) -> None:
    of = stage(planned("loss", 5))
    run(lines, clock, of, 10, StageRecord("sft", "", "sft"))
    lines.evaluated(of, of.evals[0], "before", EvalResult({}, ()))  # known, and there at once
    assert lines.pauses.evals == {"loss": EVAL}


def test_a_run_that_goes_on_knows_how_long_its_evals_took(lines: Lines, clock: Clock) -> None:
    of = stage(planned("loss", 5))
    measured: Any = [SimpleNamespace()] * 2
    record = StageRecord("sft", "", "sft", before=measured[:1], during=measured[1:])
    record.evaluation = Spent(seconds=2 * EVAL)
    said = run(lines, clock, of, 30, record, done=7)
    told, took = said[9]
    assert told == pytest.approx(took, rel=0.25)


def test_the_eval_that_decides_which_checkpoint_stays_is_due_at_the_end(
    lines: Lines, clock: Clock
) -> None:
    of = stage(planned("loss", 5), keep=SimpleNamespace(eval="loss"))
    said = run(lines, clock, of, 10, StageRecord("sft", "", "sft"))
    assert said[10][0] == EVAL
    assert run(lines, clock, stage(), 10, StageRecord("sft", "", "sft"))[10][0] == 0


def test_the_last_step_has_no_time_left(lines: Lines, clock: Clock) -> None:
    run(lines, clock, stage(), 10, StageRecord("sft", "", "sft"))
    out: Any = lines.out
    assert out.getvalue() == "  step 10/10  loss 1.0000\n"
