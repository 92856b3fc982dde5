"""Running a program that a model wrote in a sandbox.

No network, no file of this machine but Python's own (read-only), no environment variable, no other
process; memory, disk, time and output are bounded. Where bubblewrap is installed it makes the
namespaces and the file system, else `child` does, out of the same kernel features; limits and the
filter of system calls are ours in both. Where the machine cannot, nothing is run.

How a program ended is told through a pipe that it does not have: what it writes, and the status
that it leaves with, are its word alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from posttrain_recipes.errors import UsageError
from posttrain_recipes.training.sandbox import cgroup

CHILD = Path(__file__).with_name("child.py")
OUTPUT = 64 << 10
"""Bytes of output that are looked at by default."""
GRACE_S = 10.0
"""How much longer than its time a program may take to be set up and to be ended."""


@dataclass(frozen=True)
class SandboxLimits:
    """The resources that a program may use."""

    seconds: float = 5.0
    """Wall-clock time."""
    memory: int = 256 << 20
    """Bytes of address space; of all memory, where a cgroup can be had."""
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


class NoSandboxError(UsageError):
    """This machine has no sandbox."""

    code = "no-sandbox"


@cache
def why_not() -> str | None:
    """Why this machine has no sandbox and what to do about it; None where it has one."""
    if not sys.platform.startswith("linux"):
        return f"the sandbox is made of Linux namespaces, and this is {sys.platform}"
    try:
        outcome = execute("print('in')", SandboxLimits(seconds=20), wall())
    except NoSandboxError as error:
        return error.what
    if outcome.status == 0 and outcome.output.strip() == "in":
        return None
    return f"its trial program ended with status {outcome.status}: {outcome.output.strip()[-200:]}"


HINT = (
    "allow user namespaces: 'sysctl kernel.unprivileged_userns_clone=1' or "
    "'sysctl kernel.apparmor_restrict_unprivileged_userns=0' as root, or install bubblewrap; in a "
    "container, run it with '--security-opt seccomp=unconfined'; or train on a Linux machine that "
    "has them"
)


@cache
def wall() -> str:
    """What makes the namespaces here: the path of bubblewrap where it works, else `own`."""
    found = shutil.which("bwrap")
    if found is not None:
        try:
            if execute("print('in')", SandboxLimits(seconds=20), found).output.strip() == "in":
                return found
        except NoSandboxError:
            pass
    return "own"


def run(program: str, limits: SandboxLimits | None = None) -> SandboxResult:
    """Run a Python program, and wait for it.

    Raises:
        UsageError: this machine has no sandbox; the program was not run.
    """
    reason = why_not()
    if reason is not None:
        raise UsageError(
            "this machine has no sandbox to run programs in",
            why=reason,
            hint=HINT,
            code="no-sandbox",
        )
    return execute(program, limits or SandboxLimits(), wall())


def execute(
    program: str, limits: SandboxLimits, wall: str, without: Collection[str] = ()
) -> SandboxResult:
    """Run a program behind one wall or the other.

    Args:
        wall: `own`, or the path of bubblewrap.
        without: protections that are left out, for tests of what each of them holds.

    Raises:
        NoSandboxError: the sandbox could not be made.
    """
    group = None if "cgroup" in without else cgroup.make(limits.memory)
    reading, writing = os.pipe()
    specification = {
        "program": program,
        "seconds": limits.seconds,
        "memory_bytes": limits.memory,
        "disk_bytes": limits.disk,
        "executable": os.path.realpath(sys.executable),
        "files": python_files(),
        "covered": covered(),
        "bubblewrap": None if wall == "own" else wall,
        "cgroup": str(group.procs) if group else None,
        "told": writing,
        "without": sorted(without),
    }
    # Output goes to a file of bounded size: a program that writes without end fills no memory.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={},
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(specification).encode())
            process.stdin.close()
            told = _told(reading, limits.seconds + GRACE_S)
        finally:
            os.close(reading)
            _end(process)
            if group is not None:
                group.remove()
        output.seek(0, os.SEEK_END)
        output.seek(max(0, output.tell() - limits.output))
        text = output.read().decode(errors="replace")
    if "cannot" in told:
        raise NoSandboxError(str(told["cannot"]), hint=HINT)
    late = bool(told.get("late", True))  # who says nothing was stopped, or took too long
    return SandboxResult(int(told.get("status", 137)), text, late)


def _told(reading: int, seconds: float) -> dict[str, Any]:
    """What the watcher says of the program's end; nothing where it says none in time."""
    said = b""
    while select.select([reading], [], [], seconds)[0]:
        part = os.read(reading, 4096)
        if not part:
            break
        said += part
        if said.endswith(b"\n"):
            break
    try:
        found: dict[str, Any] = json.loads(said)
    except ValueError:
        return {}
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the watcher and, with its namespace of processes, all that the program is."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@cache
def python_files() -> list[str]:
    """What a Python program needs of this machine: the standard library, the executable and the
    shared libraries that those load; no packages, and nothing else that lies below /usr."""
    places = [os.path.realpath(sysconfig.get_path("stdlib")), os.path.realpath(sys.executable)]
    own = os.path.realpath(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    if own == "/usr/local/lib":
        places += map(str, Path(own).glob("libpython*.so*"))
    elif not own.startswith(("/usr/lib", "/lib")):
        places.append(own)
    system = f"/usr/lib/{os.uname().machine}-linux-gnu"
    libraries = [p for p in (system, "/usr/lib64") if os.path.isdir(p) and not os.path.islink(p)]
    places += libraries or ["/usr/lib"]
    # On older systems these are directories of their own, else links to those below /usr.
    places += ["/lib64", "/lib" if os.path.islink("/lib") else system.removeprefix("/usr")]
    places.append("/etc/ld.so.cache")
    there = {place for place in places if os.path.lexists(place)}
    inner = {p for p in there if any(p.startswith(q + os.sep) for q in there)}
    return sorted(there - inner)


@cache
def covered() -> list[str]:
    """Directories below those where packages lie, which a program does not see."""
    stdlib = os.path.realpath(sysconfig.get_path("stdlib"))
    inside = [f"{stdlib}/site-packages", f"{stdlib}/dist-packages"]
    return [place for place in inside if os.path.isdir(place)]
