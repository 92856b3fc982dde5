"""What a program cannot do in the sandbox, tried for real."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from posttrain_recipes.errors import UsageError
from posttrain_recipes.plugin import Sample
from posttrain_recipes.rewards.python_tests import PythonTests
from posttrain_recipes.training.sandbox import runner
from posttrain_recipes.training.sandbox.runner import SandboxLimits, SandboxResult, run

needs_sandbox = pytest.mark.skipif(
    runner.why_not() is not None, reason=f"no sandbox here: {runner.why_not()}"
)
QUICK = SandboxLimits(seconds=20)


def ended(program: str, limits: SandboxLimits = QUICK) -> SandboxResult:
    outcome = run(program, limits)
    assert not outcome.late, outcome.output
    return outcome


@needs_sandbox
def test_a_program_runs_with_the_standard_library() -> None:
    outcome = ended("import json, decimal, threading; print(json.dumps({'a': 1}))")
    assert outcome.passed
    assert outcome.output == '{"a": 1}\n'


@needs_sandbox
def test_it_reaches_no_server_not_even_of_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = ended(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")
        assert outcome.status == 1
        assert "unreachable" in outcome.output or "refused" in outcome.output
        server.settimeout(0.01)
        with pytest.raises(TimeoutError):
            server.accept()


@needs_sandbox
def test_it_sees_no_file_of_the_user_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("my-secret")
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret")
    outcome = ended(
        "import os\n"
        "seen = [p for d, _, fs in os.walk('/') for f in fs for p in [os.path.join(d, f)]]\n"
        f"assert not os.path.exists({str(secret)!r})\n"
        f"assert not os.path.exists({str(Path(__file__).resolve())!r})\n"
        "assert not os.path.exists('/etc/passwd') and not os.path.exists('/proc/1')\n"
        "assert not any(p.startswith(('/home/', '/var/')) for p in seen)\n"
        "print(sorted(os.environ), os.listdir('/tmp'), os.getcwd())"
    )
    assert outcome.output == "['HOME', 'LANG', 'PATH'] ['program.py'] /tmp\n"
    assert outcome.passed


@needs_sandbox
@pytest.mark.parametrize(
    "start",
    [
        "os.fork()",
        "subprocess.run(['/bin/true'])",
        "multiprocessing.get_context('spawn').Process(target=print).start()",
        "ctypes.CDLL(None, use_errno=True).syscall(435, 0, 0) == 0 or exit(1)",
        "ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0 or exit(1)",
    ],
)
def test_it_starts_no_process_and_no_namespace(start: str) -> None:
    outcome = ended(f"import os, subprocess, multiprocessing, ctypes\n{start}\nprint('started')")
    assert outcome.status != 0
    assert "started" not in outcome.output


@needs_sandbox
def test_its_memory_is_bounded() -> None:
    outcome = ended("x = bytearray(1 << 30)", SandboxLimits(seconds=20, memory=128 << 20))
    assert outcome.status == 1
    assert "MemoryError" in outcome.output


@needs_sandbox
def test_its_disk_and_output_are_bounded(tmp_path: Path) -> None:
    limits = SandboxLimits(seconds=20, disk=1 << 20)
    full = ended("open('/tmp/x', 'wb').write(bytes(8 << 20))", limits)
    assert full.status != 0
    many = ended("for i in range(10**5): open(f'/tmp/{i}', 'w')", limits)
    assert many.status != 0
    loud = ended("while True: print('x' * 1000)", limits)
    assert loud.status != 0
    assert len(loud.output) <= runner.OUTPUT


@needs_sandbox
def test_it_writes_nowhere_else() -> None:
    for place in ("/usr", "/lib", "/", os.path.dirname(os.__file__)):
        outcome = ended(f"open({place + '/ptl-was-here'!r}, 'w')")
        assert outcome.status == 1
        assert not os.path.exists(f"{place}/ptl-was-here")


@needs_sandbox
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\nwhile True: time.sleep(1)",
        "import signal, os\n"
        "for n in range(1, 32):\n"
        "    if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\n"
        "os.setsid() if os.getpid() != os.getsid(0) else None\n"
        "while True: pass",
    ],
)
def test_it_does_not_run_for_ever(program: str) -> None:
    outcome = run(program, SandboxLimits(seconds=0.5))
    assert outcome.late
    assert not outcome.passed


def test_a_machine_without_a_sandbox_runs_nothing_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import json, os, sys\n"
        "told = json.load(sys.stdin)['told']\n"
        'os.write(told, b\'{"cannot": "unshare: Operation not permitted"}\\n\')\n'
    )
    monkeypatch.setattr(runner, "CHILD", child)
    runner.why_not.cache_clear()
    runner.wall.cache_clear()
    try:
        with pytest.raises(UsageError, match="no sandbox") as caught:
            run("print('ran')")
        assert "unshare: Operation not permitted" in str(caught.value.why)
        assert "sysctl" in str(caught.value.hint)
        [(option, message)] = PythonTests(PythonTests.Config()).problems()
        assert option == "use"
        assert "unshare" in message
        assert "sysctl" in message
    finally:
        runner.why_not.cache_clear()
        runner.wall.cache_clear()


# --- the reward ----------------------------------------------------------------------------------


def scores(
    *replies: str, tests: object = ("assert double(2) == 4", "assert double(0) == 0"), **o: object
) -> list[float | None]:
    made = PythonTests(PythonTests.Config.model_validate(o))
    samples = [Sample(prompt=(), completion=r, metadata={"tests": tests}) for r in replies]
    return made.score(samples)


@needs_sandbox
def test_python_tests_pass_or_fail() -> None:
    good = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nas asked"
    bad = "def double(x):\n    return x + 2"
    cheat = "def double(x): return 0\nimport sys\nprint('2')\nsys.exit(0)"
    assert scores(good, bad, cheat, "not python", "") == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert scores(good, bad, score="share") == [1.0, 0.5]
    assert scores(good, tests="assert double(1) == 2") == [1.0]
    assert scores(good, tests=[]) == [None]
    loop = "def double(x):\n    while True: pass"
    assert scores(loop, seconds=0.5) == [0.0]
