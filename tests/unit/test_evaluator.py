"""Evals on checkpoints: each once for the same weights, and what an interrupted one costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.planning import pricing
from posttrain_recipes.records import Checkpoint, Estimate, EvalResult, Message, Sample
from posttrain_recipes.reporting import comparisons, report
from posttrain_recipes.running.evaluation import Evaluator
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.running.limits import Spending
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import RunDirectory
from posttrain_recipes.waiting import Interrupts
from tests.conftest import Project

RECIPE = """\
name: demo
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft}
    eval: [{use: nll}]
  - name: dpo
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo}
    eval: [nll]
"""


@dataclass
class Bench:
    """An evaluator of a plan whose one eval takes ten tokens and may be interrupted."""

    project: Project
    fails: int = 0
    asked: int = 0
    cut: int = 0
    notes: tuple[str, ...] = ()
    heard: list[str] = field(default_factory=list)
    noted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = self.project.plan(RECIPE)
        self.record = new_record(self.plan, "demo-1")
        prices = pricing.load(self.project.path)
        self.spending = Spending(self.plan, self.record, prices, Interrupts())
        self.directory = RunDirectory(self.project.path / "runs" / "demo-1", self.record)
        self.stages = self.plan.stages
        vars(self.stages[0].evals[0].eval)["evaluate"] = self._evaluate

    def evaluator(self) -> Evaluator:
        reporter = Reporter()
        reporter.doing = self.heard.append  # type: ignore[method-assign]
        reporter.note = self.noted.append  # type: ignore[method-assign]
        reporter.warning = self.heard.append  # type: ignore[method-assign]
        serving: Any = SimpleNamespace(sampler=lambda _: None, renderer=lambda *_: None, wait=None)
        return Evaluator(self.directory, serving, reporter, self.spending, Path)

    def measure(self, evaluator: Evaluator, stage: int, when: Any, weights: Checkpoint) -> None:
        planned, kept = self.stages[stage], self.record.stages[stage]
        setattr(kept, "start" if when == "before" else "checkpoint", weights)
        warned = self.heard.append
        tracked: Any = SimpleNamespace(log_eval=_ignore, log_samples=_ignore, warn=warned)
        evaluator.measure(planned, kept, tracked, when, weights)

    def _evaluate(self, context: Any) -> EvalResult:
        self.asked += 1
        self.spending.meter._add(self.spending.meter._target, prefill=10)
        if self.asked <= self.fails:
            raise KeyboardInterrupt
        samples = tuple(
            Sample((Message("user", "?"),), "reply", truncated=i < self.cut) for i in range(10)
        )
        metrics = {"nll": Estimate(0.5, 0.4, 0.6, 1)}
        return EvalResult(metrics, samples, {"nll": False}, notes=self.notes)


def _ignore(*_: Any, **__: Any) -> None:
    pass


TRAINED = Checkpoint("./model", "tinker://a/weights/8", "tinker://a/sampler_weights/8", 8)


def test_what_is_known_after_the_stage_above_is_not_measured_again(project: Project) -> None:
    bench = Bench(project)
    first = bench.evaluator()
    bench.measure(first, 0, "before", Checkpoint("./model"))
    bench.measure(first, 0, "after", TRAINED)
    assert bench.asked == 2
    bench.measure(bench.evaluator(), 1, "before", TRAINED)  # another try: nothing is in memory
    assert bench.asked == 2
    assert bench.noted == ["nll before dpo: known from after sft"]
    sft, dpo = bench.record.stages
    assert dpo.before[0].metrics == sft.after[0].metrics
    path = bench.directory.path / "samples" / "dpo" / "nll-before.jsonl"
    assert path.read_text() == (path.parents[1] / "sft" / "nll-after.jsonl").read_text()
    other = Checkpoint("./model", "tinker://b/weights/8", "tinker://b/sampler_weights/8", 8)
    bench.measure(bench.evaluator(), 1, "after", other)
    assert bench.asked == 3, "other weights"


def test_an_interrupted_eval_is_paid_for_and_no_part_of_what_the_eval_takes(
    project: Project,
) -> None:
    bench = Bench(project, fails=1)
    with pytest.raises(KeyboardInterrupt):
        bench.measure(bench.evaluator(), 0, "before", Checkpoint("./model"))
    kept = bench.record.stages[0]
    assert (kept.evaluation.usage.tokens, kept.lost.usage.tokens) == (0, 10)
    bench.measure(bench.evaluator(), 0, "before", Checkpoint("./model"))
    assert (kept.evaluation.usage.tokens, kept.lost.usage.tokens) == (10, 10)
    assert kept.spent.usage.tokens == 10
    assert bench.spending.tokens == 20, "a budget holds for all that was sent"


def test_what_an_eval_leaves_out_stands_below_every_table(project: Project) -> None:
    bench = Bench(project, notes=("3 of 9 records are left out",))
    bench.measure(bench.evaluator(), 0, "before", Checkpoint("./model"))
    bench.measure(bench.evaluator(), 0, "after", TRAINED)
    bench.measure(bench.evaluator(), 1, "before", TRAINED)  # known from after the stage above
    told = "nll: 3 of 9 records are left out."
    assert bench.record.stages[1].before[0].notes == list(bench.notes)
    assert report.notes(report.rows(bench.record)).count(told) == 1
    group = comparisons.ArmGroup("all", {"a": {"": bench.record.stages[0]}})
    assert told in comparisons.notes(comparisons.tables(group, lambda *_: {}))


def test_replies_that_were_cut_are_told(project: Project) -> None:
    bench = Bench(project, cut=1)
    bench.measure(bench.evaluator(), 0, "before", Checkpoint("./model"))
    assert bench.record.stages[0].warnings == [], "one of ten is no warning"
    bench.cut = 5
    bench.measure(bench.evaluator(), 0, "after", TRAINED)
    told = "nll after: 5 of 10 replies were cut at max_tokens, and have no end: raise max_tokens"
    assert bench.record.stages[0].warnings == [told]
    assert bench.heard[-2:] == [told, f"stage 'sft', {told}"]
