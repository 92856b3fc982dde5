"""Stages that do not need each other run side by side, and end as they do one after another."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.planning.plans import PlannedStage
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.running.stages import Sink
from posttrain_recipes.store import RunRecord, StageRecord, Store
from posttrain_recipes.waiting import worker
from tests import forks
from tests.e2e.test_run import ROOT, assert_same_result

pytestmark = pytest.mark.usefixtures("quick_engines")

RECIPE = """\
name: branches
model: ptl/nano
lora: {rank: 4}
stages:
  - name: sft
    dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 32}
    method: {use: sft, learning_rate: 1e-3, batch_size: 8, max_steps: 3}
  - name: mild
    init_from: sft
    dataset: {use: jsonl, path: DATA/preferences.jsonl, limit: 24}
    method: {use: dpo, beta: 0.05, learning_rate: 5e-4, batch_size: 4, max_steps: 6, save_every: 2}
    eval:
      - use: preference_accuracy
        name: tone
        dataset: {use: jsonl, path: DATA/preferences_held_out.jsonl, limit: 16}
  - name: strict
    init_from: sft
    dataset: {use: jsonl, path: DATA/preferences.jsonl, limit: 24}
    method: {use: dpo, beta: 0.5, learning_rate: 5e-4, batch_size: 4, max_steps: 6, save_every: 2}
    eval: [tone]
  - name: same
    init_from: sft
    dataset: {use: jsonl, path: DATA/preferences.jsonl, limit: 24}
    method: {use: dpo, beta: 0.5, learning_rate: 5e-4, batch_size: 4, max_steps: 6, save_every: 2}
  - name: after
    init_from: mild
    dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 16}
    method: {use: sft, learning_rate: 1e-3, batch_size: 8, max_steps: 2}
"""


class Heard(Reporter):
    """Who began and ended, in order; two stages that meet here were under way together."""

    def __init__(self, meet: frozenset[str] = frozenset()) -> None:
        self.order: list[tuple[str, str]] = []
        self.meeting = threading.Barrier(len(meet)) if meet else None
        self.meet = set(meet)

    def stage_started(self, stage: PlannedStage, record: StageRecord, count: int) -> None:
        self.order.append(("began", stage.name))

    def stage_finished(self, stage: PlannedStage, record: StageRecord) -> None:
        self.order.append(("ended", stage.name))

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        if self.meeting is not None and worker() in self.meet and number == 3:
            self.meeting.wait(timeout=60)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("branches") / "branches.yaml"
    path.write_text(RECIPE.replace("DATA", str(ROOT / "recipes" / "data")))
    return path


@pytest.fixture(scope="module")
def one_by_one(recipe: Path) -> tuple[Path, RunRecord]:
    home = recipe.parent / "one"
    with forks.engines():
        return home, ptl.run(recipe, home=home).record


def test_side_by_side_they_end_in_the_same_result(
    recipe: Path, one_by_one: tuple[Path, RunRecord]
) -> None:
    home = recipe.parent / "three"
    heard = Heard(frozenset({"mild", "strict"}))
    record = ptl.run(recipe, home=home, jobs=3, reporter=heard).record
    assert_same_result(home, record, one_by_one)
    assert heard.order.index(("began", "mild")) > heard.order.index(("ended", "sft"))
    assert heard.order.index(("began", "after")) > heard.order.index(("ended", "mild"))
    same = record.stage("same")
    assert same.status == "reused", (
        "what another stage is training is waited for, not trained twice"
    )
    for mine, theirs in zip(record.stages, one_by_one[1].stages, strict=True):
        assert mine.training.train == theirs.training.train, "each token is counted where it went"
    both = [
        sum(stage.evaluation.prefill for stage in run.stages) for run in (record, one_by_one[1])
    ]
    assert both[0] == both[1], "the eval of the weights that both start from is run once"


def test_a_signal_stops_all_of_them_and_all_go_on(
    recipe: Path, one_by_one: tuple[Path, RunRecord]
) -> None:
    home = recipe.parent / "stopped"

    class Stopping(Heard):
        def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
            super().step(number, total, metrics)
            if worker() == "mild" and number == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        ptl.run(recipe, home=home, jobs=2, reporter=Stopping(frozenset({"mild", "strict"})))
    stopped = Store(home).runs()[-1]
    assert stopped.status == "killed"
    for name in ("mild", "strict"):
        kept = stopped.stage(name)
        assert kept.resume is not None, "what was under way is saved"
        assert kept.resume.step >= 3
    assert stopped.stage("after").status == "waiting"
    record = ptl.run(recipe, home=home, jobs=2).record
    assert record.id == stopped.id
    assert_same_result(home, record, one_by_one)


def test_one_that_fails_takes_along_only_those_that_need_it(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(sink: Sink, metrics: Mapping[str, float], step: int) -> None:
        if worker() == "mild":
            raise RuntimeError("out of luck")
        log(sink, metrics, step)

    log = Sink.log
    monkeypatch.setattr(Sink, "log", failing)
    home = recipe.parent / "failing"
    with pytest.raises(RuntimeError, match="out of luck"):
        ptl.run(recipe, home=home, jobs=2, reporter=Heard())
    found = {stage.name: stage.status for stage in Store(home).runs()[-1].stages}
    assert found == {
        "sft": "finished",
        "mild": "failed",
        "strict": "finished",
        "same": "reused",
        "after": "skipped",
    }
