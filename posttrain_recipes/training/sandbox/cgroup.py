"""A group of processes whose memory the kernel bounds, where this user may make one.

Limits on address space do not see memory that belongs to files and to the kernel; a cgroup does.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
SPARE = 64 << 20
"""Bytes beside the program's own: of Python's start, and of the kernel for it."""
_NUMBERS = itertools.count()
_LOCK = threading.Lock()


@dataclass(frozen=True)
class MemoryGroup:
    """A group that was made."""

    path: Path

    @property
    def procs(self) -> Path:
        """Where a process writes its number to be of it."""
        return self.path / "cgroup.procs"

    def remove(self) -> None:
        """Take it away once its processes are gone, which takes the kernel a moment."""
        for _ in range(50):
            with contextlib.suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.01)


def make(memory: int) -> MemoryGroup | None:
    """A group of at most `memory` bytes and some for Python; None where there can be none."""
    parent = _parent()
    if parent is None:
        return None
    with _LOCK:
        path = parent / f"ptl-sandbox-{os.getpid()}-{next(_NUMBERS)}"
    try:
        path.mkdir()
        limit = path / "memory.max"
        if not limit.exists():
            limit = path / "memory.limit_in_bytes"
        limit.write_text(str(memory + SPARE))
        with contextlib.suppress(OSError):  # not every kernel accounts for it
            (path / "memory.swap.max").write_text("0")
    except OSError:
        with contextlib.suppress(OSError):
            path.rmdir()
        return None
    return MemoryGroup(path)


def _parent() -> Path | None:
    """The group of memory that this process is in, in which others can be made."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            found = ROOT / "memory" / path.lstrip("/")
        elif not controllers and _hands_on_memory(ROOT / path.lstrip("/")):
            found = ROOT / path.lstrip("/")
        else:
            continue
        if os.access(found, os.W_OK):
            return found
    return None


def _hands_on_memory(path: Path) -> bool:
    """Whether groups below one of the second version have memory's bounds."""
    try:
        return "memory" in (path / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False
