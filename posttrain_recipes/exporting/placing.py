"""A directory that is there whole or not at all, whatever ends the program meanwhile."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from posttrain_recipes import private
from posttrain_recipes.errors import UsageError, writing

PREFIX = ".ptl-export-"
LOCK, OUT = "lock", "out"
"""What lies in a directory of that prefix: a file that is locked by whom writes, and what it
writes."""
_OURS = re.compile(re.escape(PREFIX) + r"[a-z0-9_]{8}")


def new_directory(directory: Path) -> None:
    """Raise UsageError for a directory that has something in it; what a writer that was killed
    left in it is removed."""
    _sweep(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(
            f"{directory} is there already", hint="name a new directory", code="already-there"
        )


@contextmanager
def written(directory: Path, home: Path) -> Iterator[Path]:
    """A place to write files to that become `directory` at the end, whole or not at all.

    An empty directory that is there stays the one that it is: somebody may be in it, or a disk be
    mounted there. Everything in it may be read by whoever may read files that this user makes:
    safetensors makes its own for the user alone. What writers that were killed left beside it is
    removed.

    Raises:
        PtlError: the system does not let us write there.
    """
    with writing(directory), private.within(home, directory):
        there = directory.is_dir()
        beside = directory if there else directory.parent
        beside.mkdir(parents=True, exist_ok=True)
        _sweep(beside)
        with _temporary(beside) as temporary:
            out = temporary / OUT
            out.mkdir()
            yield out
            mode = out.stat().st_mode & 0o666
            for file in out.rglob("*"):
                if file.is_file():
                    file.chmod(mode)
            if not there:
                os.replace(out, directory)
            else:
                for made in sorted(out.iterdir()):
                    os.replace(made, directory / made.name)


@contextmanager
def _temporary(beside: Path) -> Iterator[Path]:
    """A directory that nobody sweeps as long as this process lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=beside))
        try:
            with open(folder / LOCK, "w", encoding="utf-8") as lock:
                if _locked(lock) and (folder / LOCK).exists():  # else it is being swept
                    yield folder
                    return
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _locked(file: IO[str]) -> bool:
    """Lock a file. False where another one has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # where nothing can be locked, nothing is swept
        return True
    return True


def _sweep(folder: Path) -> None:
    """Remove what writers left that are gone: a kill, or a machine that went down, leaves it."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if _OURS.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _remove_left(Path(entry.path))


def _remove_left(left: Path) -> None:
    with suppress(OSError):  # another user's, or its writer lives
        if {LOCK} <= set(os.listdir(left)) <= {LOCK, OUT}:
            with open(left / LOCK, "r+", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
