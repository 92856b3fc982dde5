"""Running a program that a model wrote in a sandbox.

Linux namespaces, limits and a filter of system calls: no network, no file of this machine but
Python's own (read-only), no environment variable, no other process; memory, disk, time and output
are bounded. `child` sets it up; this module starts it. Where the machine cannot, nothing is run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from posttrain_recipes.errors import UsageError

CHILD = Path(__file__).with_name("child.py")
CANNOT, LATE = 97, 98
MARK = "ptl-sandbox: "
OUTPUT = 64 << 10
"""Bytes of output that are looked at by default."""


@dataclass(frozen=True)
class SandboxLimits:
    """The resources that a program may use."""

    seconds: float = 5.0
    """Wall-clock time."""
    memory: int = 256 << 20
    """Bytes of address space."""
    disk: int = 16 << 20
    """Bytes in its own /tmp."""
    output: int = OUTPUT
    """Bytes at the end of its output that are looked at."""


@dataclass(frozen=True)
class SandboxResult:
    """How a program ended, and its output."""

    status: int
    """Its exit status; 128 + n where signal n ended it."""
    output: str
    """The end of what it wrote to stdout and stderr."""
    late: bool = False
    """Whether it was ended for taking too long."""

    @property
    def passed(self) -> bool:
        """Whether it ended by itself and well."""
        return self.status == 0 and not self.late


@cache
def why_not() -> str | None:
    """Why this machine has no sandbox and what to do about it; None where it has one."""
    if not sys.platform.startswith("linux"):
        return f"the sandbox is made of Linux namespaces, and this is {sys.platform}"
    try:
        outcome = _run("print('in')", SandboxLimits(seconds=20))
    except UsageError as error:
        return error.what
    if outcome.status == 0 and outcome.output.strip() == "in":
        return None
    return f"its trial program ended with status {outcome.status}: {outcome.output.strip()[-200:]}"


HINT = (
    "allow user namespaces: 'sysctl kernel.unprivileged_userns_clone=1' or "
    "'sysctl kernel.apparmor_restrict_unprivileged_userns=0' as root; in a container, run it with "
    "'--security-opt seccomp=unconfined'; or train on a Linux machine that has them"
)


def run(program: str, limits: SandboxLimits | None = None) -> SandboxResult:
    """Run a Python program, and wait for it.

    Raises:
        UsageError: this machine has no sandbox; the program was not run.
    """
    reason = why_not()
    if reason is not None:
        raise UsageError("this machine has no sandbox to run programs in", why=reason, hint=HINT)
    return _run(program, limits or SandboxLimits())


def _run(program: str, limits: SandboxLimits) -> SandboxResult:
    specification = {
        "program": program,
        "seconds": limits.seconds,
        "memory_bytes": limits.memory,
        "disk_bytes": limits.disk,
        "executable": os.path.realpath(sys.executable),
        "python": _python(),
    }
    # Output goes to a file of bounded size: a program that writes without end fills no memory.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={},
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(specification).encode(), limits.seconds + 30)
        except BaseException:
            process.terminate()
            raise
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - limits.output))
        text = output.read().decode(errors="replace")
    if process.returncode == CANNOT and MARK in text:
        raise UsageError(text.split(MARK, 1)[1].strip(), hint=HINT)
    return SandboxResult(process.returncode, text, process.returncode == LATE)


@cache
def _python() -> list[str]:
    """Directories of this Python that do not lie in /usr: its libraries and its executable's."""
    places = {
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
        os.path.dirname(os.path.realpath(sys.executable)),
        sysconfig.get_config_var("LIBDIR"),
    }
    real = {os.path.realpath(place) for place in places if place}
    outer = {p for p in real if not any(p != q and p.startswith(q + os.sep) for q in real)}
    return sorted(p for p in outer if not p.startswith(("/usr/", "/lib/", "/bin/")))
