"""A home that cannot be written: what reads works, and what writes says where, why and what to do.

The tests may run as root, whom no mode of a file stops: the calls to the system refuse.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from posttrain_recipes.atomic import require_writable
from posttrain_recipes.engine import launch
from posttrain_recipes.engine.storage.checkpoints import (
    ADAPTER_FILE,
    DESCRIPTION,
    CheckpointRecord,
    CheckpointStore,
    parse_path,
)
from posttrain_recipes.engine.wire import AdapterConfig, RequestError
from posttrain_recipes.errors import PtlError
from posttrain_recipes.inference.conversation import _engine
from posttrain_recipes.inference.target import Target
from posttrain_recipes.tracking import mlstore
from tests.conftest import Project, Ptl
from tests.unit.test_cli import finished, keep
from tests.unit.test_secrets_told import SHOWN

FINAL, OLD = "tinker://a:train:0/sampler_weights/8", "tinker://a:train:0/weights/2"
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def save(home: Path, uri: str, value: float = 1.0) -> Path:
    """A checkpoint; its folder."""
    store, path = CheckpointStore(home / "engine"), parse_path(uri)

    def write(folder: Path) -> None:
        save_file({"b": np.ones(2), "a": np.full(3, value, np.float32)}, folder / ADAPTER_FILE)
        config = {"base_model_name_or_path": "ptl/tiny"}
        (folder / "adapter_config.json").write_text(json.dumps(config))

    made = CheckpointRecord(uri, "ptl/tiny", AdapterConfig(rank=2), 8, "2026-01-01T00:00:00+00:00")
    store.save(path, made, write, overwrite=False)
    return store.folder(path)


@pytest.fixture
def home(project: Project) -> Path:
    """A home with a run, what it ended in and a checkpoint that it needs no more."""
    record = finished()
    record.stages[0].superseded = [OLD]
    keep(project, record)
    for uri in (FINAL, OLD):
        save(project.path / ".ptl", uri)
    project.write("mine.yaml", SHOWN.replace("PATH", "chat.jsonl"))
    return project.path / ".ptl"


@contextlib.contextmanager
def frozen(home: Path, number: int) -> Iterator[None]:
    """Nothing below `home` can be written."""

    def guard(call: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def guarded(path: Any, *args: Any, **kwargs: Any) -> Any:
            named = isinstance(path, str | bytes | os.PathLike) and not kwargs.get("dir_fd")
            inside = named and Path(os.fsdecode(path)).absolute().is_relative_to(home)
            if inside and writes(*args, **kwargs):
                raise OSError(number, os.strerror(number), os.fsdecode(path))
            return call(path, *args, **kwargs)

        return guarded

    def for_writing(mode: str = "r", *_: Any, **__: Any) -> bool:
        return bool(set(mode) & set("wax+"))

    def access(path: Any, mode: int, **more: Any) -> bool:
        inside = Path(os.fsdecode(path)).absolute().is_relative_to(home)
        return real(path, mode, **more) and not (inside and mode & os.W_OK)

    real = os.access
    with pytest.MonkeyPatch.context() as patch:
        for module in (io, builtins):
            patch.setattr(module, "open", guard(module.open, for_writing))
        patch.setattr(os, "open", guard(os.open, lambda flags=0, *_, **__: bool(flags & WRITES)))
        for name in ("mkdir", "unlink", "replace", "rename", "rmdir", "chmod"):
            patch.setattr(os, name, guard(getattr(os, name), lambda *_, **__: True))
        patch.setattr(os, "access", access)
        yield


NUMBERS = [errno.EROFS, errno.EACCES]


@pytest.mark.parametrize("number", NUMBERS)
def test_what_reads_needs_no_write(ptl: Ptl, home: Path, number: int) -> None:
    with frozen(home, number):
        for words in (
            ("runs",),
            ("show", "demo-1"),
            ("compare", "demo-1"),
            ("compare", "demo-1", "-o", "c.html"),
            ("report", "demo-1", "-o", "r.md"),
            ("plan", "mine.yaml"),
            ("export", "demo-1", "out"),
            ("export", FINAL, "again"),
            ("gc", "--dry-run"),
        ):
            said = ptl(*words)
            assert said.code == 0, (words, said.err)
    assert Path("out", ADAPTER_FILE).is_file()


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("report", "demo-1"), ".ptl/runs/demo-1/"),
        (("compare", "demo-1", "--open"), ".ptl/compare.html"),
        (("serve", "--port", "0"), ".ptl/engine"),
        (("ui",), ".ptl/mlflow.db"),
        (("gc",), "engine/runs/a_train_0/weights/2"),
        (("run", "mine.yaml"), ".ptl"),
        (("preflight", "mine.yaml", "--offline"), ".ptl"),
    ],
)
def test_what_writes_says_where_it_cannot_and_what_to_do(
    ptl: Ptl, home: Path, number: int, words: tuple[str, ...], where: str
) -> None:
    if words[0] == "ui":
        (home / "mlflow.db").write_text("")
    with frozen(home, number):
        said = ptl(*words)
    told = said.out + said.err
    assert said.code in (1, 2)
    assert where in told
    assert "Errno" not in told
    assert "--port" not in told
    assert "next: " in told or "Let this user write there" in told
    assert (home / "engine/runs/a_train_0/weights/2").is_dir()


def test_chat_keeps_its_log_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Path, Path]] = []

    def start(_: object, data: Path, log: Path, **__: object) -> Any:
        seen.append((data, log))
        raise InterruptedError

    monkeypatch.setattr(launch, "start", start)
    for cold in (contextlib.nullcontext(), frozen(home, errno.EROFS)):
        with cold, pytest.raises(InterruptedError), _engine(Target("m", "m", "m"), home):
            pass
    (data, log), (data_cold, log_cold) = seen
    assert (data, log) == (home / "engine", home / "engine" / "chat.log")
    assert data_cold == home / "engine", "its checkpoints are read"
    assert not log_cold.is_relative_to(home)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_store_of_checkpoints_reads_and_says_what_it_could_not_write(
    home: Path, number: int
) -> None:
    with frozen(home, number):
        store = CheckpointStore(home / "engine")
        assert len(store.checkpoints()) == 2
        store.load(store.find(parse_path(FINAL)))
        store.sweep()
        kept = store.find(parse_path(OLD))
        with pytest.raises(RequestError, match=f"{OLD} was not deleted: {kept.folder}") as caught:
            store.delete(parse_path(OLD))
        assert caught.value.status == 507
        path = parse_path(f"{OLD}0")
        with pytest.raises(RequestError, match="was not saved") as caught:
            store.save(path, kept.record, lambda folder: None, overwrite=False)
        assert caught.value.status == 507
        assert CheckpointStore(home / "none").checkpoints() == []


def test_the_end_of_a_checkpoint_that_cannot_be_deleted_ends_no_engine(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(home / "engine")
    store.amend(parse_path(OLD), expires_at="2001-01-01T00:00:00+00:00")
    with frozen(home, errno.EROFS):
        store.sweep()
    assert "has expired and was not deleted" in caplog.text
    store.sweep()
    assert [record.path for record, _ in store.checkpoints()] == [FINAL]


def test_a_file_where_a_directory_has_to_be(ptl: Ptl, home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PtlError, match="file is a file, where a directory has to be"):
            require_writable(folder)
    said = ptl("serve", "--port", "0", "--data-dir", "file")
    assert said.code == 1
    assert "file is a file" in said.err
    assert "--port" not in said.err


# --- checkpoints that are not what was saved ------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_exported(
    ptl: Ptl, project: Project, value: float
) -> None:
    keep(project, finished())
    folder = save(project.path / ".ptl", FINAL, value)
    said = ptl("export", "demo-1", "out")
    assert said.code == 1
    assert "8/adapter_model.safetensors holds NaN or infinity, and is not exported" in said.err
    assert "why: in a" in said.err
    assert folder.is_dir()
    assert not Path("out").exists()


def test_what_is_not_verified_is_said(
    ptl: Ptl, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, **__: object) -> Any:
        raise PtlError("no engine here")

    monkeypatch.setattr(launch, "start", start)
    told = "warning: demo-1/sft is not verified: an earlier version saved it without hashes"
    for hashes in (True, False):
        if not hashes:
            file = CheckpointStore(home / "engine").folder(parse_path(FINAL)) / DESCRIPTION
            known = json.loads(file.read_text())
            del known["files"]
            file.write_text(json.dumps(known))
        for words in (("export", "demo-1", f"out-{hashes}"), ("chat", "demo-1", "-p", "x")):
            assert (told in ptl(*words).err.splitlines()) == (not hashes)


# --- databases of another MLflow -----------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True])
def test_a_newer_mlflow_is_told_of_in_the_same_words_everywhere(
    ptl: Ptl, home: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    import sqlite3

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlstore.make_quiet()
    uri = mlstore.create_database(home)
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    if given:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    told = "a newer one it seems: pip install -U mlflow"
    said = ptl("ui")
    assert said.code == 1
    assert told in said.err
    assert "db upgrade" not in said.err
    with pytest.raises(PtlError, match=told):
        mlstore.open_store(home)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite+pysqlite:///:memory:", "in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory"),
        ("sqlite:///file::memory:?cache=shared", "in memory"),
        ("sqlite://x.db", "without a file"),
        ("sqlite:///model", "it is a directory"),
    ],
)
def test_a_database_that_keeps_nothing_is_refused_at_once(
    ptl: Ptl, project: Project, monkeypatch: pytest.MonkeyPatch, uri: str, why: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    project.write("mine.yaml", SHOWN.replace("PATH", "chat.jsonl"))
    said = ptl("run", "mine.yaml")
    assert said.code == 2
    assert "is no address of MLflow" in said.err
    assert why in said.err
