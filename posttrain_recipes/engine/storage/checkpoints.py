"""Checkpoints and training runs on disk.

    {data}/runs/{run}/run.json                          base model, LoRA config, time of creation
    {data}/runs/{run}/{weights|sampler_weights|external_weights}/{name}/    one checkpoint:
        checkpoint.json                                 its description, `CheckpointRecord`
        adapter_config.json, adapter_model.safetensors  the adapter, in PEFT's format
        optimizer.safetensors                           training checkpoints: Adam's state

`tinker://{run}/{kind}/{name}` names a checkpoint. It is written to a temporary folder, synced and
renamed, so it is there in full or not at all, and a restarted engine serves what an earlier one
saved. What an engine that was killed left half-written is removed when the next one starts. Its
description holds a hash of every file: other bytes than those that were saved are never served.
No tensor is touched here: the caller writes them into the folder it is given.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from posttrain_recipes.engine.storage.files import (
    put,
    readable,
    reason,
    remove,
    sha256,
    sync,
    writable,
    write_json,
)
from posttrain_recipes.engine.wire import AdapterConfig, RequestError
from posttrain_recipes.errors import DISK_FULL, READ_ONLY

log = logging.getLogger(__name__)

EXTERNAL = "external_weights"
KINDS = {"weights": "training", "sampler_weights": "sampler", EXTERNAL: "external"}
DESCRIPTION = "checkpoint.json"
ADAPTER_FILE = "adapter_model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
_RUN = re.compile(r"([A-Za-z0-9-]{1,99}):train:(\d{1,9})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,127}")
_TTL_S = (3600, 10 * 366 * 86400)


@dataclass(frozen=True)
class CheckpointPath:
    """A parsed `tinker://` path."""

    run: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"tinker://{self.run}/{self.kind}/{self.name}"


def parse_path(text: str, run: str = "RUN") -> CheckpointPath:
    """`tinker://run/kind/name`. Raises RequestError 422 for anything else; where it is a name
    alone, told with the path that it has in `run`."""
    parts = text.removeprefix("tinker://").split("/")
    if not text.startswith("tinker://") or len(parts) != 3 or parts[1] not in KINDS:
        raise RequestError(
            422,
            f"{text!r} is no path of a checkpoint: it should read tinker://RUN/weights/NAME or "
            f"tinker://RUN/sampler_weights/NAME{_instead(text, run)}",
        )
    return CheckpointPath(check_run(parts[0]), parts[1], check_name(parts[2]))


def _instead(text: str, run: str) -> str:
    """What to give in place of something that is no path."""
    *before, name = text.split("/")
    if before in ([], ["weights"], ["sampler_weights"]) and _NAME.fullmatch(name):
        kind = before[0] if before else "weights"
        return f"; a name alone is of no run: give what the save returned, tinker://{run}/{kind}/{name}"
    if text.startswith("tinker://") and text.count("/") > 4:
        return ", and a NAME has no '/'"
    return ""


def check_name(name: str) -> str:
    """Raise RequestError 422 unless `name` can name a folder, and nothing but a folder."""
    if not _NAME.fullmatch(name):
        raise RequestError(
            422,
            f"checkpoint name {name!r} cannot be used: up to 128 letters, digits and . _ + = @ -, "
            "starting with a letter or digit; no '/', as a path of a checkpoint has three parts",
        )
    return name


def check_run(run: str) -> str:
    """Raise RequestError 422 unless `run` is a training run's id."""
    if not _RUN.fullmatch(run):
        raise RequestError(422, f"{run!r} is no training run of this engine")
    return run


def expiry(ttl_seconds: int | None) -> str | None:
    """When a checkpoint with this time to live ends, ISO 8601. Raises RequestError 422."""
    if ttl_seconds is None:
        return None
    if not _TTL_S[0] <= ttl_seconds <= _TTL_S[1]:
        raise RequestError(422, "ttl_seconds must be between 1 hour (3600) and 10 years, or null")
    return (datetime.now(UTC) + timedelta(seconds=ttl_seconds)).isoformat()


@dataclass(frozen=True)
class TrainingRun:
    """A training run: the request that created its model, as stored in run.json."""

    run: str
    session: str
    base_model: str
    lora: AdapterConfig
    created: str
    user_metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint's description, as stored in checkpoint.json."""

    path: str
    base_model: str
    lora: AdapterConfig
    step: int
    time: str
    expires_at: str | None = None
    user_metadata: dict[str, str] | None = None
    public: bool = False  # a flag for listings: whoever has the token sees all
    files: dict[str, str] | None = None
    """SHA-256 of each file by its name, in hexadecimal; None where an earlier version saved it."""

    @property
    def expired(self) -> bool:
        """Whether its time to live is over."""
        return self.expires_at is not None and self.expires_at < now()


class Kept(NamedTuple):
    """A checkpoint that is there: its folder, and the description in it."""

    folder: Path
    record: CheckpointRecord


_RECORD = TypeAdapter(CheckpointRecord)
_RUN_RECORD = TypeAdapter(TrainingRun)


def _described(folder: Path) -> CheckpointRecord:
    with readable(folder / DESCRIPTION) as file:
        return _RECORD.validate_python(json.loads(file.read_text(encoding="utf-8")))


def _check(file: Path, saved: str | None, found: str) -> None:
    if saved != found:
        raise RequestError(
            422,
            f"{file} is damaged: it does not hold the bytes that were saved (sha256 "
            f"{found[:12]}…, not {(saved or 'of none')[:12]}…). Delete the checkpoint, or put the "
            "file back",
        )


def _arrays(kept: Kept, name: str) -> dict[str, Any]:
    from safetensors.numpy import load

    with readable(kept.folder / name) as file:
        content = file.read_bytes()
    if kept.record.files is not None:
        _check(file, kept.record.files.get(name), hashlib.sha256(content).hexdigest())
    with readable(file):
        arrays: dict[str, Any] = load(content)
    return arrays


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat()


class CheckpointStore:
    """The folder of runs and checkpoints. Methods may be called from any thread.

    Where the folder cannot be written, what is in it can be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / "runs"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
        self._lock = threading.Lock()
        self._clean()

    def _run_folder(self, run: str) -> Path:
        return self.root / check_run(run).replace(":", "_")  # a colon is no good on every system

    def _place(self, path: CheckpointPath) -> Path:
        return self._run_folder(path.run) / path.kind / path.name

    def places(self, path: CheckpointPath) -> tuple[Path, Path]:
        """Where a checkpoint and the record of its training run lie, whether they are there or
        not."""
        return self._place(path), self._run_folder(path.run) / "run.json"

    def find(self, path: CheckpointPath) -> Kept:
        """A checkpoint. Raises RequestError 404 if it is not there (any more), 422 if its
        description is damaged or is that of another one."""
        folder = self._place(path)
        record = self.read(folder) if (folder / DESCRIPTION).exists() else None
        if record is None or record.expired:
            raise RequestError(
                404,
                f"there is no checkpoint {path}: it was never saved, was "
                "deleted or has expired, or the engine runs with another --data-dir",
            )
        return Kept(folder, record)

    def folder(self, path: CheckpointPath) -> Path:
        """Where a checkpoint is kept; raises as `find`."""
        return self.find(path).folder

    def record(self, path: CheckpointPath) -> CheckpointRecord:
        """A checkpoint's description; raises as `find`."""
        return self.find(path).record

    def read(self, folder: Path) -> CheckpointRecord:
        """The description in a checkpoint's folder. Raises RequestError 422 if it is damaged, or
        describes a checkpoint that has its place elsewhere."""
        record = _described(folder)
        if self._place(parse_path(record.path)) != folder:
            raise RequestError(
                422,
                f"{folder} was copied by hand from {record.path}, and is not served as another "
                "checkpoint: move it away, and copy checkpoints by the API (copy_weights)",
            )
        return record

    def verify(self, kept: Kept, but: Collection[str] = ()) -> None:
        """Hash the files of a checkpoint, all but those that the caller hashes. Raises RequestError
        422 unless they are, byte by byte, what was saved. One that an earlier version saved has no
        hashes, and is not looked at."""
        folder, saved = kept.folder, kept.record.files
        if saved is None:
            return
        there = {file.name for end in ("json", "safetensors") for file in folder.glob(f"*.{end}")}
        for name in sorted((saved.keys() | (there - {DESCRIPTION})) - set(but)):
            with readable(folder / name) as file:
                found = sha256(file)
            _check(folder / name, saved.get(name), found)

    def save(
        self,
        path: CheckpointPath,
        record: CheckpointRecord,
        write: Callable[[Path], None],
        overwrite: bool,
    ) -> None:
        """Save a checkpoint: `write` puts its tensors into the folder it is handed.

        Raises RequestError 409 if the name is taken and `overwrite` is false, 507 if the files
        cannot be written.
        """
        target = self._place(path)
        with self._lock, writable(target, str(path)), self._writing():
            if (target / DESCRIPTION).exists() and not (overwrite or self._expired(target)):
                raise RequestError(
                    409, f"{path} exists: choose another name, or pass overwrite=True"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
            try:
                write(temporary)
                hashes = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
                write_json(temporary / DESCRIPTION, asdict(replace(record, files=hashes)))
                sync(temporary)
                put(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def load(
        self, kept: Kept, optimizer: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """A checkpoint's adapter, as arrays by PEFT's names, and Adam's state: None where that is
        not asked for or none was saved.

        Raises RequestError 422 if any file of it, loaded or not, is missing or not what was saved,
        or the checkpoint is one for download.
        """
        if kept.folder.parent.name == EXTERNAL:
            raise RequestError(
                422, "external weights are for download: load the checkpoint they were made from"
            )
        there = (
            OPTIMIZER_FILE in (kept.record.files or {}) or (kept.folder / OPTIMIZER_FILE).exists()
        )
        names = [ADAPTER_FILE, *([OPTIMIZER_FILE] if optimizer and there else [])]
        if kept.record.files is None:
            log.warning("%s: saved without hashes by an earlier version, not verified", kept.folder)
        self.verify(kept, but=names)
        adapter, *state = [_arrays(kept, name) for name in names]
        return adapter, state[0] if state else None

    def amend(self, path: CheckpointPath, **changes: Any) -> None:
        """Change fields of a checkpoint's description, atomically."""
        with self._lock:
            folder, record = self.find(path)
            data = {**asdict(record), **changes}
            with writable(folder, str(path)):
                write_json(folder / DESCRIPTION, data)

    def delete(self, path: CheckpointPath) -> None:
        """Delete a checkpoint, damaged or not. Raises RequestError 404, or 507 where the system
        does not let us."""
        folder = self._place(path)
        with self._lock:
            if not (folder / DESCRIPTION).exists() or self._expired(folder):
                self.folder(path)
            try:
                with self._writing():
                    remove(folder)
            except OSError as error:
                raise RequestError(
                    507,
                    f"{path} was not deleted: {folder}: {reason(error)}. "
                    "Let this user write there, and try again",
                ) from error

    def _expired(self, folder: Path) -> bool:
        try:
            return self.read(folder).expired
        except RequestError:
            return False

    def sweep(self) -> None:
        """Delete what has expired, where the folder can be written."""
        with self._lock:
            expired = [folder for folder in self._folders() if self._expired(folder)]
            for folder in expired:
                try:
                    with self._writing():
                        remove(folder)
                    log.info("deleted %s: it has expired", folder)
                except OSError as error:
                    log.warning("%s has expired and was not deleted: %s", folder, reason(error))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold off the cleaning of an engine that starts on the same folder."""
        with (self.root / ".writing").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def _clean(self) -> None:
        """Remove what engines that were killed left half-written, unless another engine is at
        work on this folder now. A checkpoint that had stepped aside for a new one comes back."""
        try:
            lock = (self.root / ".writing").open("a")
        except OSError as error:
            if error.errno not in READ_ONLY + DISK_FULL:
                raise
            return  # what cannot be written is not cleaned either
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            for kind in KINDS:
                for aside in self.root.glob(f"*/{kind}/.old-*/checkpoint"):
                    self._restore(aside)
                for left in self.root.glob(f"*/{kind}/.???-*"):
                    shutil.rmtree(left, ignore_errors=True)

    def _restore(self, aside: Path) -> None:
        try:
            place = self._place(parse_path(_described(aside).path))
        except RequestError:
            return
        if not place.exists():
            os.replace(aside, place)

    def add_run(self, record: TrainingRun) -> None:
        """Write a training run's run.json. Raises RequestError 507 if it cannot be written."""
        folder = self._run_folder(record.run)
        with writable(folder, record.run):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "run.json", asdict(record))

    def run(self, run: str) -> TrainingRun:
        """The training run of this id. Raises RequestError 404, or 422 if its file is damaged."""
        path = self._run_folder(run) / "run.json"
        if not path.exists():
            raise RequestError(404, f"there is no training run {run}")
        with readable(path):
            record = _RUN_RECORD.validate_python(json.loads(path.read_text(encoding="utf-8")))
        if record.run != run:
            raise RequestError(422, f"{path} was copied by hand from {record.run}: move it away")
        return record

    def runs(self) -> list[TrainingRun]:
        """Every run, the newest first; one whose record is damaged is left out."""
        found = []
        for path in self.root.glob("*/run.json"):
            name = path.parent.name.replace("_", ":")
            if _RUN.fullmatch(name):
                try:
                    found.append(self.run(name))
                except RequestError as error:
                    log.warning("%s", error)
        return sorted(found, key=lambda record: (record.created, record.run), reverse=True)

    def checkpoints(self, run: str | None = None) -> list[tuple[CheckpointRecord, int]]:
        """Descriptions of a run's checkpoints, or all, with their bytes; the newest first."""
        found = []
        for folder in self._folders([self._run_folder(run)] if run else None):
            try:
                record = self.read(folder)
                size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
            except OSError:
                continue  # deleted while we looked
            except RequestError as error:
                log.warning("%s", error)
                continue
            if not record.expired:
                found.append((record, size))
        return sorted(found, key=lambda item: (item[0].time, item[0].path), reverse=True)

    def _folders(self, roots: Iterable[Path] | None = None) -> Iterator[Path]:
        for root in self.root.glob("*") if roots is None else roots:
            for kind in KINDS:
                for path in (root / kind).glob(f"[!.]*/{DESCRIPTION}"):
                    yield path.parent
