"""Programs that try to get out of the sandbox, behind either wall, as root and as another user.

Every attack is tried as it stands, and once more without the protection that holds it: then it has
to succeed, so that a test that passes says something.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from posttrain_recipes.plugin import Sample
from posttrain_recipes.rewards.python_tests import PythonTests
from posttrain_recipes.training.sandbox import cgroup, runner
from posttrain_recipes.training.sandbox.runner import SandboxLimits, SandboxResult

pytestmark = pytest.mark.skipif(
    runner.why_not() is not None, reason=f"no sandbox here: {runner.why_not()}"
)
ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
LIMITS = SandboxLimits(seconds=20, memory=192 * MIB, disk=16 * MIB)
BWRAP = shutil.which("bwrap")
SPARE = cgroup.make(MIB)
if SPARE is not None:
    SPARE.remove()


@pytest.fixture(params=["own", "bubblewrap"])
def wall(request: pytest.FixtureRequest) -> str:
    """Our own namespaces, or bubblewrap's."""
    if request.param == "own":
        return "own"
    if BWRAP is None:
        pytest.skip("bubblewrap is not installed")
    return BWRAP


def attack(
    program: str, wall: str, without: Collection[str] = (), limits: SandboxLimits = LIMITS
) -> SandboxResult:
    return runner.execute(f"{TOOLS}\n{program}", limits, wall, without)


TOOLS = """
import ctypes, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
"""
HELD = "print('held')"
FORK = "if os.fork() == 0: os._exit(0)\nprint('through')"
MEMFD = """
taken = 0
for n in range(40):
    fd = os.memfd_create(str(n))
    taken += os.write(fd, bytes(8 << 20))
print('through' if taken >= 300 << 20 else 'held', taken)
"""
SHM = """
taken = 0
for n in range(10):
    key = libc.shmget(0, ctypes.c_size_t(32 << 20), 0o1600)
    where = libc.shmat(key, None, 0) if key >= 0 else None
    if where in (None, -1, 2 ** 64 - 1):
        break
    ctypes.memset(where, 1, 32 << 20)
    libc.shmdt(ctypes.c_void_p(where))
    taken += 32
print('through' if taken >= 300 else 'held', taken)
"""
MEMORY = "x = bytearray(400 << 20)\nprint('through', len(x))"
UNWATCH = "print('through' if libc.prctl(1, 0, 0, 0, 0) == 0 else 'held')"
FILES = (
    "print('through' if os.path.exists('/usr/src') or os.path.exists('/etc/passwd') else 'held')"
)
NAMESPACE = "print('through' if libc.unshare(0x10000000) == 0 else 'held')"
PTRACE = "print('through' if libc.ptrace(0, 0, 0, 0) == 0 else 'held')"
KEYS = "print('through' if libc.syscall(250, 1, 0, 0, 0, 0) >= 0 else 'held')"
MESSAGES = "print('through' if libc.msgget(0, 0o1600) >= 0 else 'held')"

WALLS = {
    "a process": (FORK, {"filter"}),
    "memory of files": (MEMFD, {"filter", "cgroup"}),
    "shared memory": (SHM, {"filter", "cgroup"}),
    "memory": (MEMORY, {"limits", "cgroup"}),
    "the watcher's hold": (UNWATCH, {"filter"}),
    "files of the machine": (FILES, {"files"}),
    "a namespace": (NAMESPACE, {"filter"}),
    "tracing": (PTRACE, {"filter"}),
    "message queues": (MESSAGES, {"filter"}),
}


@pytest.mark.parametrize("name", WALLS)
def test_an_attack_is_held_and_would_succeed_without_what_holds_it(name: str, wall: str) -> None:
    program, without = WALLS[name]
    assert "through" not in attack(program, wall).output
    assert "through" in attack(program, wall, without).output


@pytest.mark.parametrize("without", [set(), {"network"}])
def test_the_network(wall: str, without: set[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"socket.create_connection(('127.0.0.1', {port}), 5)\nprint('through')"
        assert ("through" in attack(program, wall, without).output) == bool(without)


@pytest.mark.skipif(SPARE is None, reason="no cgroup can be made here")
@pytest.mark.parametrize("program", [MEMFD, SHM])
def test_a_cgroup_bounds_what_the_filter_might_miss(program: str, wall: str) -> None:
    outcome = attack(program, wall, {"filter"})
    assert "through" not in outcome.output
    assert "through" in attack(program, wall, {"filter", "cgroup"}).output


# --- outliving it --------------------------------------------------------------------------------


def alive(name: str) -> list[int]:
    """Processes of this machine that are called so."""
    found = []
    for place in Path("/proc").glob("[0-9]*/comm"):
        try:
            if place.read_text().strip() == name:
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def name() -> Iterator[str]:
    made = f"ptl{uuid.uuid4().hex[:10]}"
    yield made
    for process in alive(made):
        os.kill(process, 9)


LEAVES = {
    "kills its group": "os.kill(0, 9)",
    "stops its group": "os.kill(0, 19)",
    "kills all": "os.kill(-1, 9)",
    "stops all": "os.kill(-1, 19)",
    "ends its group gently": "os.kill(0, 15)",
    "kills the first process": "os.kill(1, 9)",
    "kills its parent": "os.kill(os.getppid(), 9)",
    "ignores all": "[signal.signal(n, signal.SIG_IGN) for n in range(1, 65) if n not in "
    "(9, 19, 32, 33)]",
    "starts a thread": "import threading; threading.Thread(target=time.sleep, args=(99,)).start()",
}


@pytest.mark.parametrize("how", LEAVES)
def test_nothing_outlives_its_time(how: str, wall: str, name: str) -> None:
    program = f"""
libc.prctl(15, {name.encode()!r}, 0, 0, 0)
libc.prctl(1, 0, 0, 0, 0)
try:
    {LEAVES[how]}
except OSError:
    pass
time.sleep(99)
"""
    outcome = attack(program, wall, limits=SandboxLimits(seconds=1))
    assert not outcome.passed
    assert not alive(name)


def test_a_session_of_its_own_keeps_signals_from_the_watcher() -> None:
    program = "os.kill(0, 15)\ntime.sleep(0.2)\nprint('still here')"
    assert attack(program, "own").output == "still here\n"
    assert attack(program, "own", {"session"}).late


# --- what it says of itself ----------------------------------------------------------------------


def test_a_program_cannot_say_that_there_is_no_sandbox(wall: str) -> None:
    for said in ("ptl-sandbox: no namespaces", json.dumps({"cannot": "no"}), "started"):
        for status in (1, 97, 98, 137):
            outcome = attack(f"print({said!r}, flush=True)\nos._exit({status})", wall)
            assert (outcome.status, outcome.late, outcome.passed) == (status, False, False)


def test_a_program_has_no_way_to_the_watcher(wall: str) -> None:
    program = """
for fd in range(3, 64):
    try:
        os.write(fd, b'{"status": 0, "late": false}\\n')
        print('wrote to', fd)
    except OSError:
        pass
print(sorted(os.environ), os.getuid(), len(os.listdir('/dev')), flush=True)
os._exit(3)
"""
    outcome = attack(program, wall)
    assert outcome.status == 3
    assert outcome.output == "['HOME', 'LANG', 'PATH'] 1000 3\n"


def test_right_programs_pass_behind_either_wall(wall: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops, helpers and floats, as the tests of HumanEval have them."""
    monkeypatch.setattr(runner, "wall", lambda: wall)
    solved = {
        "def mean(xs):\n    return sum(xs) / len(xs)": "assert abs(mean([1.0, 2.0]) - 1.5) < 1e-6",
        "def primes(n):\n    return [p for p in range(2, n) if all(p % d for d in range(2, p))]": (
            "def check(f):\n    assert f(12) == [2, 3, 5, 7, 11]\n    for n in range(3):\n"
            "        assert f(n) == []\ncheck(primes)"
        ),
        "import math\ndef area(r):\n    return math.pi * r ** 2": (
            "assert math.isclose(area(2), 12.566370614359172)"
        ),
        "def helper(s):\n    return s[::-1]\ndef same(s):\n    return s == helper(s)": (
            "assert same('abba')\nassert not same('ab')"
        ),
    }
    reward = PythonTests(PythonTests.Config(seconds=20))
    right = [Sample((), code, metadata={"tests": t}) for code, t in solved.items()]
    assert reward.score(right) == [1.0] * len(solved)
    wrong = [Sample((), "def f(): pass", metadata={"tests": t}) for t in solved.values()]
    assert reward.score(wrong) == [0.0] * len(solved)


# --- another user --------------------------------------------------------------------------------

DRIVER = """
import json, sys
from posttrain_recipes.training.sandbox import runner
limits = runner.SandboxLimits(seconds=20, memory=192 << 20)
said = {}
for name, (program, without) in json.loads(sys.stdin.read()).items():
    found = [runner.execute(program, limits, runner.wall(), w).output for w in ((), without)]
    said[name] = found
print(json.dumps(said))
"""


def _interpreter() -> str | None:
    """A Python that every user of this machine may run."""
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        real = Path(os.path.realpath(path))
        open_to_all = all(p.stat().st_mode & 1 for p in (real, *real.parents) if p.exists())
        if real.exists() and open_to_all:
            version = [path, "-c", "import sys; exit(sys.version_info < (3, 11))"]
            if subprocess.run(version, check=False).returncode == 0:
                return path
    return None


@pytest.mark.skipif(os.getuid() != 0, reason="this is an ordinary user already")
@pytest.mark.skipif(_interpreter() is None, reason="no Python here that another user may run")
def test_the_same_holds_for_an_ordinary_user() -> None:
    # Not below tmp_path: another pytest that starts meanwhile closes its folder to other users.
    with tempfile.TemporaryDirectory() as made:
        told = _told_to_an_ordinary_user(Path(made))
    for name, (held, through) in told.items():
        assert "through" not in held, name
        assert "through" in through, name


def _told_to_an_ordinary_user(place: Path) -> dict[str, list[str]]:
    """What each program printed with all walls, and with those left out that shall hold it."""
    package = place / "posttrain_recipes"
    for file in (
        "__init__.py",
        "errors.py",
        "exits.py",
        "training/__init__.py",
        "training/sandbox",
    ):
        copy = package / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.endswith(".py"):
            whole = file in ("errors.py", "exits.py")
            copy.write_text((ROOT / "posttrain_recipes" / file).read_text() if whole else "")
        else:
            shutil.copytree(ROOT / "posttrain_recipes" / file, copy)
    for path in (place, *place.rglob("*")):
        path.chmod(0o755)
    asked = {n: (f"{TOOLS}\n{p}", sorted(w)) for n, (p, w) in WALLS.items()}
    python = _interpreter()
    assert python is not None
    done = subprocess.run(
        [python, "-c", DRIVER],
        input=json.dumps(asked),
        env={"PYTHONPATH": str(place), "PATH": os.environ["PATH"], "HOME": str(place)},
        user=65534,
        group=65534,
        extra_groups=[],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, list[str]] = json.loads(done.stdout)
    return told
