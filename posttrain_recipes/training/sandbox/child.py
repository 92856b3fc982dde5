"""The sandbox's own process: gives up every right, then runs one Python program.

    python -I -S child.py < specification

In order: new namespaces for users, mounts, network, processes, IPC and names; a file system of an
empty directory with this Python and its libraries, read-only; limits on memory, time and files; a
filter of system calls that lets no process start; then the program, with an empty environment and
no capability. What fails on the way is written to stderr after `MARK`, and the program is not run.

Standard library alone, and nothing of this package: it runs before anything can be trusted.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
from typing import Any

MARK = "ptl-sandbox: "
CANNOT, LATE = 97, 98
"""Exit statuses: the sandbox could not be made; the program took too long."""

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWCGROUP = (
    0x10000000,
    0x20000000,
    0x40000000,
    0x2000000,
)
CLONE_THREAD = 0x10000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2

# By machine: the architecture's number in seccomp, and of system calls clone, clone3, unshare,
# setns, and those that make a process and take no flags (fork, vfork).
CALLS = {
    "x86_64": (0xC000003E, 56, 435, (272, 308, 57, 58)),
    "aarch64": (0xC00000B7, 220, 435, (97, 268)),
}

libc = ctypes.CDLL(None, use_errno=True)


class CannotError(Exception):
    """A step towards the sandbox failed."""


def call(what: str, result: int) -> None:
    """Raise where a function of libc failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise CannotError(f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    ctypes.set_errno(0)
    result = libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    call(f"mount {target}", result)


def write(path: str, text: str) -> None:
    """Write a file of /proc."""
    with open(path, "w") as file:
        file.write(text)


def namespaces() -> None:
    """New ones of every kind; outside, their user is still who started this."""
    user, group = os.getuid(), os.getgid()
    flags = (
        CLONE_NEWUSER
        | CLONE_NEWNS
        | CLONE_NEWPID
        | CLONE_NEWNET
        | CLONE_NEWIPC
        | CLONE_NEWUTS
        | CLONE_NEWCGROUP
    )
    call("unshare", libc.unshare(flags))
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"1000 {user} 1")
    write("/proc/self/gid_map", f"1000 {group} 1")


def bind(path: str, root: str) -> None:
    """Show a directory or file of the machine in the new root, read-only."""
    if not os.path.lexists(path):
        return
    target = root + path
    if os.path.islink(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.lexists(target):
            os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    mount(path, target, None, MS_BIND | MS_REC)
    # In a user namespace what was forbidden on a mount has to stay so.
    locked = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | 0x1C00)
    mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | locked)


def file_system(spec: dict[str, Any]) -> None:
    """An empty root with what Python needs, and a /tmp of bounded size."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    root = "/tmp"  # any directory that is there will do: it is covered, not changed
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
    old = f"{root}/.old"
    for path in ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", *spec["python"]]:
        bind(path, root)
    os.makedirs(f"{root}/dev")
    for name in ("null", "zero", "urandom"):
        bind(f"/dev/{name}", root)
    os.makedirs(old)
    os.makedirs(f"{root}/tmp")
    size = f"size={spec['disk_bytes']},nr_inodes=4096,mode=700"
    mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, size)
    call("pivot_root", libc.pivot_root(root.encode(), old.encode()))
    os.chdir("/tmp")
    call("umount", libc.umount2(b"/.old", MNT_DETACH))
    os.rmdir("/.old")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def limits(spec: dict[str, Any]) -> None:
    """Bounds that the kernel holds the program to."""
    seconds = int(spec["seconds"]) + 1
    for kind, value in (
        (resource.RLIMIT_AS, spec["memory_bytes"]),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, spec["disk_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_STACK, 8 << 20),
    ):
        resource.setrlimit(kind, (value, value))


def no_processes() -> None:
    """A filter under which threads can begin and processes, or namespaces, cannot.

    A limit on their number does not hold for root, whom a container often runs as.
    """
    try:
        arch, clone, clone3, denied = CALLS[platform.machine()]
    except KeyError:
        raise CannotError(f"no filter of system calls for {platform.machine()}") from None
    load, equal, masked, give = 0x20, 0x15, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    refuse, unknown = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    code: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, arch),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the number of the call
    ]
    if arch == 0xC000003E:  # the 32-bit names of x86_64's calls
        code += [(masked, 0, 1, 0x40000000), (give, 0, 0, kill)]
    for number in denied:
        code += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    # The C library goes on with clone, whose flags can be looked at.
    code += [(equal, 0, 1, clone3), (give, 0, 0, unknown)]
    code += [
        (equal, 0, 3, clone),
        (load, 0, 0, 16),  # its flags, the lower half
        (masked, 1, 0, CLONE_THREAD),
        (give, 0, 0, refuse),
        (give, 0, 0, allow),
    ]
    program = b"".join(struct.pack("HBBI", *line) for line in code)

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]

    call("no_new_privs", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    made = Filter(len(code), program)
    call("seccomp", libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(made), 0, 0))


def watch(child: int, seconds: float) -> int:
    """Wait for the program, no longer than it may take; all of its threads end with it."""
    late = False

    def stop(*_: Any) -> None:
        nonlocal late
        late = True
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _, status = os.waitpid(child, 0)
    if late:
        return LATE
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main() -> int:
    """Make the sandbox, run the program in it, and exit as it did."""
    spec = json.loads(sys.stdin.buffer.read())
    try:
        namespaces()
    except (CannotError, OSError) as error:
        print(f"{MARK}{error}", file=sys.stderr)
        return CANNOT
    child = os.fork()
    if child:
        return watch(child, spec["seconds"])
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        file_system(spec)
        with open("/tmp/program.py", "w", encoding="utf-8") as file:
            file.write(spec["program"])
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        limits(spec)
        no_processes()
        environment = {"PATH": "/usr/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
        command = [spec["executable"], "-I", "-S", "-B", "/tmp/program.py"]
        os.execve(command[0], command, environment)
    except (CannotError, OSError) as error:
        print(f"{MARK}{error}", file=sys.stderr, flush=True)
    os._exit(CANNOT)


if __name__ == "__main__":
    sys.exit(main())
