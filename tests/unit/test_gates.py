"""Bounds on results: what they mean, where they are checked, what a failed one does."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain_recipes.errors import RecipeError
from posttrain_recipes.planning import gates
from posttrain_recipes.planning.gates import Bound, Subject
from posttrain_recipes.records import Estimate
from posttrain_recipes.reporting import comparisons, report, statistics
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import Measured, RunRecord, StageRecord
from tests.conftest import Project

RECIPE = """\
name: demo
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft}
    eval:
      - {use: nll}
      - {use: exact_match, name: held_out, dataset: {use: jsonl, path: questions.jsonl}}
  - name: dpo
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo}
    eval: [held_out]
"""


def measured(name: str, value: float, plugin: str = "exact_match") -> Measured:
    better = {"nll": False} if plugin == "nll" else {}
    metrics = {plugin: Estimate(value, value - 0.1, value + 0.1, 10)}
    return Measured(name, plugin, name, "data", metrics, better)


def stage(name: str, before: dict[str, float], after: dict[str, float]) -> StageRecord:
    made = StageRecord(name, name, "sft", status="finished")
    for ours, theirs in ((made.before, before), (made.after, after)):
        ours += [measured(n, v, "nll" if n == "nll" else "exact_match") for n, v in theirs.items()]
    return made


def run_of(project: Project, text: str, *stages: StageRecord) -> RunRecord:
    record = new_record(project.plan(text), "demo-1")
    record.stages = list(stages)
    return record


TWO = (
    stage("sft", {"nll": 2.0, "held_out": 0.4}, {"nll": 1.0, "held_out": 0.9}),
    stage("dpo", {"held_out": 0.9}, {"held_out": 0.8}),
)


@pytest.mark.parametrize(
    ("text", "within", "outside"),
    [
        (">= 0.8", 0.8, 0.79),
        ("<=5%", 0.05, 0.051),
        (">0", 1e-9, 0.0),
        ("< -1e-3", -0.002, -0.001),
        (">= 5%", 0.45 - 0.40, 0.0494),
        ("> 10%", 0.1006, 0.10004),
        ("> 10%", 0.1006, 0.1),
        ("<= 0.3", 0.1 + 0.2, 0.3001),
        ("< 5%", 0.0494, 0.0499999),
        (">= 12.345%", 0.1234499999, 0.12344),
        ("> 0.12345", 0.1234561, 0.1234501),
        (">= -5%", -0.0500001, -0.0506),
        ("<= 1e3", 1000.04, 1001.0),
    ],
)
def test_bounds(text: str, within: float, outside: float) -> None:
    bound = Bound.parse(text)
    assert bound
    assert bound.holds(within)
    assert not bound.holds(outside)
    assert not bound.holds(math.nan)


@given(
    st.sampled_from([">=", "<=", ">", "<"]),
    st.decimals(-200, 200, places=1),
    st.floats(-3, 3),
    st.booleans(),
)
def test_a_bound_is_kept_by_the_number_that_is_shown(
    operator: str, number: Decimal, value: float, percent: bool
) -> None:
    bound = Bound.parse(f"{operator} {number}{'%' * percent}")
    assert bound
    shown = float(bound.shown(value).rstrip("%"))
    assert bound.holds(value) == eval(f"{shown} {operator} {number}")


@pytest.mark.parametrize("text", ["0.8", "= 0.8", ">= high", ">= 1.2.3", ""])
def test_what_is_no_bound(text: str) -> None:
    assert Bound.parse(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("held_out", 0.8),
        ("held_out/exact_match", 0.8),
        ("held_out change", 0.4),
        ("held_out forgetting", 0.1),
        ("forgetting", 0.1),
        ("nll", 1.0),
        ("nll change", -1.0),
        ("held_out/other", None),
        ("nll forgetting", None),
    ],
)
def test_what_subjects_mean_over_a_recipe(text: str, value: float | None) -> None:
    subject = Subject.parse(text)
    assert subject
    found = gates.measure(subject, TWO)
    assert found == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("better", "now", "verdict", "best", "lost"),
    [
        (True, 3.0, "better", "new", -2.0),
        (False, 3.0, "worse", "old", 2.0),
        (None, 3.0, "changed", "", None),
        (None, 1.05, "same", "", None),
    ],
)
def test_what_is_better_neither_way_has_changed_and_has_no_best_and_is_not_forgotten(
    better: bool | None, now: float, verdict: str, best: str, lost: float | None
) -> None:
    old, new = (Estimate(v, v - 0.1, v + 0.1, 10) for v in (1.0, now))
    row = report.TableRow("play", "nim", "turns", "nim turns", old, new, better, False)
    assert row.verdict == verdict
    apart = statistics.Paired(
        now - 1.0, now - 1.1, now - 0.9, 0.01 if now > 2 else 0.6, 10, "paired"
    )
    cells = [
        comparisons.Cell("old", old, 1, None, math.nan, 0, 0.0),
        comparisons.Cell("new", new, 1, apart, apart.p, 0, 0.0),
    ]
    assert comparisons.Table("nim", "turns", better, tuple(cells)).best == best
    path = [stage("play", {}, {}), stage("again", {}, {})]
    for made, value in zip(path, (old, new), strict=True):
        made.after = [
            Measured("nim", "episodes", "nim", "data", {"turns": value}, {"turns": better})
        ]
    found = gates.measure(Subject("nim", "turns", "forgetting"), path)
    assert found is None if lost is None else found == pytest.approx(lost)


def test_forgetting_is_a_rise_where_lower_is_better() -> None:
    path = [stage("a", {}, {"nll": v}) for v in (1.0, 0.5, 0.8)]
    assert gates.measure(Subject("nll", None, "forgetting"), path) == pytest.approx(0.3)
    assert gates.measure(Subject("", None, "forgetting"), path[:2]) == pytest.approx(-0.5)


def with_bounds(whole: str = "", sft: str = "", dpo: str = "") -> str:
    text = RECIPE + (f"expect: {whole}\n" if whole else "")
    for name, bounds in (("sft", sft), ("dpo", dpo)):
        if bounds:
            text = text.replace(f"- name: {name}\n", f"- name: {name}\n    expect: {bounds}\n")
    return text


def test_bounds_on_a_stage_are_of_that_stage(project: Project) -> None:
    text = with_bounds(
        whole='{held_out: ">= 0.85", held_out change: "> 0.3"}',
        sft='{held_out: ">= 85%"}',
        dpo='{held_out change: ">= 0", forgetting: "<= 0.05"}',
    )
    found = gates.check(run_of(project, text, *TWO))
    assert [(g.stage, g.subject, g.passed) for g in found] == [
        ("sft", "held_out", True),
        ("dpo", "held_out change", False),
        ("dpo", "forgetting", False),
        ("dpo", "held_out", False),
        ("dpo", "held_out change", True),
    ]
    assert str(found[0]) == "held_out after sft is 90.0%, expected >= 85%"
    assert str(found[1]) == "held_out change after dpo is -0.1, expected >= 0"


def test_what_was_not_measured_fails(project: Project) -> None:
    record = run_of(project, with_bounds(dpo='{held_out: ">= 0"}'), TWO[0], stage("dpo", {}, {}))
    (gate,) = gates.check(record)
    assert not gate.passed
    assert str(gate) == "held_out after dpo was not measured, expected >= 0"


def test_every_way_through_a_grid_is_held_to_the_bounds(project: Project) -> None:
    text = with_bounds('{held_out: ">= 0.85"}') + "matrix: {stages.dpo.method.beta: [0.1, 0.2]}\n"
    low, high = (
        stage(f"dpo@beta={b}", {"held_out": 0.9}, {"held_out": v})
        for b, v in ((0.1, 0.8), (0.2, 0.9))
    )
    found = gates.check(run_of(project, text, TWO[0], low, high))
    assert [(g.stage, g.passed) for g in found] == [("dpo@beta=0.1", False), ("dpo@beta=0.2", True)]


def test_reports_tell(project: Project) -> None:
    text = with_bounds(dpo='{held_out: ">= 0.85"}')
    record = run_of(project, text, *TWO)
    assert report.as_json(record)["passed"] is False
    assert report.as_json(record)["gates"][0]["value"] == pytest.approx(0.8)
    assert "**Failed**: held_out after dpo is 0.8, expected >= 0.85." in report.markdown(record)
    assert report.gate_tags(record)["ptl.gates"] == "failed"
    assert report.gate_tags(run_of(project, RECIPE, *TWO)) == {}


WRONG: dict[str, tuple[str, str]] = {
    "an eval that is not there": (
        with_bounds(dpo='{nll: "<= 1"}'),
        "mine.yaml:11:14  stages.dpo.expect.nll\n  no eval here is named 'nll'",
    ),
    "a metric that is not there": (
        with_bounds('{held_out/accuracy: ">= 0.5"}'),
        "mine.yaml:14:10  expect.held_out/accuracy\n  eval 'held_out' has no metric 'accuracy'; "
        "there is: exact_match",
    ),
    "other words": (
        with_bounds('{held_out improvement: ">= 0.5"}'),
        "names no result; write EVAL, EVAL/METRIC, 'EVAL change'",
    ),
    "no bound": (
        with_bounds("{held_out: 0.5}"),
        'mine.yaml:14:20  expect.held_out\n  must be text, not 0.5; write ">= 0.5"',
    ),
    "a loop's end on an eval of another stage": (
        RECIPE
        + "  - repeat: 2\n    until: {nll: '<= 1'}\n    stages:\n"
        + "      - name: more\n        eval: [held_out]\n",
        "mine.yaml:15:13  stages[2].until.nll\n  no eval here is named 'nll'; there is: held_out",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bounds_on_nothing_are_faults(project: Project, name: str) -> None:
    text, expected = WRONG[name]
    with pytest.raises(RecipeError) as caught:
        project.plan(text)
    assert expected in str(caught.value), str(caught.value)


LOOP = """\
name: demo
model: ./model
stages:
  - repeat: 3
    until: {nll: "<= 1"}
    stages:
      - name: sft
        dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
        method: {use: sft}
        eval: [{use: nll}]
"""


def test_a_loop_ends_when_all_its_bounds_hold(project: Project) -> None:
    plan = project.plan(LOOP)
    record = new_record(plan, "demo-1")

    def ended(round_: int, **values: Any) -> str | None:
        for name, value in values.items():
            record.stages[int(name[-1]) - 1] = value
        return gates.ended(plan.origins[round_ - 1], plan.origins, record)

    assert ended(1) is None
    assert ended(2, r1=stage("sft-1", {}, {"nll": 1.5})) is None
    assert ended(2, r1=stage("sft-1", {}, {"nll": 0.9})) == "nll is 0.9 (<= 1)"
    assert ended(2, r1=stage("sft-1", {}, {"nll": math.nan})) is None
    assert ended(3, r2=StageRecord("sft-2", "", "sft", status="left_out")) == "the loop has ended"
