"""Evals beside what trains: how many at once, what waits for them, and how they end."""

from __future__ import annotations

import io
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.planning.plans import Plan, PlannedStage
from posttrain_recipes.progress import live as progress
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.records import Checkpoint, Estimate, EvalResult
from posttrain_recipes.running.beside import Beside, failed_above, judged_before
from posttrain_recipes.running.evaluation import Evaluator
from posttrain_recipes.store import StageRecord
from posttrain_recipes.waiting import Interrupts, StopAsked, as_worker, worker
from tests.conftest import Project, Ptl
from tests.unit.test_evaluator import RECIPE as DEMO
from tests.unit.test_evaluator import TRAINED, Bench

RECIPE = """\
name: five
model: ./model
ENGINE
stages:
  - name: a
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, max_steps: 1}
    eval: [{use: nll, dataset: {use: jsonl, path: chat.jsonl}}]
  - name: b
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, max_steps: 2}
    eval: [nll]
  - name: c
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, max_steps: 3}
    eval: [nll]
  - name: look
    eval: [nll]
  - name: e
    init_from: base
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, max_steps: 1}
    eval: [nll]
"""
LOOP = """\
name: loop
model: ./model
stages:
  - repeat: 2
    UNTIL
    stages:
      - name: a
        dataset: {use: jsonl, path: chat.jsonl}
        method: {use: sft, max_steps: 1}
        eval: [{use: nll, dataset: {use: jsonl, path: chat.jsonl}}]
"""


def planned(project: Project, engine: str = "") -> Plan:
    return project.plan(RECIPE.replace("ENGINE", engine))


def beside(plan: Plan, most: int, failed: Any = None) -> tuple[Beside, Interrupts]:
    interrupts = Interrupts()
    return Beside(most, plan.stages[-1], interrupts, failed or (lambda *_: None)), interrupts


def test_no_more_than_so_many_are_under_way(project: Project) -> None:
    plan = planned(project)
    a, b, c, look, last = plan.stages
    goes, seen = threading.Event(), []

    def work() -> None:
        seen.append(worker())
        assert goes.wait(60)

    both, _ = beside(plan, 2)
    with both:
        for stage in (a, b):
            assert both.takes(stage)
            both.start(stage, work)
        assert not both.takes(c), "two are under way"
        goes.set()
        both.settle(["a"])
        assert both.takes(c)
        assert not both.takes(look), "nothing is trained that others could wait for"
        assert not both.takes(last), "nothing comes after it"
        both.start(c, work)
    assert seen == ["a", "b", "c"], "the run's end waits for all of them"
    assert not beside(plan, 0)[0].takes(a)


def test_one_that_fails_is_told_of_and_the_others_go_on(project: Project) -> None:
    a, b, *_ = planned(project).stages
    told: list[tuple[PlannedStage, str]] = []
    both, _ = beside(planned(project), 2, lambda stage, error: told.append((stage, str(error))))

    def fail() -> None:
        raise RuntimeError("out of luck")

    with both:
        for stage, work in ((a, fail), (b, lambda: None)):
            assert both.takes(stage)
            both.start(stage, work)
    assert told == [(a, "out of luck")]


def test_a_bound_that_an_eval_meets_stops_what_trains_beside_it(project: Project) -> None:
    plan = planned(project)
    both, interrupts = beside(plan, 1)

    def meet() -> None:
        raise StopAsked("limits.max_tokens is 5, and 7 are used")

    assert both.takes(plan.stages[0])
    both.start(plan.stages[0], meet)
    with pytest.raises(StopAsked, match="7 are used"):
        both.settle()
    with pytest.raises(StopAsked, match="7 are used"):
        interrupts.check()


def test_what_decides_is_judged_before_what_follows(project: Project) -> None:
    plan = planned(project)
    waits = {stage.name: judged_before(stage, plan) for stage in plan.stages}
    assert waits == {"a": [], "b": [], "c": [], "look": [], "e": ["a"]}, "e takes over what a is"
    until = project.plan(LOOP.replace("UNTIL", "until: {nll: '< 1'}"))
    assert judged_before(until.stages[1], until) == [until.stages[0].name]
    for_all = project.plan(LOOP.replace("    UNTIL\n", ""))
    assert judged_before(for_all.stages[1], for_all) == []
    assert failed_above(plan.stages[3], plan, {"a"}) == ["a"], "by way of b and c"
    assert failed_above(plan.stages[4], plan, {"a"}) == []


def test_a_stage_waits_for_what_another_finds_of_its_start_and_pays_nothing(
    project: Project,
) -> None:
    bench = Bench(project)
    evaluator = bench.evaluator()
    sft, dpo = bench.stages
    waited: list[Future[None]] = []
    with evaluator.promised(sft, TRAINED):
        measure(bench, evaluator, 1, waits=False)
        assert (bench.asked, bench.record.stages[1].before) == (0, []), "it is left for later"
        bench.measure(evaluator, 0, "after", TRAINED)
        evaluator.serving.wait = waited.append  # type: ignore[assignment]
        measure(bench, evaluator, 1, waits=True)
    assert [end.done() for end in waited] == [True]
    assert bench.asked == 1
    assert bench.record.stages[1].evaluation.usage.tokens == 0
    assert bench.record.stages[1].before[0].metrics == bench.record.stages[0].after[0].metrics
    measure(bench, evaluator, 1, waits=False, weights=Checkpoint("./model"))
    assert bench.asked == 2, "nobody is at these"


def measure(
    bench: Bench,
    evaluator: Evaluator,
    stage: int,
    waits: bool,
    weights: Checkpoint = TRAINED,
) -> None:
    planned, kept = bench.stages[stage], bench.record.stages[stage]
    kept.start, kept.before = weights, []
    nothing = SimpleNamespace(
        log_eval=lambda *_, **__: None, log_samples=lambda *_: None, warn=print
    )
    evaluator.measure(planned, kept, nothing, "before", weights, waits=waits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engine", "most"),
    [
        ("", 0),
        ("engine: tinker", 2),
        ("engine: {use: tinker, evals_beside: 0}", 0),
        ("engine: {use: local, evals_beside: 3}", 3),
        ("engine: {use: server, base_url: 'http://127.0.0.1:1', evals_beside: 1}", 1),
    ],
)
def test_the_engine_says_how_many_and_the_plan_tells_it(
    project: Project, ptl: Ptl, engine: str, most: int
) -> None:
    recipe = RECIPE.replace("ENGINE", engine).replace("./model", "Qwen/Qwen3-8B")
    if "tinker" not in engine:
        recipe = RECIPE.replace("ENGINE", engine)
    assert project.plan(recipe).engine.beside == most
    said = ptl("plan", "mine.yaml", "--home", str(Path("home")))
    assert ("go on beside" in said.out) == bool(most), said.out


def test_evals_beside_leave_the_bar_of_what_trains_alone(project: Project) -> None:
    sft, dpo = project.plan(DEMO).stages
    told = io.StringIO()
    live = progress.Live(Lasting(told))
    live.training(dpo, 0, 8)
    bar = live.shown

    def evals() -> None:
        live.doing("evaluating nll after sft")
        live.evaluated(
            sft, sft.evals[0], "after", EvalResult({"nll": Estimate(0.5, 0.4, 0.6, 4)}, ())
        )
        live.stage_finished(sft, StageRecord("sft", "", "sft"))

    try:
        as_worker("sft", evals).result(60)
        assert live.shown is bar is not None
        assert live.status is None
    finally:
        live.close()
    lines = [line.strip() for line in told.getvalue().splitlines()]
    assert "sft: after  nll: 0.500 ±0.100 (n=4)" in lines
    assert "sft: sft done in 0 s" in lines
