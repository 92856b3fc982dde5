"""What this machine has for computing: cores, memory, a GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

GPU = Path("/dev/nvidiactl")
"""There where the embedded engine computes on a GPU; known without importing torch."""


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that processes of this machine, and of this container, may still take; None where the
    system does not tell."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        told = next(line for line in lines if line.startswith("MemAvailable"))
        found.append(int(told.split()[1]) << 10)
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds in ("", "memory"):
                found += _left(Path("/sys/fs/cgroup") / kinds, name.strip("/"))
    return min(found, default=None)


def _left(root: Path, name: str) -> Iterator[int]:
    """What is left of the limits of a cgroup and of those that it is in; v2, or v1 `memory`."""
    place = root / name
    for folder in (place, *place.parents):
        for most, now in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                limit = int((folder / most).read_text(encoding="ascii"))
                taken = int((folder / now).read_text(encoding="ascii"))
                stat = (folder / "memory.stat").read_text(encoding="ascii").split()
                taken -= int(stat[stat.index("inactive_file") + 1])  # given back when it is wanted
                yield limit - taken
        if folder == root:
            return
