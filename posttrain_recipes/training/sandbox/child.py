"""The sandbox's own process: gives up every right, then runs one Python program.

    python -I -S child.py < specification

In order: a cgroup, where there is one; new namespaces for users, mounts, network, processes, IPC
and names, with a file system of an empty directory with this Python and its libraries, read-only
(or bubblewrap, which makes both); a session of its own; limits on memory, time and files; a filter
of system calls that lets no process start and no memory hide; then the program, with an empty
environment and no capability.

How it ended, or what failed on the way, is written to the pipe `told`, which is closed before the
program begins. The watcher stays outside of the namespaces: nothing in them can reach it.

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

LATE = 137
"""The status of a program that took too long: SIGKILL's."""
STARTED = "started"
STARTING_S = 8.0
"""Seconds that the sandbox may take to be made."""
BEHIND = "--behind-bubblewrap"
"""What bubblewrap starts this file with: the second half."""

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
PR_CAP_AMBIENT = 47

# By machine: the architecture's number in seccomp, and of system calls clone, clone3, prctl, and
# those that are refused: what makes processes or namespaces, hides memory from limits on address
# space, or reaches into the kernel where no Python program has to.
CALLS: dict[str, tuple[int, int, int, int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        56,
        435,
        157,
        {
            "fork": 57,
            "vfork": 58,
            "unshare": 272,
            "setns": 308,
            "shmget": 29,
            "shmat": 30,
            "shmctl": 31,
            "memfd_create": 319,
            "memfd_secret": 447,
            "semget": 64,
            "msgget": 68,
            "msgsnd": 69,
            "mq_open": 240,
            "ptrace": 101,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "mount": 165,
            "umount2": 166,
            "pivot_root": 155,
            "chroot": 161,
            "keyctl": 250,
            "add_key": 248,
            "request_key": 249,
            "perf_event_open": 298,
            "bpf": 321,
            "userfaultfd": 323,
            "io_uring_setup": 425,
            "vmsplice": 278,
            "personality": 135,
            "open_by_handle_at": 304,
            "kcmp": 312,
            "mount_setattr": 442,
            "open_tree": 428,
            "move_mount": 429,
            "fsopen": 430,
            "inotify_init": 253,
            "inotify_init1": 294,
            "fanotify_init": 300,
        },
    ),
    "aarch64": (
        0xC00000B7,
        220,
        435,
        167,
        {
            "unshare": 97,
            "setns": 268,
            "shmget": 194,
            "shmat": 196,
            "shmctl": 195,
            "memfd_create": 279,
            "memfd_secret": 447,
            "semget": 190,
            "msgget": 186,
            "msgsnd": 189,
            "mq_open": 180,
            "ptrace": 117,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "mount": 40,
            "umount2": 39,
            "pivot_root": 41,
            "chroot": 51,
            "keyctl": 219,
            "add_key": 217,
            "request_key": 218,
            "perf_event_open": 241,
            "bpf": 280,
            "userfaultfd": 282,
            "io_uring_setup": 425,
            "vmsplice": 75,
            "personality": 92,
            "open_by_handle_at": 265,
            "kcmp": 272,
            "mount_setattr": 442,
            "open_tree": 428,
            "move_mount": 429,
            "fsopen": 430,
            "inotify_init1": 26,
            "fanotify_init": 262,
        },
    ),
}
REFUSED_PRCTL = (1, 4, 22, 35)
"""Of prctl: PDEATHSIG, DUMPABLE, SECCOMP and MM; what Python's threads ask for stays."""

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


def namespaces(without: list[str]) -> None:
    """New ones of every kind; outside, their user is still who started this."""
    user, group = os.getuid(), os.getgid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
    flags |= 0 if "processes" in without else CLONE_NEWPID
    flags |= 0 if "network" in without else CLONE_NEWNET
    call("unshare", libc.unshare(flags))
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"1000 {user} 1")
    write("/proc/self/gid_map", f"1000 {group} 1")


def bind(path: str, root: str) -> None:
    """Show a directory or file of the machine in the new root, read-only."""
    if not os.path.lexists(path):
        return
    target = root + path
    if os.path.lexists(target):
        return
    if os.path.islink(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
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
    seen = spec["files"]
    if "files" in spec["without"]:
        seen = ["/usr", "/lib", "/lib64", "/bin", "/etc", "/home", "/root", "/opt", "/srv", *seen]
    for path in seen:
        bind(path, root)
    for path in [] if "files" in spec["without"] else spec["covered"]:
        mount("tmpfs", root + path, "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k")
    os.makedirs(f"{root}/dev")
    for name in ("null", "zero", "urandom"):
        bind(f"/dev/{name}", root)
    os.makedirs(old)
    os.makedirs(f"{root}/tmp")
    disk(f"{root}/tmp", spec)
    call("pivot_root", libc.pivot_root(root.encode(), old.encode()))
    os.chdir("/tmp")
    call("umount", libc.umount2(b"/.old", MNT_DETACH))
    os.rmdir("/.old")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def disk(where: str, spec: dict[str, Any]) -> None:
    """A disk of bounded size, and of a bounded number of files: those are memory too."""
    size = f"size={spec['disk_bytes']},nr_inodes=4096,mode=700"
    mount("tmpfs", where, "tmpfs", MS_NOSUID | MS_NODEV, size)


def powerless() -> None:
    """No capability any more, nor any that a program could get."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    call("ambient", libc.prctl(PR_CAP_AMBIENT, 4, 0, 0, 0))
    nothing = (ctypes.c_uint32 * 6)()
    call("capset", libc.capset(ctypes.byref(Header(0x20080522, 0)), ctypes.byref(nothing)))


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
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 64),
    ):
        resource.setrlimit(kind, (value, value))


def filtered() -> None:
    """A filter under which threads can begin and processes, or namespaces, cannot, and under which
    all memory counts in the limit on address space.

    A limit on the number of processes does not hold for root, whom a container often runs as.
    """
    try:
        arch, clone, clone3, prctl, denied = CALLS[platform.machine()]
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
    for number in denied.values():
        code += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    options = [(equal, len(REFUSED_PRCTL) - i, 0, o) for i, o in enumerate(REFUSED_PRCTL)]
    code += [
        (equal, 0, len(options) + 3, prctl),
        (load, 0, 0, 16),  # what it is asked for
        *options,
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    ]
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


# --- the watcher ---------------------------------------------------------------------------------


def watch(child: int, ready: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Wait for the program, no longer than it may take; all that it is ends with it.

    Returns what is told of it: its status and whether it was late, or why it `cannot` run.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.setitimer(signal.ITIMER_REAL, spec["seconds"] + STARTING_S)
    try:
        said = os.read(ready, 1 << 16).decode(errors="replace")
        if said != STARTED:
            os.waitpid(child, 0)
            return {"cannot": said}
        signal.setitimer(signal.ITIMER_REAL, spec["seconds"])
        _, status = os.waitpid(child, 0)
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"status": LATE, "late": True}
    signal.setitimer(signal.ITIMER_REAL, 0)
    signalled = os.WIFSIGNALED(status)
    return {
        "status": 128 + os.WTERMSIG(status) if signalled else os.WEXITSTATUS(status),
        "late": False,
    }


def behind_bubblewrap(spec: dict[str, Any], ready: int) -> None:
    """Become bubblewrap, which makes namespaces and file system and starts the second half."""
    without = spec["without"]
    command = [spec["bubblewrap"], "--unshare-user", "--unshare-ipc", "--unshare-uts"]
    command += [] if "processes" in without else ["--unshare-pid"]
    command += [] if "network" in without else ["--unshare-net"]
    command += ["--unshare-cgroup-try", "--die-with-parent"]
    command += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]  # until the second half
    command += ["--uid", "1000", "--gid", "1000"]
    command += [] if "session" in without else ["--new-session"]
    if "files" in without:
        command += ["--ro-bind", "/", "/", "--dev-bind", "/dev", "/dev"]
    else:
        for path in spec["files"]:
            if os.path.islink(path):
                command += ["--symlink", os.readlink(path), path]
            else:
                command += ["--ro-bind", path, path]
        for path in spec["covered"]:
            command += ["--tmpfs", path, "--remount-ro", path]
        for name in ("null", "zero", "urandom"):
            command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    if "files" not in without:
        command += ["--dir", "/tmp", "--ro-bind", os.path.abspath(__file__), "/.child.py"]
        command += ["--remount-ro", "/"]
    command += ["--chdir", "/tmp", "--clearenv"]
    script = os.path.abspath(__file__) if "files" in without else "/.child.py"
    command += [spec["executable"], "-I", "-S", script, BEHIND, str(ready)]
    os.execve(command[0], command, {"PATH": "/usr/bin:/bin"})


def second_half(spec: dict[str, Any], ready: int) -> None:
    """Within the namespaces: give up the rest, and become the program."""
    if spec["bubblewrap"]:
        disk("/tmp", spec)
        os.chdir("/tmp")
        powerless()
    with open("/tmp/program.py", "w", encoding="utf-8") as file:
        file.write(spec["program"])
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    if "limits" not in spec["without"]:
        limits(spec)
    os.set_inheritable(ready, False)
    os.closerange(3, ready)
    os.closerange(ready + 1, 4096)
    environment = {"PATH": "/usr/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
    command = [spec["executable"], "-I", "-S", "-B", "/tmp/program.py"]
    if "filter" not in spec["without"]:
        filtered()
    os.write(ready, STARTED.encode())
    os.execve(command[0], command, environment)


def become(spec: dict[str, Any], given: bytes, ready: int) -> None:
    """The child of the watcher, up to the program. Does not return."""
    try:
        if spec["bubblewrap"]:
            reading, writing = os.pipe()
            if os.fork() == 0:  # the specification, for the second half
                os.close(reading)
                _all(writing, given)
                os._exit(0)
            os.close(writing)
            os.dup2(reading, 0)
            os.set_inheritable(ready, True)
            behind_bubblewrap(spec, ready)
        if "session" not in spec["without"]:
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        file_system(spec)
        second_half(spec, ready)
    except (CannotError, OSError) as error:
        os.write(ready, str(error).encode() or b"?")
    os._exit(1)


def _all(where: int, given: bytes) -> None:
    while given:
        given = given[os.write(where, given) :]


def main() -> int:
    """Make the sandbox, run the program in it, and tell how it ended."""
    given = sys.stdin.buffer.read()
    spec = json.loads(given)
    if sys.argv[1:2] == [BEHIND]:
        ready = int(sys.argv[2])
        try:
            second_half(spec, ready)
        except (CannotError, OSError) as error:
            os.write(ready, str(error).encode() or b"?")
        return 1
    try:
        if spec["cgroup"]:
            write(spec["cgroup"], str(os.getpid()))
        if not spec["bubblewrap"]:
            namespaces(spec["without"])
        reading, ready = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.close(spec["told"])
            become(spec, given, ready)
        os.close(ready)
        told = watch(child, reading, spec)
    except (CannotError, OSError) as error:
        told = {"cannot": str(error)}
    os.write(spec["told"], json.dumps(told).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
