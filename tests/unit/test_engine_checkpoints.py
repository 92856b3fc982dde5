"""The store: atomic, listed, restartable, and deaf to path tricks."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain_recipes.engine.checkpoints import (
    Path_,
    Record,
    RunRecord,
    Store,
    expiry,
    now,
    parse_path,
)
from posttrain_recipes.engine.wire import LoraConfig, RequestError

RUN = "0f-1:train:0"


def record(path: Path_, expires_at: str | None = None) -> Record:
    return Record(str(path), "ptl/test", LoraConfig(rank=4, seed=1), 3, now(), expires_at)


def write(folder: Path, text: str = "x") -> None:
    (folder / "adapter_model.safetensors").write_text(text)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.add_run(RunRecord(RUN, "0f-1", "ptl/test", LoraConfig(rank=4, seed=1), now()))
    return store


def test_saved_listed_read_by_another_engine_deleted(store: Store, tmp_path: Path) -> None:
    path = Path_(RUN, "weights", "first")
    store.save(path, record(path), write, overwrite=False)
    again = Store(tmp_path)
    assert again.record(path).lora == LoraConfig(rank=4, seed=1)
    assert (again.folder(path) / "adapter_model.safetensors").read_text() == "x"
    assert [r.run for r in again.runs()] == [RUN]
    assert [r.path for r, _ in again.checkpoints(RUN)] == [str(path)]
    assert [r.path for r, _ in again.checkpoints()] == [str(path)]
    again.delete(path)
    assert again.checkpoints(RUN) == []
    with pytest.raises(RequestError, match="no checkpoint"):
        store.folder(path)


def test_a_name_is_taken_once_unless_overwritten(store: Store) -> None:
    path = Path_(RUN, "weights", "first")
    store.save(path, record(path), write, overwrite=False)
    with pytest.raises(RequestError, match="exists") as caught:
        store.save(path, record(path), write, overwrite=False)
    assert caught.value.status == 409
    store.save(path, record(path), lambda folder: write(folder, "y"), overwrite=True)
    assert (store.folder(path) / "adapter_model.safetensors").read_text() == "y"
    assert len(list(store.folder(path).parent.iterdir())) == 1


def test_a_save_that_fails_leaves_nothing(store: Store) -> None:
    path = Path_(RUN, "weights", "first")

    def broken(folder: Path) -> None:
        write(folder)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        store.save(path, record(path), broken, overwrite=False)
    assert store.checkpoints() == []
    assert list((store.root / RUN.replace(":", "_") / "weights").iterdir()) == []


def test_what_has_expired_is_gone(store: Store) -> None:
    path = Path_(RUN, "sampler_weights", "old")
    store.save(path, record(path, expires_at="2001-01-01T00:00:00+00:00"), write, False)
    assert store.checkpoints() == []
    with pytest.raises(RequestError, match="expired"):
        store.folder(path)
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


def test_a_path_reads_back() -> None:
    assert str(parse_path(f"tinker://{RUN}/weights/000010")) == f"tinker://{RUN}/weights/000010"
