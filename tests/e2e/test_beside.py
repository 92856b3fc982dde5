"""Evals of a stage go on while the next one trains, and find what they find without that."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning.plans import PlannedStage
from posttrain_recipes.records import EvalResult
from posttrain_recipes.running.evaluation import Evaluator
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import Measured, RunRecord, StageRecord, Store, load_samples
from posttrain_recipes.tracking.runs import RecipeRun
from posttrain_recipes.waiting import worker
from tests import forks
from tests.e2e.test_run import ROOT, assert_same_result

pytestmark = pytest.mark.usefixtures("quick_engines")

RECIPE = """\
name: three
model: ptl/nano
engine: {use: local, evals_beside: BESIDE}
lora: {rank: 4}
stages:
  - name: sft
    dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 32}
    method: {use: sft, learning_rate: 1e-3, batch_size: 8, max_steps: 3}
    eval:
      - use: preference_accuracy
        name: tone
        dataset: {use: jsonl, path: DATA/preferences_held_out.jsonl, limit: 8}
      - {use: generations, name: seen, max_tokens: 4, temperature: 1.0,
         dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 4}}
  - name: dpo
    dataset: {use: jsonl, path: DATA/preferences.jsonl, limit: 16}
    method: {use: dpo, learning_rate: 5e-4, batch_size: 4, max_steps: 4, save_every: 2}
    eval: [tone]
  - name: more
    dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 16}
    method: {use: sft, learning_rate: 1e-3, batch_size: 8, max_steps: 2}
    eval: [seen]
"""


class Heard(Reporter):
    """What happened in which order, and whether dpo has begun to train."""

    def __init__(self, at_step: Callable[[], None] = lambda: None) -> None:
        self.told: list[str] = []
        self.trains = threading.Event()
        self.at_step = at_step
        self.stage = ""

    def stage_started(self, stage: PlannedStage, record: StageRecord, count: int) -> None:
        self.stage = stage.name
        self.told.append(f"{stage.name} begins")

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        if self.stage == "dpo" and not self.trains.is_set():
            self.told.append("dpo trains")
            self.trains.set()
            self.at_step()

    def stage_finished(self, stage: PlannedStage, record: StageRecord) -> None:
        self.told.append(f"{stage.name} ends")

    def stage_failed(self, stage: PlannedStage, record: StageRecord) -> None:
        self.told.append(f"{stage.name} fails")


def recipe(folder: Path, beside: int) -> Path:
    path = folder / "three.yaml"
    text = RECIPE.replace("DATA", str(ROOT / "recipes" / "data"))
    path.write_text(text.replace("BESIDE", str(beside)))
    return path


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    folder = tmp_path_factory.mktemp("one")
    with forks.engines():
        return folder / "home", ptl.run(recipe(folder, 0), home=folder / "home").record


def before_evaluating(
    monkeypatch: pytest.MonkeyPatch, what: str, call: Callable[[Evaluator], None]
) -> None:
    """Have `call` called before the eval that is told of as `what`."""
    evaluate = Evaluator._evaluate

    def evaluating(evaluator: Evaluator, *args: Any) -> EvalResult:
        if args[2] == what:
            call(evaluator)
        return evaluate(evaluator, *args)

    monkeypatch.setattr(Evaluator, "_evaluate", evaluating)


def stored(home: Path, record: RunRecord) -> list[object]:
    """What the run keeps of its evals by stage: results to float noise, tokens, every sample."""
    run = home / "runs" / record.id

    def results(found: Sequence[Measured]) -> list[object]:
        return [
            (m.name, m.fingerprint, name, round(one.value, 5), one.count)
            for m in found
            for name, one in m.metrics.items()
        ]

    return [
        (
            stage.status,
            results(stage.before),
            results(stage.after),
            [load_samples(run, stage.name, m.name, "before") for m in stage.before],
            [load_samples(run, stage.name, m.name, "after") for m in stage.after],
        )
        for stage in record.stages
    ]


def spent(record: RunRecord) -> int:
    """Tokens of all evals together."""
    return sum(stage.evaluation.usage.tokens for stage in record.stages)


@pytest.mark.nightly
def test_the_next_stage_trains_meanwhile_and_the_numbers_are_the_same(
    tmp_path: Path, one_by_one: tuple[Path, RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    points: dict[str, set[int]] = {}

    def noting(run: RecipeRun, key: str, step: int) -> bool:
        points.setdefault(key, set()).add(step)
        return is_new(run, key, step)

    is_new = RecipeRun.is_new
    monkeypatch.setattr(RecipeRun, "is_new", noting)

    def meet(_: Evaluator) -> None:
        assert worker() == "sft"
        assert heard.trains.wait(60), "dpo waits for the evals of sft"

    before_evaluating(monkeypatch, "tone after sft", meet)
    home = tmp_path / "home"
    record = ptl.run(recipe(tmp_path, 2), home=home, reporter=heard).record
    assert heard.told.index("dpo trains") < heard.told.index("sft ends")
    assert record.status == "finished"
    assert stored(home, record) == stored(*one_by_one)
    for mine, theirs in zip(record.stages, one_by_one[1].stages, strict=True):
        assert replace(mine.evaluation, seconds=0) == replace(theirs.evaluation, seconds=0)
    assert_same_result(home, record, one_by_one)
    assert points["eval/tone/preference_accuracy"] == {0, 1, 2}


@pytest.mark.nightly
def test_an_eval_that_fails_beside_ends_the_run_and_keeps_what_trained(
    tmp_path: Path, one_by_one: tuple[Path, RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()

    def fail(_: Evaluator) -> None:
        assert heard.trains.wait(60)
        raise PtlError("the judge is ill")

    home = tmp_path / "home"
    with monkeypatch.context() as patch:
        before_evaluating(patch, "tone after sft", fail)
        with pytest.raises(PtlError, match="the judge is ill"):
            ptl.run(recipe(tmp_path, 1), home=home, reporter=heard)
    failed = Store(home).runs()[-1]
    assert failed.status == "failed"
    sft, dpo, more = failed.stages
    assert (sft.status, sft.error) == ("trained", "the judge is ill")
    assert dpo.status == "finished"
    assert (more.status, more.error) == ("skipped", "needs 'sft', which did not finish")
    assert "sft fails" in heard.told

    again = Heard()
    record = ptl.run(recipe(tmp_path, 1), home=home, reporter=again).record
    assert record.id == failed.id
    assert [stage.status for stage in record.stages] == ["finished"] * 3
    assert not again.trains.is_set(), "dpo is not trained again"
    assert_same_result(home, record, one_by_one)
    assert stored(home, record) == stored(*one_by_one)
    assert spent(record) == spent(one_by_one[1]), "dpo paid for what sft did not find out"


@pytest.mark.nightly
def test_a_signal_stops_both_and_only_what_is_missing_is_done_again(
    tmp_path: Path, one_by_one: tuple[Path, RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(lambda: os.kill(os.getpid(), signal.SIGINT))

    def hang(evaluator: Evaluator) -> None:
        evaluator.serving.wait(Future())

    home = tmp_path / "home"
    with monkeypatch.context() as patch:
        before_evaluating(patch, "seen after sft", hang)
        with pytest.raises(KeyboardInterrupt):
            ptl.run(recipe(tmp_path, 1), home=home, reporter=heard)
    stopped = Store(home).runs()[-1]
    sft, dpo, more = stopped.stages
    assert stopped.status == "killed"
    assert (sft.status, [m.name for m in sft.after]) == ("trained", ["tone"])
    assert (dpo.status, more.status) == ("killed", "waiting")
    assert dpo.resume is not None, "what trained beside is saved"

    again = Heard()
    record = ptl.run(recipe(tmp_path, 1), home=home, reporter=again).record
    assert record.id == stopped.id
    assert_same_result(home, record, one_by_one)
    assert stored(home, record) == stored(*one_by_one)
    assert record.stage("sft").training.train == one_by_one[1].stage("sft").training.train
