"""The store: atomic, listed, restartable, and deaf to path tricks."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from posttrain_recipes.engine.storage.checkpoints import (
    CheckpointPath,
    CheckpointRecord,
    CheckpointStore,
    TrainingRun,
    check_name,
    expiry,
    now,
    parse_path,
)
from posttrain_recipes.engine.wire import AdapterConfig, RequestError
from tests.conftest import ROOT

RUN = "0f-1:train:0"


def record(path: CheckpointPath, expires_at: str | None = None) -> CheckpointRecord:
    return CheckpointRecord(
        str(path), "ptl/test", AdapterConfig(rank=4, seed=1), 3, now(), expires_at
    )


def write(folder: Path, text: str = "x") -> None:
    (folder / "adapter_model.safetensors").write_text(text)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path)
    store.add_run(TrainingRun(RUN, "0f-1", "ptl/test", AdapterConfig(rank=4, seed=1), now()))
    return store


def test_saved_listed_read_by_another_engine_deleted(
    store: CheckpointStore, tmp_path: Path
) -> None:
    path = CheckpointPath(RUN, "weights", "first")
    store.save(path, record(path), write, overwrite=False)
    again = CheckpointStore(tmp_path)
    assert again.record(path).lora == AdapterConfig(rank=4, seed=1)
    assert (again.folder(path) / "adapter_model.safetensors").read_text() == "x"
    assert [r.run for r in again.runs()] == [RUN]
    assert [r.path for r, _ in again.checkpoints(RUN)] == [str(path)]
    assert [r.path for r, _ in again.checkpoints()] == [str(path)]
    again.delete(path)
    assert again.checkpoints(RUN) == []
    with pytest.raises(RequestError, match="no checkpoint"):
        store.folder(path)


def test_a_name_is_taken_once_unless_overwritten(store: CheckpointStore) -> None:
    path = CheckpointPath(RUN, "weights", "first")
    store.save(path, record(path), write, overwrite=False)
    with pytest.raises(RequestError, match="exists") as caught:
        store.save(path, record(path), write, overwrite=False)
    assert caught.value.status == 409
    store.save(path, record(path), lambda folder: write(folder, "y"), overwrite=True)
    assert (store.folder(path) / "adapter_model.safetensors").read_text() == "y"
    assert len(list(store.folder(path).parent.iterdir())) == 1


def safetensors_is_full(folder: Path) -> None:
    raise SafetensorError("Error while serializing: No space left on device (os error 28)")


def disk_is_full(folder: Path) -> None:
    write(folder)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "x"))


@pytest.mark.parametrize("broken", [disk_is_full, safetensors_is_full])
def test_a_full_disk_is_told_with_its_path_and_leaves_nothing(
    store: CheckpointStore, broken: Callable[[Path], None]
) -> None:
    path = CheckpointPath(RUN, "weights", "first")
    with pytest.raises(RequestError, match="No space left on device") as caught:
        store.save(path, record(path), broken, overwrite=False)
    assert caught.value.status == 507
    place = store.root / RUN.replace(":", "_") / "weights"
    assert str(place / "first") in str(caught.value)
    assert store.checkpoints() == []
    assert list(place.iterdir()) == []


def test_a_disk_that_is_full_for_real(tmp_path: Path) -> None:
    """A limit on the size of a file that the process may write stands for a quota."""
    code = f"""
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests.unit.test_engine_checkpoints import *
store = CheckpointStore(Path({str(tmp_path)!r}))
store.add_run(TrainingRun(RUN, "0f-1", "b", AdapterConfig(), now()))
path = CheckpointPath(RUN, "weights", "big")
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
from safetensors.numpy import save_file
import numpy as np
for write in (lambda folder: (folder / "a.bin").write_bytes(bytes(100_000)),
              lambda folder: save_file({{"a": np.zeros(100_000)}}, folder / "a.safetensors")):
    try:
        store.save(path, record(path), write, overwrite=False)
    except RequestError as error:
        assert error.status == 507 and str(store.root) in str(error), error
    else:
        sys.exit("it was saved")
assert store.checkpoints() == []
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_was_left_half_written_is_removed_at_the_next_start(store: CheckpointStore) -> None:
    path = CheckpointPath(RUN, "weights", "first")
    store.save(path, record(path), write, overwrite=False)
    place = store.folder(path).parent
    (place / ".new-x1").mkdir()
    (place / ".del-x1").mkdir()
    aside = place / ".old-x1"
    aside.mkdir()
    os.replace(place / "first", aside / "checkpoint")  # killed between the two renames
    assert store.checkpoints() == []
    again = CheckpointStore(store.root.parent)
    assert [r.path for r, _ in again.checkpoints()] == [str(path)]
    assert [p.name for p in place.iterdir()] == ["first"]


def test_an_engine_that_starts_leaves_the_work_of_another_alone(store: CheckpointStore) -> None:
    path = CheckpointPath(RUN, "weights", "first")

    def slow(folder: Path) -> None:
        CheckpointStore(store.root.parent)  # starts meanwhile
        write(folder)

    store.save(path, record(path), slow, overwrite=False)
    assert [r.path for r, _ in store.checkpoints()] == [str(path)]


def test_a_damaged_checkpoint_is_told_with_its_path_and_can_be_deleted(
    store: CheckpointStore,
) -> None:
    good, bad = CheckpointPath(RUN, "weights", "good"), CheckpointPath(RUN, "weights", "bad")
    for path in (good, bad):
        store.save(path, record(path), write, overwrite=False)
    with pytest.raises(RequestError, match="adapter_model.safetensors cannot be read"):
        store.load(store.find(good))  # "x" is no safetensors
    (store.folder(good) / "adapter_model.safetensors").unlink()
    with pytest.raises(RequestError, match="No such file") as caught:
        store.load(store.find(good))
    assert caught.value.status == 422
    for text in ("{", "[]", '{"path": 1}', ""):
        (store.root / "0f-1_train_0/weights/bad/checkpoint.json").write_text(text)
        with pytest.raises(RequestError, match=r"bad/checkpoint.json cannot be read"):
            store.folder(bad)
        assert [r.path for r, _ in store.checkpoints()] == [str(good)]
        store.sweep()
    store.delete(bad)
    assert sorted(p.name for p in store.folder(good).parent.iterdir()) == ["good"]
    (store.root / "0f-1_train_0/run.json").write_text("?")
    assert store.runs() == []


def test_what_has_expired_is_gone(store: CheckpointStore) -> None:
    path = CheckpointPath(RUN, "sampler_weights", "old")
    store.save(path, record(path, expires_at="2001-01-01T00:00:00+00:00"), write, False)
    assert store.checkpoints() == []
    with pytest.raises(RequestError, match="expired"):
        store.folder(path)
    with pytest.raises(RequestError, match="expired"):
        store.delete(path)
    kept = CheckpointPath(RUN, "sampler_weights", "new")
    store.save(kept, record(kept, expires_at="2999-01-01T00:00:00+00:00"), write, False)
    store.sweep()
    assert [p.name for p in store.folder(kept).parent.iterdir()] == ["new"]
    assert expiry(None) is None
    with pytest.raises(RequestError, match="ttl_seconds"):
        expiry(10)


@pytest.mark.parametrize(
    "text",
    [
        "tinker://../../etc/weights/passwd",
        f"tinker://{RUN}/weights/..",
        f"tinker://{RUN}/weights/.hidden",
        f"tinker://{RUN}/weights/a/b",
        f"tinker://{RUN}/weights/a\x00b",
        f"tinker://{RUN}/weights/",
        f"tinker://{RUN}/weights/{'n' * 129}",
        f"tinker://{RUN}/../weights/a",
        f"tinker://{RUN}/runs/a",
        "tinker://a_b:train:0/weights/a",
        "tinker://x/weights/a",
        f"/{RUN}/weights/a",
        "",
    ],
)
def test_path_tricks_are_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_path(text)
    assert caught.value.status == 422


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("half", f"give what the save returned, tinker://{RUN}/weights/half"),
        ("weights/half", f"give what the save returned, tinker://{RUN}/weights/half"),
        ("sampler_weights/a", f"give what the save returned, tinker://{RUN}/sampler_weights/a"),
        (f"tinker://{RUN}/weights/a/b", "a NAME has no '/'"),
        ("/home/me/checkpoint", "it should read tinker://RUN/weights/NAME"),
        ("tinker://RUN/half", "it should read tinker://RUN/weights/NAME"),
    ],
)
def test_what_is_no_path_is_told_with_what_to_give(text: str, instead: str) -> None:
    with pytest.raises(RequestError, match=re.escape(instead)):
        parse_path(text, RUN)


def test_a_name_with_a_slash_is_refused_before_it_is_saved() -> None:
    with pytest.raises(RequestError, match="no '/', as a path of a checkpoint has three parts"):
        check_name("run-1/step-10")


def test_a_path_reads_back() -> None:
    assert str(parse_path(f"tinker://{RUN}/weights/000010")) == f"tinker://{RUN}/weights/000010"
