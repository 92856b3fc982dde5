"""Who may read what a run leaves: the user who ran it, and nobody else on the machine.

Replies, data and weights lie below the home of runs. Directories there are 700 and files 600,
whatever the umask; those that MLflow and SQLite write too, since both follow the umask.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UMASK = 0o077
HOME = ".ptl"
"""What a home is called where nothing else is said: all that is in one of that name is ours."""
_LOGS = ("compare.html", "leaderboard.html", "preflight.log", "gc.log")
OURS = ("runs", "engine", "artifacts", "cache", "prices.yaml", *_LOGS)
"""What else lies in a home, beside `mlflow.db` and what SQLite and its lock put next to that."""

_lock = threading.Lock()
_holders = 0
_before = 0
_tightened: set[Path] = set()


@contextmanager
def files() -> Iterator[None]:
    """Files and directories that are made within are 600 and 700.

    The umask is one for the process: the first that comes sets it, the last that goes sets it back.
    """
    global _holders, _before
    with _lock:
        before = os.umask(UMASK)
        if _holders == 0:
            _before = before
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                os.umask(_before)


@contextmanager
def home(folder: Path) -> Iterator[None]:
    """`files` for work in a home, which is tightened once more at the end."""
    with files():
        try:
            yield
        finally:
            tighten(folder, again=True)


@contextmanager
def within(folder: Path, path: Path) -> Iterator[None]:
    """`files`, where `path` lies below `folder`; elsewhere the user's own umask holds."""
    if path.resolve().is_relative_to(folder.resolve()):
        with files():
            yield
    else:
        yield


def tighten(folder: Path, *, again: bool = False) -> None:
    """Take from others what an earlier version, or another program, left them of a home.

    Only what is ours is touched: all of a home called `.ptl`, or in which nothing else lies; else
    runs, checkpoints and the database in it, and not the directory itself, which may be the user's
    own (`PTL_HOME=$HOME`). Links are not followed, and what belongs to others is left alone.

    Args:
        again: although this process has done it before.
    """
    folder = folder.resolve()
    if folder in _tightened and not again:
        return
    _tightened.add(folder)
    with suppress(OSError):
        names = [entry.name for entry in os.scandir(folder)]
        if folder.name == HOME or (names and all(map(_is_ours, names))):
            _take(folder)
            return
        database = [name for name in names if name.startswith(("mlflow.db", ".mlflow.db."))]
        for name in database:
            _take(folder / name)
        if database:
            _take(folder / "artifacts")
            for name in _LOGS:
                _restrict(folder / name)
        if (folder / "cache" / "verdicts.sqlite").is_file():
            _take(folder / "cache")
        if (folder / "engine" / "runs").is_dir():
            _take(folder / "engine")
        for run in os.scandir(folder / "runs"):
            if (folder / "runs" / run.name / "run.json").is_file():
                _take(folder / "runs" / run.name)
        if (folder / "runs" / ".lock").is_file():
            _restrict(folder / "runs")
            _restrict(folder / "runs" / ".lock")


def _is_ours(name: str) -> bool:
    return name in OURS or name.startswith(("mlflow.db", ".mlflow.db."))


def _take(path: Path) -> None:
    """Take a file, or a directory with all that is in it."""
    if not _restrict(path):
        return
    with suppress(OSError):
        for entry in os.scandir(path):
            _take(Path(entry.path))


def _restrict(path: Path) -> bool:
    """Set the mode of one of the user's own; returns whether it is a directory of theirs."""
    with suppress(OSError):
        found = os.lstat(path)
        if found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode):
            folder = stat.S_ISDIR(found.st_mode)
            wanted = 0o700 if folder else 0o600
            if stat.S_IMODE(found.st_mode) != wanted:
                os.chmod(path, wanted)
            return folder
    return False
