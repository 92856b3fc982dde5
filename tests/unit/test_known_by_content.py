"""Weights are known by what is in their files: other bytes, and other places, are not served."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from posttrain_recipes.engine.core import queries
from posttrain_recipes.engine.core.registry import State
from posttrain_recipes.engine.core.sampling import Sampling
from posttrain_recipes.engine.core.transfers import CopyWeights, Signer, Transfers
from posttrain_recipes.engine.model.base import BaseModel, new_adapter
from posttrain_recipes.engine.model.lora import make_snapshot
from posttrain_recipes.engine.storage.checkpoints import (
    ADAPTER_FILE,
    DESCRIPTION,
    OPTIMIZER_FILE,
    CheckpointPath,
    CheckpointRecord,
    CheckpointStore,
    TrainingRun,
    now,
)
from posttrain_recipes.engine.wire import AdapterConfig, PathRef, RequestError
from posttrain_recipes.engines import Local
from posttrain_recipes.plugin import PluginConfig
from tests.engine_model import build

CONFIG_FILE = "adapter_config.json"
RUN = "0f-1:train:0"
OTHER = "0f-1:train:1"
LORA = AdapterConfig(rank=2, seed=1)


def save(store: CheckpointStore, name: str, kind: str = "weights") -> CheckpointPath:
    path = CheckpointPath(RUN, kind, name)

    def write(folder: Path) -> None:
        save_file({"a": np.arange(1000, dtype=np.float32)}, folder / ADAPTER_FILE)
        save_file({"step": np.array([1])}, folder / OPTIMIZER_FILE)
        (folder / CONFIG_FILE).write_text('{"r": 2}')

    store.save(path, CheckpointRecord(str(path), "ptl/test", LORA, 1, now()), write, False)
    return path


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path)
    for run in (RUN, OTHER):
        store.add_run(TrainingRun(run, "0f-1", "ptl/test", LORA, now()))
    return store


def flip(file: Path, where: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", [ADAPTER_FILE, OPTIMIZER_FILE, CONFIG_FILE])
@pytest.mark.parametrize("harm", ["a bit", "cut", "longer", "gone"])
def test_other_bytes_are_refused_wherever_they_are_read(
    store: CheckpointStore, tmp_path: Path, name: str, harm: str
) -> None:
    path = save(store, "one")
    kept = store.find(path)
    store.verify(kept)
    tensors, optimizer = store.load(kept, optimizer=True)
    assert tensors["a"].shape == (1000,)
    assert optimizer is not None
    assert store.load(kept)[1] is None
    file = kept.folder / name
    if harm == "a bit":
        flip(file)
    elif harm == "gone":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content + b" " if harm == "longer" else content[:-1])
    words = "No such file" if harm == "gone" else "is damaged"
    with pytest.raises(RequestError, match=words) as caught:
        store.verify(kept)
    assert caught.value.status == 422
    assert str(file) in str(caught.value)
    for optimizer_too in (False, True):
        with pytest.raises(RequestError, match=words):
            store.load(kept, optimizer_too)
    state = State({}, tmp_path)
    sampler = Sampling(state)
    with pytest.raises(RequestError, match=words):
        sampler._from_path(str(path))
    with pytest.raises(RequestError, match=words):
        queries.weights_info(state, PathRef(str(path)))
    with pytest.raises(RequestError, match=words):  # or the copy would be given hashes of its own
        Transfers(state).copy(CopyWeights(str(path)), None)
    why = Local(PluginConfig()).lost(str(path), tmp_path)
    assert why is not None
    assert words in why


def test_an_export_that_was_damaged_is_not_handed_out(
    store: CheckpointStore, tmp_path: Path
) -> None:
    path = save(store, "one", "external_weights")
    transfers = Transfers(State({}, tmp_path))
    assert len(transfers.urls(path, "http://here", Signer("t"))["urls"]) == 3  # type: ignore[arg-type]
    flip(store.folder(path) / ADAPTER_FILE)
    with pytest.raises(RequestError, match="is damaged"):
        transfers.urls(path, "http://here", Signer("t"))


def test_a_description_may_change_and_the_files_not(store: CheckpointStore) -> None:
    path = save(store, "one")
    store.amend(path, public=True)
    assert store.record(path).public
    flip(store.folder(path) / ADAPTER_FILE)
    store.amend(path, public=False)
    with pytest.raises(RequestError, match="is damaged"):
        store.verify(store.find(path))


def test_a_folder_copied_by_hand_is_not_served(store: CheckpointStore, tmp_path: Path) -> None:
    path = save(store, "one")
    folder = store.folder(path)
    copies = [CheckpointPath(RUN, "weights", "two"), CheckpointPath(OTHER, "weights", "one")]
    copies.append(CheckpointPath(RUN, "sampler_weights", "one"))
    for copy in copies:
        target = store.root / copy.run.replace(":", "_") / copy.kind / copy.name
        shutil.copytree(folder, target)
        with pytest.raises(RequestError, match=f"copied by hand from {path}") as caught:
            store.folder(copy)
        assert caught.value.status == 422
        assert Local(PluginConfig()).lost(str(copy), tmp_path)
    assert [r.path for r, _ in store.checkpoints()] == [str(path)]
    whole = store.root / "0f-1_train_7"
    shutil.copytree(store.root / "0f-1_train_0", whole)
    assert sorted(run.run for run in store.runs()) == [RUN, OTHER]
    assert [r.path for r, _ in store.checkpoints()] == [str(path)]
    moved = tmp_path / "elsewhere"
    shutil.copytree(store.root, moved / "runs")  # all of it, as a backup does
    assert str(path) in [r.path for r, _ in CheckpointStore(moved).checkpoints()]


BAD: dict[str, Any] = {
    "no object": [],
    "a number for the time": {"time": 5},
    "no time": {"time": None},
    "a number for the path": {"path": 7},
    "no path": {"path": None},
    "no Tinker path": {"path": "x"},
    "words for the step": {"step": "many"},
    "no LoRA": {"lora": 3},
    "a LoRA of words": {"lora": {"rank": "big"}},
    "a list for the expiry": {"expires_at": [1]},
    "a list of files": {"files": ["adapter"]},
    "a hash that is none": {"files": {ADAPTER_FILE: None}},
    "numbers for metadata": {"user_metadata": 3},
}


@pytest.mark.parametrize("known", [(CONFIG_FILE,), (CONFIG_FILE, OPTIMIZER_FILE)])
def test_a_file_that_the_description_has_no_hash_of_was_not_saved(
    store: CheckpointStore, tmp_path: Path, known: tuple[str, ...]
) -> None:
    path = save(store, "one")
    file = store.folder(path) / DESCRIPTION
    record = json.loads(file.read_text())
    kept = {name: record["files"][name] for name in known}
    file.write_text(json.dumps({**record, "files": kept}))
    why = Local(PluginConfig()).lost(str(path), tmp_path)
    assert why is not None
    assert f"{ADAPTER_FILE} is damaged" in why


def test_a_pipe_in_the_place_of_a_file_is_not_waited_on(
    store: CheckpointStore, tmp_path: Path
) -> None:
    for name in (DESCRIPTION, ADAPTER_FILE):
        path = save(store, name[:5])
        file = store.folder(path) / name
        file.unlink()
        os.mkfifo(file)
        why = Local(PluginConfig()).lost(str(path), tmp_path)
        assert why is not None
        assert "it is no file" in why
    os.mkfifo(tmp_path / "runs" / "0f-1_train_1" / "pipe")
    run = store.root / "0f-1_train_1" / "run.json"
    run.unlink()
    os.mkfifo(run)
    assert [one.run for one in store.runs()] == [RUN]


@pytest.mark.parametrize("harm", BAD)
def test_one_bad_record_hides_no_other(store: CheckpointStore, tmp_path: Path, harm: str) -> None:
    good, bad = save(store, "good"), save(store, "bad")
    file = store.folder(bad) / DESCRIPTION
    told = BAD[harm]
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, **told} if isinstance(told, dict) else told))
    state = State({}, tmp_path)
    listed = queries.checkpoints(state, None, 10, 0)["checkpoints"]
    assert [one["tinker_path"] for one in listed] == [str(good)]
    assert queries.training_run(state, RUN)["last_checkpoint"]["tinker_path"] == str(good)
    store.sweep()
    with pytest.raises(RequestError) as caught:
        store.folder(bad)
    assert caught.value.status == 422
    store.delete(bad)


@pytest.mark.parametrize(
    "told",
    ["", "[", "[" * 100_000, '{"run": 5}', '"x"', '{"created": 5}', '{"lora": 1}', '{"run": "x"}'],
)
def test_one_bad_run_hides_no_other(store: CheckpointStore, tmp_path: Path, told: str) -> None:
    file = store.root / "0f-1_train_1" / "run.json"
    if told.startswith("{"):
        told = json.dumps({**json.loads(file.read_text()), **json.loads(told)})
    file.write_text(told)
    listed = queries.training_runs(State({}, tmp_path), 10, 0)["training_runs"]
    assert [run["training_run_id"] for run in listed] == [RUN]


def test_what_an_earlier_version_saved_is_still_read(store: CheckpointStore, caplog: Any) -> None:
    path = save(store, "one")
    folder = store.folder(path)
    known = json.loads((folder / DESCRIPTION).read_text())
    del known["files"]
    (folder / DESCRIPTION).write_text(json.dumps(known))
    assert len(store.load(store.find(path))[0]) == 1
    assert "not verified" in caplog.text


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = build(tmp_path_factory.mktemp("model"))
    return BaseModel("test", str(folder), torch.device("cpu"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_neither_saved_nor_loaded(
    base: BaseModel, tmp_path: Path, value: float
) -> None:
    adapter = new_adapter(base, LORA)
    adapter.snapshot().save(tmp_path, base.path, base.targets)
    tensors = load_file(tmp_path / ADAPTER_FILE)
    make_snapshot(tensors, LORA, base.targets)
    next(iter(tensors.values()))[0, 0] = value
    with pytest.raises(RequestError, match="hold NaN or infinity: it is not used"):
        make_snapshot(tensors, LORA, base.targets)
    with torch.no_grad():
        adapter.flat[3] = value
    with pytest.raises(RequestError, match="training diverged, and nothing was saved"):
        adapter.snapshot()


def test_a_state_of_the_optimizer_that_does_not_fit_changes_nothing(
    base: BaseModel, tmp_path: Path
) -> None:
    adapter = new_adapter(base, LORA)
    adapter.save_optimizer(tmp_path)
    good = load_file(tmp_path / OPTIMIZER_FILE)
    other = new_adapter(base, AdapterConfig(rank=2, seed=5)).snapshot()
    before = adapter.flat.clone()
    for name, value in (
        ("exp_avg", good["exp_avg"][:-1]),
        ("exp_avg", good["exp_avg"] + np.nan),
        ("exp_avg_sq", good["exp_avg_sq"] - 1),
        ("step", np.array([], dtype=np.int64)),
        ("step", np.array([-1])),
    ):
        with pytest.raises(RequestError, match="optimizer state"):
            adapter.load(other, {**good, name: value})
        assert torch.equal(adapter.flat, before)
    adapter.load(other, good)
    assert torch.equal(adapter.flat, other.flat)
