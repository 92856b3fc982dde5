"""Evals while a stage trains: when they are due, what they keep, and when they end the stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.errors import RecipeError, UsageError
from posttrain_recipes.planning.plans import PlannedStage
from posttrain_recipes.planning.reuse import differences
from posttrain_recipes.plugin import Checkpoint, Resume
from posttrain_recipes.records import Estimate
from posttrain_recipes.reporting.page import measured_during
from posttrain_recipes.running.during import During
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import Measured, StageRecord
from tests.conftest import Project

RECIPE = """\
name: demo
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft, batch_size: 1, epochs: 3}
    keep: {best: nll}
    stop: {after: 2 evals without gain}
    eval: [{use: nll, every: 2}]
"""


def planned(project: Project, **changes: str) -> PlannedStage:
    text = RECIPE
    for old, new in changes.items():
        text = text.replace({"keep": "    keep: {best: nll}\n"}.get(old, old), new)
    return project.plan(text).stages[0]


class Trained:
    """A stage that takes steps, with evals that find what they are told to."""

    def __init__(self, stage: PlannedStage, values: dict[int, float], total: int = 12) -> None:
        self.stage, self.values = stage, values
        self.kept = StageRecord("sft", "f", "sft", total_steps=total)
        self.kept.before = [self.found(0)] if 0 in values else []
        self.during = During(stage, self.kept, self.measure)
        self.measured: list[int] = []

    def found(self, step: int) -> Measured:
        value = self.values[step]
        one = Measured(
            "nll", "nll", self.stage.evals[0].fingerprint, "d",
            {"nll": Estimate(value, value, value, 4)}, {"nll": False},
        )  # fmt: skip
        one.step = step or None
        return one

    def measure(self, planned: Any, checkpoint: Checkpoint) -> None:
        self.measured.append(checkpoint.step)
        self.kept.during.append(self.found(checkpoint.step))

    def run(self, steps: Sequence[int] | None = None) -> Checkpoint:
        """Go on until it ends, with a checkpoint wherever one is due, or after `steps`."""
        step = self.kept.resume.step if self.kept.resume else 0
        last = self.saved(step)
        while step < self.kept.total_steps and not self.during.review(self.kept.resume):
            step += 1
            if self.during.due(step) if steps is None else step in steps:
                self.kept.resume = Resume(step, f"state{step}", f"sampler{step}")
            if step == self.kept.total_steps:
                self.kept.resume = Resume(step, f"state{step}", f"sampler{step}")
                self.during.review(self.kept.resume)
            last = self.saved(self.kept.resume.step if self.kept.resume else 0)
        return self.during.result(last)

    def saved(self, step: int) -> Checkpoint:
        return Checkpoint("./model", f"state{step}", f"sampler{step}", step)


def test_the_best_checkpoint_is_kept_and_the_first_of_equals(project: Project) -> None:
    stage = planned(project)
    values = {0: 3.0, 2: 2.0, 4: 1.0, 6: 1.5, 8: 1.0, 10: 9.0, 12: 9.0}
    trained = Trained(stage, values)
    assert trained.run().step == 4
    assert trained.kept.superseded == ["state2", "sampler2"]
    assert trained.kept.best == Resume(4, "state4", "sampler4")
    assert trained.kept.ended
    assert trained.kept.total_steps == 8  # 6 and 8 gain nothing over 4
    assert trained.kept.notes == [
        "ended at step 8 of 12: 2 evals without gain of nll",
        "leaves the checkpoint of step 4 of 8, the best of 4 by nll: 1.000 ±0.000; the last has "
        "1.000 ±0.000 too. nll chose it, so it flatters it: judge by another eval",
    ]


def test_the_last_step_is_compared_too_though_no_multiple(project: Project) -> None:
    stage = planned(project)
    trained = Trained(stage, {0: 3.0, 2: 2.9, 4: 2.8, 5: 2.7}, total=5)
    assert trained.run().step == 5
    assert trained.measured == [2, 4, 5]
    assert not trained.kept.ended


def test_a_start_that_nothing_beats_is_told(project: Project) -> None:
    trained = Trained(planned(project), {0: 1.0, 2: 5.0, 4: 6.0})
    assert trained.run().step == 2
    assert trained.kept.total_steps == 4
    assert "none is better than the start, 1.000" in trained.kept.notes[-1]


def test_what_is_no_number_is_never_the_best(project: Project) -> None:
    trained = Trained(planned(project), {2: math.nan, 4: 7.0, 6: math.nan, 8: math.nan}, total=9)
    assert trained.run().step == 4


def test_without_keep_the_last_step_is_left_to_the_result(project: Project) -> None:
    stage = planned(project, keep="")
    trained = Trained(stage, {0: 9.0, 2: 8.0, 4: 7.0}, total=4)
    assert trained.run().step == 4
    assert trained.measured == [2]
    assert trained.kept.notes == []
    assert trained.kept.best is None


def test_a_method_that_saves_at_other_steps_is_evaluated_at_the_next(project: Project) -> None:
    stage = planned(project, keep="")
    trained = Trained(stage, {0: 9.0, 3: 8.0, 4: 7.0, 9: 6.0}, total=10)
    trained.run(steps=[3, 4, 5, 9])
    assert trained.measured == [3, 4, 9]


def test_a_next_try_measures_nothing_again_and_chooses_what_was_not_chosen(
    project: Project,
) -> None:
    trained = Trained(planned(project), {0: 9.0, 2: 8.0, 4: 7.0, 6: 6.0}, total=6)
    trained.kept.resume = Resume(4, "state4", "sampler4")
    # Killed between the eval of step 4 and the choice.
    trained.kept.during = [trained.found(2), trained.found(4)]
    trained.kept.best = Resume(2, "state2", "sampler2")
    assert not trained.during.review(trained.kept.resume)
    assert trained.measured == []
    assert trained.kept.best.step == 4
    assert trained.run().step == 6
    assert trained.measured == [6]


def test_a_stage_that_was_ended_takes_no_step_more(project: Project) -> None:
    trained = Trained(planned(project), {0: 1.0, 2: 5.0, 4: 6.0})
    trained.run()
    notes = list(trained.kept.notes)
    again = During(trained.stage, trained.kept, trained.measure)
    assert again.review(trained.kept.resume)
    assert again.result(trained.saved(4)).step == 2
    assert trained.kept.notes == notes
    assert trained.measured == [2, 4]


def test_a_metric_that_has_no_better_is_none_to_choose_by(project: Project) -> None:
    trained = Trained(planned(project), {0: 1.0, 2: 5.0})
    found = trained.found(2)
    found.higher_is_better = {"nll": None}
    trained.kept.during = [found]
    with pytest.raises(UsageError, match="cannot be compared by nll/nll"):
        trained.during.review(Resume(2, "state2", "sampler2"))
    # Before anything is trained, by what was found before the stage.
    trained.kept.during = []
    trained.during.check()
    trained.kept.before[0].higher_is_better = {"nll": None}
    with pytest.raises(UsageError, match="cannot be compared by nll/nll"):
        trained.during.check()


def test_a_page_draws_what_was_found_from_the_start_to_the_end(project: Project) -> None:
    trained = Trained(planned(project, keep=""), {0: 9.0, 2: 8.0, 4: 7.0}, total=4)
    trained.kept.checkpoint = trained.run()
    trained.kept.after = [trained.found(4)]
    trained.kept.after[0].step = None
    assert measured_during(trained.kept) == {"eval/nll": [(0, 9.0), (2, 8.0), (4, 7.0)]}
    # What is left is not the last step's: its result is no point at the end of the curve.
    trained.kept.checkpoint = trained.saved(2)
    assert measured_during(trained.kept) == {"eval/nll": [(0, 9.0), (2, 8.0)]}


# --- in a recipe ---------------------------------------------------------------------------------


def faults(project: Project, old: str, new: str) -> list[str]:
    assert old in RECIPE
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE.replace(old, new))
    return [f"{fault.key}: {fault.message}" for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{best: nll}", "{best: nil}", "keep.best: no eval of this stage is named 'nil'"),
        ("{best: nll}", "{best: nll/loss}", "keep.best: eval 'nll' has no metric 'loss'"),
        ("{best: nll}", "{best: nll change}", "keep.best: names no metric"),
        ("{best: nll}", "{last: nll}", "keep"),
        ("nll, every: 2", "nll", "keep.best: eval 'nll' is not run during training"),
        ("every: 2", "every: 0", "eval[0].every"),
        ("every: 2", "every: often", "eval[0].every"),
        ("2 evals without gain", "two evals", "no number of evals; write '3 evals without gain'"),
        ("2 evals without gain", "0 evals without gain", "is no number of evals; write"),
        (
            "[{use: nll, every: 2}]",
            "[{use: generations, name: nll, every: 2}]",
            "neither more nor less of 'words' is better, so checkpoints cannot be compared by it; "
            "name 'nll/cut_off'",
        ),
        ("without gain}", "without gain, by: nil}", "stop.by: no eval of this stage"),
        (
            "    method: {use: sft, batch_size: 1, epochs: 3}\n",
            "",
            "keep: the stage takes no steps of training",
        ),
        (
            "use: sft, batch_size: 1, epochs: 3",
            "use: teacher_samples, teacher: {model: ./model}",
            "eval[0].every: the stage takes no steps of training",
        ),
    ],
)
def test_what_cannot_decide_is_a_fault_of_the_recipe(
    project: Project, old: str, new: str, expected: str
) -> None:
    assert any(expected in fault for fault in faults(project, old, new)), faults(project, old, new)


def test_a_method_with_a_fault_is_not_said_to_take_no_steps(project: Project) -> None:
    found = faults(project, "use: sft,", "use: sft, bogus: 1,")
    assert [fault.partition(":")[0] for fault in found] == ["stages.sft.method.bogus"]


@pytest.mark.parametrize("every", ["0", "two", "2.5"])
def test_what_is_no_number_is_one_fault(project: Project, every: str) -> None:
    found = faults(project, "every: 2", f"every: {every}")
    assert len(found) == 1
    assert found[0].startswith("stages.sft.eval[0].every")


def test_a_form_is_told_that_fits_the_word(project: Project) -> None:
    assert any("write {best: EVAL}" in f for f in faults(project, "{best: nll}", "best"))
    [told] = faults(project, "{after: 2 evals without gain}", "3 evals")
    assert "write {after: 3 evals without gain}" in told


def test_two_evals_leave_open_which_one_ends_the_stage(project: Project) -> None:
    text = RECIPE.replace("    keep: {best: nll}\n", "").replace(
        "[{use: nll, every: 2}]",
        "[{use: nll, every: 2}, {use: nll, name: other, max_length: 99, every: 3}]",
    )
    with pytest.raises(RecipeError, match="several evals have an 'every:'"):
        project.plan(text)
    stage = project.plan(text.replace("gain}", "gain, by: other}")).stages[0]
    assert stage.stop
    assert str(stage.stop.yardstick) == "other"


def test_only_evals_that_decide_are_part_of_what_a_stage_is(project: Project) -> None:
    plain = RECIPE.replace("    keep: {best: nll}\n", "").replace(
        "    stop: {after: 2 evals without gain}\n", ""
    )
    alone = project.plan(plain.replace(", every: 2", "")).stages[0].fingerprint
    assert project.plan(plain).stages[0].fingerprint == alone
    every = {
        project.plan(text).stages[0].fingerprint
        for text in (
            RECIPE,
            RECIPE.replace("every: 2", "every: 3"),
            RECIPE.replace("after: 2", "after: 3"),
            RECIPE.replace("    keep: {best: nll}\n", ""),
            RECIPE.replace("    stop: {after: 2 evals without gain}\n", ""),
            plain,
        )
    }
    assert len(every) == 6


def test_a_run_says_that_it_is_the_eval_which_changed(project: Project) -> None:
    text = RECIPE.replace("eval: [{", "eval: [{dataset: {use: jsonl, path: held.jsonl}, ")
    project.write("held.jsonl", '{"prompt": "a", "completion": "b"}\n')
    earlier = project.plan(text).stages[0].inputs
    project.write("held.jsonl", '{"prompt": "a", "completion": "c"}\n')
    [stage] = project.plan(text).stages
    assert list(differences(earlier, stage)) == ["what eval 'nll' measures changed"]
    [stage] = project.plan(text.replace("after: 2 evals", "after: 3 evals")).stages
    assert "stop changed" in differences(earlier, stage)


def test_what_is_measured_in_between_is_priced(project: Project) -> None:
    from posttrain_recipes.planning import costs, pricing
    from posttrain_recipes.planning.reuse import Decision

    def tokens(text: str, **how: Any) -> int:
        plan = project.plan(text.replace("./model", "ptl/tiny"))
        estimator = costs.Estimator(plan, pricing.load(Path()))
        decision = Decision("resume" if how else "run", "", done=how.get("done", 0))
        return estimator.stage(plan.stages[0], decision).tokens

    plain = RECIPE.replace("    keep: {best: nll}\n", "").replace(
        "    stop: {after: 2 evals without gain}\n", ""
    )
    lines = [f'{{"prompt": "{i}+1?", "completion": "{i + 1}"}}\n' for i in range(8)]
    project.write("chat.jsonl", "".join(lines))  # 7 to train on, 21 steps
    never = tokens(plain.replace(", every: 2", ""))
    once = tokens(plain.replace("every: 2", "every: 20")) - never
    assert once > 0
    assert tokens(plain) - never == 10 * once  # 2, 4 .. 20
    assert tokens(plain.replace("every: 2", "every: 7")) - never == 2 * once  # 21 is the end
    assert tokens(RECIPE) - never == 11 * once  # the last is compared too
    left = tokens(plain.replace(", every: 2", ""), done=11)
    assert tokens(plain, done=11) - left == 5 * once  # 12 .. 20


def test_a_new_run_has_nothing_measured(project: Project) -> None:
    record = new_record(project.plan(RECIPE), "demo-1")
    assert record.stages[0].during == []
