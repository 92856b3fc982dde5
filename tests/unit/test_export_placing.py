"""A directory is there whole or not at all, and what a killed writer leaves is swept."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.cli.deploy import deploy
from posttrain_recipes.cli.export import export
from posttrain_recipes.errors import UsageError
from posttrain_recipes.exporting import placing
from posttrain_recipes.waiting import ended_politely
from tests import exported
from tests.conftest import ROOT
from tests.unit.test_export_serving import ptl

KILLED = """
import os, signal, sys
from pathlib import Path
from posttrain_recipes.exporting.placing import written
with written(Path(sys.argv[1]), Path("home")) as out:
    (out / "model.safetensors").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir()}


@pytest.mark.parametrize("there", [False, True])
def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "all" / "out"
    target.parent.mkdir()
    if there:
        target.mkdir()
    words = [sys.executable, "-c", KILLED, str(target)]
    left = subprocess.run(words, cwd=ROOT, check=False)
    assert left.returncode == -signal.SIGKILL
    (temporary,) = (target if there else target.parent).iterdir()
    assert temporary.name.startswith(placing.PREFIX), "else this test is of nothing"
    placing.new_directory(target)
    with placing.written(target, tmp_path / "home") as out:
        (out / "a").write_text("whole")
    assert names(target) == {"a"}
    assert names(target.parent) == {"out"}


def test_what_another_one_writes_and_what_is_a_persons_stays(tmp_path: Path) -> None:
    with placing.written(tmp_path / "first", tmp_path / "home") as first:
        (first / "a").write_text("first")
        mine = tmp_path / ".ptl-export-abcdefgh"
        mine.mkdir()
        (mine / "notes.txt").write_text("mine")
        (tmp_path / ".ptl-export-of-mine").mkdir()
        with placing.written(tmp_path / "second", tmp_path / "home") as second:
            (second / "a").write_text("second")
    assert (tmp_path / "first" / "a").read_text() == "first"
    assert (tmp_path / "second" / "a").read_text() == "second"
    assert names(tmp_path) == {"first", "second", mine.name, ".ptl-export-of-mine"}
    assert names(mine) == {"notes.txt"}


def test_a_directory_that_another_one_writes_into_is_there_already(tmp_path: Path) -> None:
    (target := tmp_path / "out").mkdir()
    with placing.written(target, tmp_path / "home") as out:
        with pytest.raises(UsageError, match="is there already"):
            placing.new_directory(target)
        assert out.is_dir()


def test_one_that_is_swept_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweeper is quicker once, in either of the two ways that it can be."""
    lock, held = fcntl.flock, list[Any]()

    def taken(file: Any, how: int) -> None:
        if len(held) == 0:
            held.append(open(file.name))  # noqa: SIM115
            lock(held[0], how)
        elif len(held) == 1:
            held.append(None)
            os.unlink(file.name)
        lock(file, how)

    monkeypatch.setattr(placing.fcntl, "flock", taken)
    with placing.written(tmp_path / "out", tmp_path / "home") as out:
        (out / "a").write_text("whole")
    assert len(held) == 2
    assert names(tmp_path) == {"out"}
    held[0].close()


@pytest.mark.parametrize(
    ("command", "words"), [(export, ["--merge"]), (deploy, ["--modal", "--merge"])]
)
def test_sigterm_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any, words: list[str]
) -> None:
    (folder := tmp_path / "all").mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    exported.checkpoint(tmp_path / "home", "org/base", exported.model("llama"))
    exported.run(tmp_path / "home", "org/base")
    seen = []

    def ended(adapter: Path, out: Path, dtype: str | None) -> None:
        (out / "model.safetensors").write_text("half")
        seen.append(signal.getsignal(signal.SIGTERM))
        if seen[0] is not signal.SIG_DFL:  # which would end the tests
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("posttrain_recipes.exporting.writing._merge", ended)
    result = ptl(command, tmp_path / "home", "demo-1", "out", *words)
    assert result.exit_code != 0
    assert len(seen) == 1
    assert seen[0] is not signal.SIG_DFL
    assert names(folder) == set()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_sigterm_at_once_does_not_end_what_cleans_up() -> None:
    done = []

    def works() -> None:
        with ended_politely():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("cleaned")

    with pytest.raises(KeyboardInterrupt):
        works()
    assert done == ["cleaned"]
