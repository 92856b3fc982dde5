"""MLflow databases for tests: mlflow builds one a session, and every other is a copy of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain_recipes.tracking import mlstore

PLACE = "file:///where-the-artifacts-are"
"""Stands in the model for what each copy has of its own."""

build = mlstore._write_empty


class Copies:
    """Writes databases as `mlstore` does, from a model that the workers of a session share."""

    def __init__(self, folder: Path) -> None:
        self._model = folder / "model.db"
        self._lock = folder / "model.lock"

    def write(self, file: Path, artifacts: str, experiment: str) -> None:
        shutil.copyfile(self._made(), file)
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(
                "UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)",
                (PLACE, artifacts),
            )
            connection.execute(
                "UPDATE experiments SET name = ? WHERE name = ?", (experiment, mlstore.EXPERIMENT)
            )

    def _made(self) -> Path:
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._model.exists():
                draft = self._model.with_suffix(".draft")
                build(draft, PLACE, mlstore.EXPERIMENT)
                os.replace(draft, self._model)
        return self._model


@contextlib.contextmanager
def copied(folder: Path) -> Iterator[None]:
    """Within, databases are copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlstore, "_write_empty", Copies(folder).write)
        yield
