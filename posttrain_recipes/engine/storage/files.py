"""Atomic writing of files and folders, and errors that name the file at fault."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain_recipes.engine.wire import RequestError
from posttrain_recipes.errors import READ_ONLY


@contextmanager
def readable(file: Path) -> Iterator[Path]:
    """Read a file of a checkpoint. Raises RequestError 422 with its path if it is not there or
    damaged."""
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited on for ever
            raise ValueError("it is no file")
        yield file
    except (OSError, ValueError, KeyError, TypeError, RecursionError, tensor_error()) as error:
        raise RequestError(
            422,
            f"{file} cannot be read: {reason(error)}. Delete the checkpoint, or put the file back",
        ) from error


@contextmanager
def writable(target: Path, what: str) -> Iterator[None]:
    """Write below `target`. Raises RequestError 507 with its path if that cannot be done."""
    try:
        yield
    except (OSError, tensor_error()) as error:
        raise RequestError(
            507,
            f"{what} was not saved: {target}: {reason(error)}. Free some space there, or serve "
            "with another --data-dir",
        ) from error


def tensor_error() -> type[Exception]:
    """What safetensors raises for a file that it cannot read or write."""
    from safetensors import SafetensorError

    error: type[Exception] = SafetensorError
    return error


def reason(error: Exception) -> str:
    """The operating system's message of an error, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{error}" if str(error) else type(error).__name__


def sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def remove(folder: Path) -> None:
    """Delete a folder: it is gone at once, and not half-way when the process is killed. Raises
    OSError where the system does not let us."""
    try:
        doomed = Path(tempfile.mkdtemp(prefix=".del-", dir=folder.parent))
    except OSError as error:
        if error.errno in READ_ONLY:
            raise
        shutil.rmtree(folder, ignore_errors=True)  # the disk is full, which this is to help with
        return
    os.replace(folder, doomed / "checkpoint")
    shutil.rmtree(doomed, ignore_errors=True)


def sync(folder: Path) -> None:
    """fsync a folder and its files, which is done before the folder gets its final name."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def put(new: Path, target: Path) -> None:
    """Put the folder `new` in `target`'s place. A folder cannot replace another in one step, so
    the old one steps aside first."""
    if not target.exists():
        os.replace(new, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
    os.replace(target, aside / "checkpoint")
    os.replace(new, target)
    shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file in one step."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(data, indent=2, sort_keys=True), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
