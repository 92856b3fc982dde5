"""Trackers hear of whole runs what MLflow does: side by side, after a crash, of reused stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.reporting import report
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import RunRecord
from posttrain_recipes.tracking import curves, mlstore
from tests.e2e.test_run import ROOT
from tests.hearing import Listening, curve, folder_of, heard, installed
from tests.tracked import history

pytestmark = pytest.mark.usefixtures("quick_engines")

RECIPE = """\
name: heard
description: Two stages that do not need each other.
model: ptl/nano
lora: {rank: 4}
trackers: [listening]
stages:
  - name: sft
    dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 24, test_size: 8}
    method: {use: sft, learning_rate: 1e-3, batch_size: 8, max_steps: 3, epochs: 3, save_every: 1}
    eval: [{use: nll, every: 2}]
  - name: dpo
    init_from: base
    dataset: {use: jsonl, path: DATA/preferences.jsonl, limit: 12}
    method: {use: dpo, learning_rate: 5e-4, batch_size: 4, max_steps: 3, epochs: 3}
"""


class CrashError(BaseException):
    pass


class Crashing(Reporter):
    """Stands for a machine that dies after a step."""

    def __init__(self, after: int) -> None:
        self.after = after

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        if number == self.after:
            raise CrashError


@pytest.fixture(autouse=True)
def listens() -> Iterator[None]:
    with installed():
        yield


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "heard.yaml"
    path.write_text(RECIPE.replace("DATA", str(ROOT / "recipes" / "data")))
    return path


def assert_all_heard(home: Path, run: RunRecord) -> None:
    """What was told last of each step and eval is what the run and MLflow have."""
    store = mlstore.open_store(home)
    for stage in run.stages:
        kept = curves.read(home / "runs" / run.id, stage.name)
        assert kept
        for name, series in kept.items():
            assert sorted(dict(curve(stage.name, name)).items()) == series
        assert stage.tracking_id
        loss = history(store.client, stage.tracking_id, "train/loss")
        assert loss == sorted(dict(curve(stage.name, "train/loss")).items())
        told = {(e.name, e.when): e for e in heard("log_eval") if e.stage == stage.name}
        found = [(m, w) for w in ("before", "after") for m in getattr(stage, w)]
        for measured, when in found:
            assert told[measured.name, when].metrics == measured.metrics
        assert {when for _, when in told} == ({"before", "during", "after"} if found else set())
        assert [e.status for e in heard("stage_ended") if e.stage == stage.name][-1] == "finished"
        for name, value in report.spent(stage).items():
            assert curve(stage.name, name)[-1] == (stage.total_steps, value)
    assert heard("run_ended")[-1].status == "finished"
    assert f"{run.id}" in heard("run_ended")[-1].report


@pytest.mark.nightly
def test_side_by_side(recipe: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    run = ptl.run(recipe, home=home, jobs=2).record
    assert_all_heard(home, run)
    names = [name for name, _ in Listening.heard]
    assert (names[0], names[-1]) == ("run_started", "run_ended")
    (started,) = heard("run_started")
    assert started.run_id == run.id
    assert started.folder == folder_of(home, run.id)
    assert "trackers:\n- listening\n" in started.resolved_yaml
    assert {saved.stage for saved in heard("log_checkpoint")} == {"sft", "dpo"}
    # Another run reuses both stages: it is told of all of it too.
    Listening.heard.clear()
    again = ptl.run(recipe, home=home, overrides=["name=other"]).record
    assert [stage.status for stage in again.stages] == ["reused", "reused"]
    for stage in again.stages:
        kept = curves.read(home / "runs" / run.id, stage.name)
        assert curve(stage.name, "train/loss") == kept["train/loss"]
    assert heard("run_ended")[0].status == "finished"


@pytest.mark.nightly
def test_a_run_that_goes_on_is_told_from_the_first(recipe: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(CrashError):
        ptl.run(recipe, home=home, reporter=Crashing(2))
    assert heard("run_ended")[0].status == "killed"
    before = curve("sft", "train/loss")
    assert [step for step, _ in before] == [1, 2]
    Listening.heard.clear()  # as if the first try had come to tell nothing
    run = ptl.run(recipe, home=home).record
    assert heard("run_started")[0].resumed
    assert_all_heard(home, run)
    assert dict(curve("sft", "train/loss")).keys() == {1, 2, 3}
