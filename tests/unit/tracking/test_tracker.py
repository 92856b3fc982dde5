"""Where tracking writes to, and that a store which fails takes nothing else down."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from posttrain_recipes.cli.ui import ui
from posttrain_recipes.tracking import mlruns
from posttrain_recipes.tracking.runs import RecipeRun, StageRun
from posttrain_recipes.tracking.tracker import MlflowTracker
from tests.conftest import ROOT
from tests.tracked import history, recipe_run, result, sample

# --- the store -----------------------------------------------------------------------------------

CREATE = """
import sys
from pathlib import Path
from posttrain_recipes.tracking import mlstore
mlstore.make_quiet()
mlstore.create_database(Path(sys.argv[1]))
"""


def test_processes_that_meet_on_a_missing_store_build_it_once(tmp_path: Path) -> None:
    home = tmp_path / ".ptl"
    home.mkdir()
    (home / ".mlflow.db.999-draft").write_text("of a process that was killed")
    command = [sys.executable, "-c", CREATE, str(home)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outcomes = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert outcomes == [("", 0)] * 4
    assert sorted(path.name for path in home.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    connection = sqlite3.connect(home / "mlflow.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    connection.close()
    assert ("posttrain_recipes", (home / "artifacts").as_uri()) in rows


def test_the_store_opens_in_the_background(home: Path) -> None:
    tracker = MlflowTracker(home)
    tracker.start()
    tracker.start()
    with recipe_run(tracker) as run:
        assert run.run_id
    # mlflow would leave its setting there, where the next tracker took it for the user's.
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert tracker.uri == f"sqlite:///{home}/mlflow.db"


def test_an_own_experiment(home: Path) -> None:
    tracker = MlflowTracker(home, experiment="mine")
    store = tracker.store()
    assert store is not None
    assert store.client.get_experiment(store.experiment_id).name == "mine"
    store.client.delete_experiment(store.experiment_id)
    with recipe_run(MlflowTracker(home, experiment="mine")) as run:
        assert run.experiment_id == store.experiment_id


def test_the_environment_names_the_store(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{home}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracker = MlflowTracker(tmp_path / "unused")
    assert tracker.uri == uri
    with recipe_run(tracker) as run:
        assert run.run_id
    assert not (tmp_path / "unused").exists()


def test_secrets_stay_out(
    tracker: MlflowTracker, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-very-secret")
    monkeypatch.setenv("MAX_TOKENS_NOTE", "not secret at all")
    with recipe_run(
        tracker,
        params={"key": "tml-very-secret", "note": "not secret at all"},
        tags={"url": "postgresql://me:hunter2@host/db"},
        resolved_yaml="key: tml-very-secret",
    ) as run:
        pass
    logged = client.get_run(run.run_id).data
    assert logged.params == {"key": "***", "note": "not secret at all"}
    assert logged.tags["url"] == "postgresql://***@host/db"
    assert Path(client.download_artifacts(run.run_id, "recipe.yaml")).read_text() == "key: ***"


# --- when tracking fails -------------------------------------------------------------------------


def test_what_fails_is_reported_once_and_written_later(
    tracker: MlflowTracker, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    with recipe_run(tracker) as run, run.stage(name="sft", index=1) as stage:
        with monkeypatch.context() as broken:

            def refuse(*args: Any, **kwargs: Any) -> None:
                raise ConnectionError("the disk is full")

            for call in ("log_batch", "set_tag", "log_inputs", "log_text"):
                broken.setattr(type(client), call, refuse)
            for step in range(1, 31):
                stage.log_metrics({"train/loss": float(step)}, step)
            stage.flush()
            stage.log_dataset("chat", "chat.jsonl", "ab")
            stage.log_checkpoint("tinker://retry", None, 30)
            stage.log_eval("qa", "after", result(0.5), 30)
            stage.log_samples("qa", "after", [sample("2 + 2?", "4")], 30)
        assert history(client, stage.run_id, "train/loss") == []
        stage.flush()
        assert history(client, stage.run_id, "train/loss") == [(s, float(s)) for s in range(1, 31)]
    child = client.get_run(stage.run_id)
    assert len(child.outputs.model_outputs) == 1
    assert len(child.inputs.dataset_inputs) == 1
    assert child.data.metrics["eval/qa/accuracy"] == 0.5
    assert client.get_run(run.run_id).data.metrics["eval/qa/accuracy"] == 0.5
    failures = [problem for problem in tracker.problems if "the disk is full" in problem]
    assert len(failures) == len(set(failures))
    assert "MLflow: could not log metrics: the disk is full" in failures
    assert len([r for r in caplog.records if "could not log metrics" in r.message]) == 1


def test_what_stays_lost_is_said(
    tracker: MlflowTracker, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlruns, "MAX_PENDING", 3)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("gone")

    with (
        recipe_run(tracker) as run,
        run.stage(name="sft", index=1) as stage,
        monkeypatch.context() as broken,
    ):
        for call in ("log_batch", "set_terminated"):
            broken.setattr(type(client), call, refuse)
        for step in range(1, 101):
            stage.log_metrics({"train/loss": 1.0}, step)
        stage.close("FINISHED")
    assert any("records of sft_then_dpo-1/1-sft: they are lost" in p for p in tracker.problems)
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_what_mlflow_refuses_for_good_holds_nothing_up(tracker: MlflowTracker, client: Any) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    def refuse(_: Any) -> None:
        raise MlflowException("never", INVALID_PARAMETER_VALUE)

    with recipe_run(tracker) as run:
        run.write("do the impossible", refuse)
        run.set_tags({"after": "it"})
    assert client.get_run(run.run_id).data.tags["after"] == "it"
    assert "MLflow: could not do the impossible: never" in tracker.problems


def test_without_a_store_everything_else_works(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database")
    tracker = MlflowTracker(tmp_path)
    tracker.start()
    assert tracker.mark_dead_runs() == []
    with recipe_run(tracker) as run, run.stage(name="sft", index=1) as stage:
        stage.log_dataset("chat", "chat.jsonl", "ab")
        stage.log_metrics({"train/loss": 1.0}, 1)
        stage.log_checkpoint("tinker://x", None, 1)
        stage.log_eval("qa", "before", result(0.5), 0)
        stage.log_samples("qa", "before", [sample("2 + 2?", "4")], 0)
        stage.flush()
        run.summary("done")
        assert (run.run_id, stage.run_id) == ("", "")
    assert len(tracker.problems) == 1
    assert "nothing is tracked" in tracker.problems[0]


def test_metrics_from_several_threads_all_arrive(
    opened: tuple[RecipeRun, StageRun], client: Any
) -> None:
    _, stage = opened

    def work(name: str) -> None:
        for step in range(1, 41):
            stage.log_metrics({f"{name}/x": 1.0}, step)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stage.flush()
    for i in range(4):
        assert len(history(client, stage.run_id, f"t{i}/x")) == 40


# --- ptl ui --------------------------------------------------------------------------------------


def test_ui_only_names_a_server_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    outcome = CliRunner().invoke(ui, [])
    assert outcome.exit_code == 0
    page = "http://mlflow.example:5000/#/experiments?workflowType=machine_learning\n"
    assert outcome.output == page


def test_ui_says_when_there_are_no_runs(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(ui, ["--home", str(tmp_path)])
    assert outcome.exception is not None
    assert "no runs" in str(outcome.exception)


def test_ui_help_and_tracking_import_no_mlflow() -> None:
    code = (
        "import sys, posttrain_recipes.tracking.tracker; from posttrain_recipes.cli.ui import ui;"
        "ui(['--help'], standalone_mode=False); assert 'mlflow' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
