"""Other terminals and machines: closed streams, odd homes and addresses, broken records."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import runfile, store
from posttrain_recipes.cli import streams
from posttrain_recipes.errors import PtlError, RecipeError, UsageError
from posttrain_recipes.planning.reuse import Scope
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.running import ending
from posttrain_recipes.running.events import Reporter, patient
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import Store, default_home
from posttrain_recipes.tracking import databases, mlstore
from posttrain_recipes.tracking.tracker import MlflowTracker
from posttrain_recipes.waiting import Interrupts
from tests.conftest import ROOT, Project, Ptl

RECIPE = """\
name: demo
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft}
"""


# --- streams -------------------------------------------------------------------------------------


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_what_cannot_be_printed_ends_nothing() -> None:
    out = Lasting(Broken())
    print("step 1", file=out)
    assert out.lost == "Broken pipe"


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("closed"), KeyError("a fault")])
def test_a_reporter_that_raises_ends_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Raises(Reporter):
        def step(self, *_: Any) -> None:
            raise error

    told = patient(Raises())
    told.step(1, 2, {})
    told.step(2, 2, {})
    assert len([r for r in caplog.records if "the run goes on" in r.getMessage()]) == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", "| true"])
def test_closed_streams_give_no_traceback(tmp_path: Path, closed: str) -> None:
    command = f"'{sys.executable}' -m posttrain_recipes.cli runs {closed}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PTL_HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PTL_HOME": str(tmp_path)}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "posttrain_recipes.cli", "runs"]
        done = subprocess.run(
            command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    told, kind = done.stderr.splitlines()
    assert "No space left" in told
    assert kind == "help: ptl explain out-of-disk"


def test_a_terminal_that_was_closed_takes_what_anybody_prints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = pty.openpty()
    os.close(ours)
    with os.fdopen(theirs, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        with streams.lasting():
            print("a reward prints", flush=True)
        print("and what stays in the buffer")
        with pytest.raises(SystemExit) as left:
            streams.leave(0)
        assert left.value.code == 0


def test_sigterm_to_a_process_and_again_to_its_group_is_one() -> None:
    now = 10.0
    interrupts = Interrupts(lambda: now)
    with interrupts.installed():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)  # the third would not wait for a good moment
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.check()
        now += 1.0
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()


def test_a_run_that_is_ended_before_it_began_says_so(
    ptl: Ptl, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("posttrain_recipes.api.plan", slow)
    assert ptl("run", "mine.yaml", "--events", "events.jsonl").code == 130
    ended = json.loads(Path("events.jsonl").read_text())
    assert (ended["event"], ended["status"], ended["run"]) == ("ended", "interrupted", None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("action", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_hangup_ends_nothing(action: signal.Handlers) -> None:
    before = signal.signal(signal.SIGHUP, action)
    try:
        interrupts = Interrupts()
        with interrupts.installed():
            os.kill(os.getpid(), signal.SIGHUP)
            interrupts.check()
        assert signal.getsignal(signal.SIGHUP) is action
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_plugin_prints_is_no_part_of_json(ptl: Ptl, project: Project, install: Any) -> None:
    def noisy() -> Any:
        print("hello")
        os.write(1, b"from below\n")
        raise ImportError("no")

    install("noisy", "1", noisy)
    project.write("mine.yaml", RECIPE)
    assert json.loads(ptl("validate", "mine.yaml", "--json").out)[0]["ok"] is True


# --- homes, addresses and recipes ----------------------------------------------------------------


@pytest.mark.parametrize(
    "home", ["~nouser/x", "a?b", "a%2Fb", "a#b", "a\nb", "a\udcffb", "a" * 300, "b/" * 300, "loop"]
)
def test_a_home_that_will_not_do_is_refused_at_once(project: Project, home: str) -> None:
    Path("loop").symlink_to("loop")
    with pytest.raises(UsageError, match="is no directory for runs"):
        default_home(home)
    assert not [path for path in project.path.iterdir() if path.name.startswith("a")]


@pytest.mark.parametrize("home", ["http://host:1/x", "https://u:hunter2@h", "sqlite:///x.db", " "])
def test_an_address_is_no_home(project: Project, home: str) -> None:
    with pytest.raises(UsageError, match="and runs are kept in a directory") as caught:
        default_home(home)
    assert "hunter2" not in str(caught.value)
    assert not (project.path / home.split(":", 1)[0]).exists()


@pytest.mark.parametrize(
    "uri",
    [
        "http://",
        "http://host:port",
        "http://[::1",
        "http://host/a%2Fb",
        "http://host/?x",
        "nonsense://host",
        "sqlite:////tmp/a%2Fb/mlflow.db",
        "sqlite:////tmp/a?b/mlflow.db",
        "sqlite:////tmp/\udcff.db",
        "http://host/" + "a" * 600,
    ],
)
def test_what_is_no_address_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UsageError, match="is no address"):
        mlstore.configured_uri()


def test_a_database_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PtlError, match="Not a directory|File exists"):
        databases.check_database(f"sqlite:///{tmp_path}/file/mlflow.db")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("extends: https://a.b/c.yaml", "extends takes a file, the name of"),
        ("extends: model", "is not a file"),
    ],
)
def test_what_is_no_recipe_to_extend(ptl: Ptl, project: Project, text: str, told: str) -> None:
    project.write("mine.yaml", text)
    said = ptl("validate", "mine.yaml")
    assert said.code == 2
    assert told in said.out


def test_what_is_no_file_is_no_recipe(
    ptl: Ptl, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain_recipes.language.recipe.PIPE_S", 0.01)
    os.mkfifo("pipe.yaml")
    for path, told in (
        ("/dev/zero", "is a device"),
        ("model", "is a directory"),
        ("pipe.yaml", "nothing came through it"),
        ("a" * 300, "File name too long"),
    ):
        said = ptl("run", path)
        assert said.code == 2
        assert told in said.err


# --- records -------------------------------------------------------------------------------------


def kept(project: Project, **changes: Any) -> tuple[Store, Any, Path]:
    plan = project.plan(RECIPE)
    place = Store(default_home())
    record = new_record(plan, place.next_id(plan.name))
    with place.open(record) as directory:
        directory.save()
    path = place.path(record.id) / "run.json"
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(data))
    return place, plan, path


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": 99}, "written by a newer ptl"),
        ({"format": "1"}, "which is none"),
        ({"seed": "x"}, 'run.seed is "x", which is no whole number'),
        ({"stages": 3}, "run.stages is 3, which is no list"),
        ({"stages": [{"name": "sft"}]}, r"run.stages\[0\] lacks 'fingerprint'"),
        ({"extra": 1}, "run has 'extra'"),
    ],
)
def test_a_record_that_cannot_be_read_is_told_of_and_kept(
    ptl: Ptl, project: Project, changes: Any, why: str
) -> None:
    place, _, path = kept(project, **changes)
    before = path.read_text()
    with pytest.raises(PtlError, match=why):
        place.find("demo-1")
    assert "demo-1  unreadable" in ptl("runs").out
    assert json.loads(ptl("runs", "--json").out)[0]["status"] == "unreadable"
    for command in ("show", "compare", "report", "reproduce"):
        said = ptl(command, "demo-1")
        assert said.code == 1
        assert "cannot be read" in said.err
    assert ptl("gc").code == 1, "what it needs is not known"
    assert place.next_id("demo") == "demo-2"
    assert path.read_text() == before


def test_older_formats_are_brought_forward(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _, path = kept(project, format=1)
    data = json.loads(path.read_text())
    estimate = {"value": 1.0, "low": 0.0, "high": 2.0, "count": 3}
    data["stages"][0]["after"] = [
        {"name": "n", "eval": "n", "fingerprint": "f", "data": "d", "metrics": {"n": estimate}}
    ]
    path.write_text(json.dumps(data))
    (record,) = place.runs()
    assert record.stages[0].after[0].higher_is_better == {"n": True}
    monkeypatch.setattr(runfile, "FORMAT", 3)
    monkeypatch.setitem(runfile.MIGRATIONS, 2, lambda run: {**run, "seed": run["seed"] + 7})
    assert store.read_run(path).seed == record.seed + 7, "through both"


@pytest.mark.parametrize("status", ["running", "killed", "failed"])
def test_a_run_whose_end_was_not_written_is_ended_by_the_next_try(
    project: Project, status: str
) -> None:
    place, plan, path = kept(project, status=status)
    (run,) = place.runs()
    run.stages[0].status = "finished"
    ending.complete(plan, place, run, Reporter(), Scope())
    (ended,) = place.runs()
    assert (ended.status, ended.error) == ("finished", None)
    assert (path.parent / "report.html").is_file()
    with closing(sqlite3.connect(place.home / "mlflow.db")) as connection:
        assert connection.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
    (path.parent / "report.html").unlink()
    ending.complete(plan, place, ended, Reporter(), Scope())
    assert (path.parent / "report.html").is_file(), "killed before the report"


# --- MLflow --------------------------------------------------------------------------------------


def test_the_callers_settings_of_mlflow_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mine = f"sqlite:///{tmp_path}/mine.db"
    mlflow.set_tracking_uri(mine)
    try:
        os.environ.pop("MLFLOW_TRACKING_URI")  # mlflow wrote it there
        with MlflowTracker(tmp_path / "home") as tracker:
            assert tracker.store() is not None
            assert mlflow.get_tracking_uri() != mine
        assert mlflow.get_tracking_uri() == mine
        assert "MLFLOW_TRACKING_URI" not in os.environ
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def test_a_database_of_a_newer_mlflow_is_told_of_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlstore.make_quiet()
    mlstore.create_database(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffff'")
    said: list[str] = []
    assert MlflowTracker(tmp_path, warn=said.append).store() is None
    assert "pip install -U mlflow" in said[0]


def test_a_record_says_finished_only_once_the_report_does(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, the next try would take an older report for that of the end."""
    plan = project.plan(RECIPE)
    kept = Store(project.path / "home")
    seen: list[tuple[str, str]] = []
    with kept.open(new_record(plan, "demo-1")) as directory:
        directory.save()
        place = kept.path("demo-1")
        write = store.write_atomic

        def wrote(path: Path, text: str) -> None:
            write(path, text)
            if path.name in ("report.html", "report.md", "run.json"):
                seen.append((path.name, json.loads((place / "run.json").read_text())["status"]))

        monkeypatch.setattr(store, "write_atomic", wrote)
        ending.record(kept, directory, "finished", None, Reporter())
    assert seen == [("report.html", "running"), ("report.md", "running"), ("run.json", "finished")]
    assert "finished" in (place / "report.html").read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model: ./model", "model: ~nouser/x"),
        ("path: chat.jsonl", "path: ~nouser/x.jsonl"),
        ("use: jsonl, path: chat.jsonl", "use: huggingface, path: ~nouser/x"),
        ("method:", "renderer: {chat_template: ~nouser/x.jinja}\n    method:"),
    ],
)
def test_the_home_of_nobody_is_told_as_a_place_that_is_not_there(
    project: Project, old: str, new: str
) -> None:
    assert old in RECIPE
    with pytest.raises(RecipeError) as caught:
        project.plan(RECIPE.replace(old, new, 1))
    assert "~nouser" in str(caught.value) or "there is no" in str(caught.value)
