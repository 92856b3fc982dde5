"""A run that stands still says so once, and says nothing where it does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from posttrain_recipes.plugin import Resume
from posttrain_recipes.running.events import Reporter, SamplingProgress, Stall, patient
from posttrain_recipes.running.stalls import LEAST_S, StallWatch

SFT: Any = SimpleNamespace(name="sft")


class Clocked:
    """A watch on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[Stall] = []
        self.notes: list[str] = []
        self.watch = StallWatch(self.told.append, self.notes.append, lambda: self.now)
        self.watch.training(SFT, 0, 100)
        self.number = 0

    def steps(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.now += seconds
            self.number += 1
            self.watch.step(self.number, 100, {})

    def after(self, seconds: float) -> int:
        """How often it was told by then."""
        self.now += seconds
        self.watch.look()
        return len(self.told)


def test_no_step_for_ten_medians_is_told_once_with_what_was_heard_last() -> None:
    run = Clocked()
    run.steps(6, 20.0)
    run.watch.saved(Resume(6, "tinker://a/weights/6", "tinker://a/sampler_weights/6"))
    assert run.after(199.0) == 0
    assert run.after(1.0) == 1
    assert run.after(1000.0) == 1
    (stall,) = run.told
    assert (stall.stage, stall.seconds, stall.usual) == ("sft", 200.0, 20.0)
    assert "no step for 3 min 20 s, where one takes 20 s (median of 5)" in stall.text
    assert "heard last: step 6 was saved, 3 min 20 s ago" in stall.text
    assert "SIGTERM keeps what is trained" in stall.text
    run.steps(1, 1.0)
    assert run.notes == ["stage 'sft' goes on: step 7 took 20 min 01 s"]
    run.steps(1, 20.0)
    assert run.after(200.0) == 2, "the next stall is another one"


def test_steps_of_milliseconds_and_first_steps_are_given_time() -> None:
    quick = Clocked()
    quick.steps(50, 0.01)
    assert quick.after(LEAST_S - 1) == 0
    assert quick.after(1.0) == 1
    few = Clocked()
    few.steps(5, 1.0)  # the first counts from the start of the stage, which is no step
    assert few.after(1e6) == 0


def test_an_eval_between_two_steps_is_no_stall_and_no_step() -> None:
    run = Clocked()
    run.steps(6, 10.0)
    run.watch.doing("evaluating nll of sft at step 6")
    assert run.after(1e4) == 0
    run.watch.evaluated(SFT, cast(Any, SimpleNamespace(name="nll")), "step 6", cast(Any, None))
    assert run.after(99.0) == 0
    assert run.after(1.0) == 1
    assert run.told[0].usual == 10.0


def test_answers_are_heard_but_are_no_steps() -> None:
    run = Clocked()
    run.steps(6, 10.0)
    run.now += 60.0
    run.watch.sampling(SamplingProgress("training sft", 0, 0, "", 64, 12, 0, 9, 60.0))
    assert run.after(40.0) == 1
    assert "heard last: 12 of 64 requests answered, 40 s ago" in run.told[0].text


def test_a_stage_that_is_done_stalls_no_more() -> None:
    run = Clocked()
    run.steps(6, 10.0)
    run.watch.stage_trained(SFT, cast(Any, None))
    assert run.after(1e6) == 0


def test_who_knows_only_warnings_is_warned() -> None:
    class Heard(Reporter):
        said = ""

        def warning(self, text: str) -> None:
            self.said = text

    heard = Heard()
    patient(heard).stalled(Stall("sft", 60.0, 1.0, "it stands still"))
    assert heard.said == "it stands still"
