"""A disk without space: each command says where it could not write and what to free, and what
frees space works."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes import store
from posttrain_recipes.engine.storage import files
from posttrain_recipes.errors import PtlError, writing
from posttrain_recipes.running import collect, making
from posttrain_recipes.tracking import mlstore
from posttrain_recipes.tracking.curves import CurveWriter
from tests.conftest import Project, Ptl


def full(*_: Any, **__: Any) -> Any:
    # As `write` raises it: without the file's name.
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("init", "there"), "there/recipe.yaml"),
        (("schema", "-o", "s.json"), "s.json"),
        (("plugins", "new", "method", "mine", "there"), "there/pyproject.toml"),
    ],
)
def test_a_command_says_where_it_could_not_write(
    ptl: Ptl, project: Project, monkeypatch: pytest.MonkeyPatch, words: Any, where: str
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    said = ptl(*words)
    assert said.code == 1
    assert f"error: {where} cannot be written" in said.err
    assert "why: No space left on device" in said.err
    assert "'ptl gc' deletes checkpoints" in said.err
    assert not (project.path / where).exists(), "or a second try would be refused"
    assert [p for p in project.path.rglob("*") if p.name.startswith(f".{Path(where).name}")] == []


def test_what_a_run_keeps_says_where_it_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store.Store(tmp_path)
    kept.next_id("demo")
    curves = CurveWriter(tmp_path, "sft")
    curves._file = SimpleNamespace(write=full, close=full)  # type: ignore[assignment]
    with pytest.raises(PtlError, match=r"curves/sft.jsonl cannot be written"):
        curves.add(1, {"loss": 1.0})
    curves.close()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PtlError, match=r"made/batches/000001.jsonl cannot be written"):
        making.Made(tmp_path / "made").write(1, [])
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(PtlError, match="made cannot be written"):
        making.Made(tmp_path / "made").finish({})


def test_a_run_that_could_not_begin_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store.Store(tmp_path)
    record: Any = SimpleNamespace(id=kept.next_id("demo"), order=1)
    opened = Path.open

    def open_full(path: Path, *args: Any, **kwargs: Any) -> Any:
        return full() if path.name == "lock" else opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(PtlError, match=r"demo-1/lock cannot be written"), kept.open(record):
        pass
    assert not kept.path("demo-1").exists()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "name a place where this user may write"),
        (errno.EACCES, "name a place where this user may write"),
        (errno.EIO, None),
    ],
)
def test_what_to_do_depends_on_what_is_wrong(number: int, hint: str | None) -> None:
    with pytest.raises(PtlError) as caught, writing(Path("a/b")):
        raise OSError(number, os.strerror(number))
    assert caught.value.what == "a/b cannot be written"
    assert caught.value.why == os.strerror(number)
    assert (caught.value.hint or "").startswith(hint or "")
    assert bool(caught.value.hint) == bool(hint)


def test_a_checkpoint_is_deleted_where_nothing_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "file").write_text("x")
    monkeypatch.setattr("tempfile.mkdtemp", full)
    files.remove(folder)
    assert not folder.exists()


def test_gc_reads_what_is_tracked_without_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite needs space to open a database; gc is what makes some."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracked = mlstore.open_store(tmp_path)
    run = tracked.client.create_run(tracked.experiment_id)
    tracked.client.create_logged_model(
        tracked.experiment_id,
        source_run_id=run.info.run_id,
        params={"checkpoint_uri": "tinker://a"},
    )
    named = collect.tracked_uris(tmp_path)
    assert named == {"tinker://a"}
    log = tmp_path / f"{mlstore.DATABASE}-wal"
    tracked.client._tracking_client.store.engine.dispose()
    log.unlink(missing_ok=True)
    before = (tmp_path / mlstore.DATABASE).read_bytes()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    monkeypatch.setattr(mlstore, "open_store", full)
    monkeypatch.chdir(tmp_path)
    there = sorted(path.name for path in tmp_path.iterdir())
    assert collect.tracked_uris(tmp_path) == named
    assert (tmp_path / mlstore.DATABASE).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    log.write_text("pages that are not in the database yet")
    with pytest.raises(PtlError, match="none is deleted") as caught:
        collect.tracked_uris(tmp_path)
    assert caught.value.hint == "free a little space by hand, and try again"
