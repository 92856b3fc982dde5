"""Checkpoints and training runs on disk.

    {data}/runs/{run}/run.json                          what the run trains, and since when
    {data}/runs/{run}/{weights|sampler_weights}/{name}/ one checkpoint:
        checkpoint.json                                 what it is
        adapter_config.json, adapter_model.safetensors  the adapter, in PEFT's format
        optimizer.safetensors                           training checkpoints: Adam's state

`tinker://{run}/{kind}/{name}` names a checkpoint. It is written to a temporary folder and renamed,
so it is there in full or not at all, and a restarted engine serves what an earlier one saved. No
tensor is touched here: the caller writes them into the folder it is given.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from posttrain_recipes.engine.wire import LoraConfig, RequestError

KINDS = {"weights": "training", "sampler_weights": "sampler"}
_RUN = re.compile(r"([A-Za-z0-9-]{1,99}):train:(\d{1,9})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,127}")
_TTL_S = (3600, 10 * 366 * 86400)


@dataclass(frozen=True)
class Path_:
    """A parsed `tinker://` path."""

    run: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"tinker://{self.run}/{self.kind}/{self.name}"


def parse_path(text: str) -> Path_:
    """`tinker://run/kind/name`. Raises RequestError 422 for anything else."""
    parts = text.removeprefix("tinker://").split("/")
    if not text.startswith("tinker://") or len(parts) != 3 or parts[1] not in KINDS:
        raise RequestError(
            422,
            f"{text!r} is no checkpoint of this engine: it should read "
            "tinker://RUN/weights/NAME or tinker://RUN/sampler_weights/NAME",
        )
    return Path_(check_run(parts[0]), parts[1], check_name(parts[2]))


def check_name(name: str) -> str:
    """Raise RequestError 422 unless `name` can name a folder, and nothing but a folder."""
    if not _NAME.fullmatch(name):
        raise RequestError(
            422,
            f"checkpoint name {name!r} cannot be used: up to 128 letters, digits and . _ + = @ -, "
            "starting with a letter or digit",
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
class RunRecord:
    """A training run: what was asked for when its model was created."""

    run: str
    session: str
    base_model: str
    lora: LoraConfig
    created: str
    user_metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class Record:
    """A checkpoint's description, as stored."""

    path: str
    base_model: str
    lora: LoraConfig
    step: int
    time: str
    expires_at: str | None = None
    user_metadata: dict[str, str] | None = None

    @property
    def expired(self) -> bool:
        """Whether its time to live is over."""
        return self.expires_at is not None and self.expires_at < now()


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat()


class Store:
    """The folder of runs and checkpoints. Methods may be called from any thread."""

    def __init__(self, root: Path) -> None:
        self.root = root / "runs"
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()

    def _run_folder(self, run: str) -> Path:
        return self.root / check_run(run).replace(":", "_")  # a colon is no good on every system

    def folder(self, path: Path_) -> Path:
        """Where a checkpoint is kept. Raises RequestError 404 if it is not there (any more)."""
        folder = self._run_folder(path.run) / path.kind / path.name
        if not (folder / "checkpoint.json").exists() or self.read(folder).expired:
            raise RequestError(
                404,
                f"there is no checkpoint {path}: it was never saved, was "
                "deleted or has expired, or the engine runs with another --data-dir",
            )
        return folder

    def read(self, folder: Path) -> Record:
        """The description in a checkpoint's folder."""
        data = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        return Record(**{**data, "lora": LoraConfig(**data["lora"])})

    def record(self, path: Path_) -> Record:
        """A checkpoint's description. Raises RequestError 404."""
        return self.read(self.folder(path))

    def save(
        self, path: Path_, record: Record, write: Callable[[Path], None], overwrite: bool
    ) -> None:
        """Save a checkpoint: `write` puts its tensors into the folder it is handed.

        Raises RequestError 409 if the name is taken and `overwrite` is false.
        """
        with self._lock:
            target = self._run_folder(path.run) / path.kind / path.name
            taken = (target / "checkpoint.json").exists() and not self.read(target).expired
            if taken and not overwrite:
                raise RequestError(
                    409, f"{path} exists: choose another name, or pass overwrite=True"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
            try:
                write(temporary)
                _write_json(temporary / "checkpoint.json", asdict(record))
                _replace(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def tensors(self, folder: Path) -> dict[str, Any]:
        """A checkpoint's adapter: arrays by PEFT's names."""
        from safetensors.numpy import load_file

        arrays: dict[str, Any] = load_file(folder / "adapter_model.safetensors")
        return arrays

    def amend(self, path: Path_, **changes: Any) -> None:
        """Change fields of a checkpoint's description, atomically."""
        with self._lock:
            folder = self.folder(path)
            data = {**asdict(self.read(folder)), **changes}
            _write_json(folder / "checkpoint.json", data)

    def delete(self, path: Path_) -> None:
        """Delete a checkpoint. Raises RequestError 404."""
        with self._lock:
            folder = self.folder(path)
            doomed = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
            os.replace(folder, doomed / "checkpoint")
            shutil.rmtree(doomed, ignore_errors=True)

    def add_run(self, record: RunRecord) -> None:
        """Note that a run exists."""
        folder = self._run_folder(record.run)
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "run.json", asdict(record))

    def run(self, run: str) -> RunRecord:
        """Raises RequestError 404 for a run that never was."""
        path = self._run_folder(run) / "run.json"
        if not path.exists():
            raise RequestError(404, f"there is no training run {run}")
        data = json.loads(path.read_text(encoding="utf-8"))
        return RunRecord(**{**data, "lora": LoraConfig(**data["lora"])})

    def runs(self) -> list[RunRecord]:
        """Every run, the newest first."""
        names = (p.parent.name.replace("_", ":") for p in self.root.glob("*/run.json"))
        found = [self.run(name) for name in names if _RUN.fullmatch(name)]
        return sorted(found, key=lambda record: (record.created, record.run), reverse=True)

    def checkpoints(self, run: str | None = None) -> list[tuple[Record, int]]:
        """Descriptions of a run's checkpoints, or all, with their bytes; the newest first."""
        roots = [self._run_folder(run)] if run else list(self.root.iterdir())
        found = [item for root in roots for item in self._checkpoints_in(root)]
        return sorted(found, key=lambda item: (item[0].time, item[0].path), reverse=True)

    def _checkpoints_in(self, root: Path) -> Iterator[tuple[Record, int]]:
        for kind in KINDS:
            for path in (root / kind).glob("[!.]*/checkpoint.json"):
                try:
                    record = self.read(path.parent)
                    size = sum(f.stat().st_size for f in path.parent.iterdir() if f.is_file())
                except OSError:
                    continue  # deleted while we looked
                if not record.expired:
                    yield record, size


def _replace(new: Path, target: Path) -> None:
    """Put the folder `new` in `target`'s place. A folder cannot replace another in one step, so
    the old one steps aside first."""
    if not target.exists():
        os.replace(new, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
    os.replace(target, aside / "checkpoint")
    os.replace(new, target)
    shutil.rmtree(aside, ignore_errors=True)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=2, sort_keys=True), encoding="utf-8")
    os.replace(temporary, path)
