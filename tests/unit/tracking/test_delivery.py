"""Trackers hear in order and hold nothing up, whatever they do; secrets they do not hear."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.plugin import RunStarted, StepMetrics
from posttrain_recipes.records import Message, Sample
from posttrain_recipes.tracking import delivery
from posttrain_recipes.tracking.delivery import Deliveries
from posttrain_recipes.tracking.tracker import MlflowTracker
from tests.hearing import Listening, curve, heard
from tests.tracked import recipe_run, result, sample

SECRET = "wb-0123456789-secret"


@pytest.fixture(autouse=True)
def nothing_heard() -> None:
    Listening.heard.clear()
    Listening.threads.clear()


def listening(**options: Any) -> Listening:
    return Listening(Listening.Config(**options))


def begin(told: Deliveries, **more: Any) -> None:
    words: dict[str, Any] = {
        "run_id": "a-1",
        "recipe": "a",
        "resolved_yaml": "name: a\n",
        "description": "",
        "params": {"seed": 1, "lora": {"rank": 8}},
        "tags": {"ptl.run": "a-1"},
    }
    told.run_started(**{**words, **more})


def test_they_hear_also_where_mlflow_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "a-folder"))
    tracker = MlflowTracker(tmp_path, warn=lambda text: None)
    with Deliveries([listening()], tmp_path / "trackers") as told:
        begin(told)
        with (
            recipe_run(tracker, told=told) as run,
            run.stage(name="sft", index=1, params={"lora": {"rank": 8}, "beta": 0.1}) as stage,
        ):
            assert not run.run_id
            for step in (1, 2):
                stage.log_metrics({"reward/pass@8": step / 4}, step)
            stage.log_during("held_out", result(0.5), 2)
            stage.log_eval("held_out", "after", result(0.75), 2, checkpoint_uri="x")
            stage.log_samples("held_out", "step-2", [sample("2+2", "4")], 2)
            stage.show_samples("rollouts", [sample("2+2", "4")], 2)
            stage.warn("cut")
            stage.log_checkpoint("tinker://a", None, 2)
            told.report = "# a-1"
    assert [name for name, _ in Listening.heard] == [
        *("run_started", "stage_started", "log_metrics", "log_metrics", "log_eval", "log_eval"),
        *("log_samples", "log_samples", "log_note", "log_checkpoint", "stage_ended", "run_ended"),
    ]
    assert Listening.threads == {"tracker listening"}
    (started,), (stage_started,) = heard("run_started"), heard("stage_started")
    assert started.folder == tmp_path / "trackers" / "listening"
    assert started.folder.is_dir()
    assert (started.params, started.resumed) == ({"seed": 1, "lora.rank": 8}, False)
    assert stage_started.params == {"lora.rank": 8, "beta": 0.1}
    assert curve("sft", "reward/pass@8") == [(1, 0.25), (2, 0.5)]
    during, after = heard("log_eval")
    assert (during.when, during.step, after.when) == ("during", 2, "after")
    assert after.metrics["accuracy"] == result(0.75).metrics["accuracy"]
    shown, rollouts = heard("log_samples")
    assert (shown.when, rollouts.when, rollouts.name) == ("during", "training", "rollouts")
    assert rollouts.samples == (sample("2+2", "4"),)
    assert heard("log_note")[0].warning
    (end,) = heard("run_ended")
    assert (end.status, end.error, end.report) == ("finished", "", "# a-1")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [(ValueError("gone"), "failed", "ValueError: gone"), (KeyboardInterrupt(), "killed", "")],
)
def test_they_hear_how_it_ended(
    tmp_path: Path, tracker: MlflowTracker, error: BaseException, status: str, text: str
) -> None:
    def broken() -> None:
        with Deliveries([listening()], tmp_path) as told:
            begin(told)
            with recipe_run(tracker, told=told) as run, run.stage(name="sft", index=1):
                raise error

    with pytest.raises(type(error)):
        broken()
    assert heard("stage_ended")[0].status == status
    assert (heard("run_ended")[0].status, heard("run_ended")[0].error) == (status, text)
    # The next try finds the folder.
    with Deliveries([listening()], tmp_path) as told:
        begin(told)
    assert [run.resumed for run in heard("run_started")] == [False, True]


def test_what_fails_is_told_once_for_each_kind_and_the_rest_is_heard(tmp_path: Path) -> None:
    warnings: list[str] = []
    with Deliveries([listening(fails="log_metrics")], tmp_path, warnings.append) as told:
        begin(told)
        stage = told.stage("sft", 1, {})
        for step in (1, 2, 3):
            stage.log_metrics({"loss": math.nan}, step)
        stage.note("it goes on")
        told.run_ended("finished")
    assert warnings == [
        "tracker 'listening' failed in log_metrics: ValueError: no log_metrics today",
        "tracker 'listening' has not all of the run: 3 calls failed. MLflow has it",
    ]
    assert [one.text for one in heard("log_note")] == ["it goes on"]
    assert len(heard("run_ended")) == 1


def test_one_that_cannot_begin_hears_nothing_more_and_another_of_its_kind_does(
    tmp_path: Path,
) -> None:
    warnings: list[str] = []
    both = [listening(fails="run_started"), listening(project="other")]
    with Deliveries(both, tmp_path, warnings.append) as told:
        begin(told)
        told.stage("sft", 1, {}).note("a note")
        told.run_ended("finished")
    (warning,) = warnings
    assert warning.endswith("no run_started today; nothing more is told to it, and the run goes on")
    assert sorted(run.folder.name for run in heard("run_started")) == ["listening", "listening-2"]
    assert len(heard("log_note")) == len(heard("run_ended")) == 1


def test_one_without_a_folder_fails_no_run(tmp_path: Path) -> None:
    warnings: list[str] = []
    (tmp_path / "file").write_text("no folder")
    with Deliveries([listening()], tmp_path / "file", warnings.append) as told:
        begin(told)
        told.run_ended("finished")
    (warning,) = warnings
    assert "NotADirectoryError" in warning
    assert Listening.heard == []


def test_one_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "END_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "SOON", 0.01)
    monkeypatch.setattr(delivery, "MOST_WAITING", 5)
    warnings: list[str] = []
    said: list[str] = []
    hanging, inside = threading.Event(), threading.Event()

    class Hanging(Listening):
        def hear(self, what: str, event: Any) -> None:
            """It goes on once it is let go, when another test listens."""

        def log_metrics(self, found: StepMetrics) -> None:
            inside.set()
            hanging.wait()

    slow, quick = Hanging(Hanging.Config()), listening()
    try:
        with Deliveries([slow, quick], tmp_path, warnings.append, said.append) as told:
            begin(told)
            stage = told.stage("sft", 1, {})
            stage.log_metrics({"loss": 0.0}, 0)
            assert inside.wait(10)
            for step in range(1, 9):
                stage.log_metrics({"loss": 0.0}, step)
            told.run_ended("finished")
    finally:
        hanging.set()
    assert said == ["waiting for tracker 'listening', 0 s at most"]
    first = next(text for text in warnings if "'listening' " in text)
    assert "4 were left out, as too much waited" in first
    assert "6 were not delivered, as it is busy in log_metrics; the run does not wait" in first


def test_they_hear_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    shown = Sample((Message("user", f"my key is {SECRET}"),), SECRET, SECRET, raw=SECRET)
    with Deliveries([listening()], tmp_path) as told:
        begin(
            told,
            resolved_yaml=f"key: {SECRET}",
            description=f"of {SECRET}",
            params={"a": {"b": [SECRET]}},
            tags={"t": SECRET},
        )
        stage = told.stage("sft", 1, {"key": SECRET})
        stage.log_samples("held_out", "before", [shown], 0)
        stage.show_samples("rollouts", [shown], 1)
        stage.warn(SECRET)
        stage.note(SECRET)
        told.report = SECRET
        told.run_ended("failed", ValueError(SECRET))
    assert len(Listening.heard) == 7
    assert SECRET not in repr(Listening.heard)
    assert [one.when for one in heard("log_samples")] == ["before", "training"]


def test_without_trackers_nothing_is_made_ready() -> None:
    told = Deliveries()
    assert not told
    told.stage("sft", 1, {}).log_metrics({"loss": "no number"}, 1)  # type: ignore[dict-item]


def test_a_start_can_be_made_with_what_it_has_to_have(tmp_path: Path) -> None:
    assert RunStarted(run_id="a-1", recipe="a", folder=tmp_path).params == {}
