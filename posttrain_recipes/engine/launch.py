"""Start the embedded engine as a child process, and make sure it ends with its parent.

Nothing heavy is imported here, and `start` returns as soon as the port listens: the engine imports
torch and loads its models while the caller does something else.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from posttrain_recipes import private
from posttrain_recipes.atomic import require_directory
from posttrain_recipes.errors import PtlError, writing

KILLED = (
    "it was killed by signal 9, and not by this program: as a rule the system does that where "
    "memory runs out (dmesg says so)"
)
"""What is said of an engine that the system ended."""
LOG_LINES = 15  # of the engine's log, shown when it fails


@dataclass
class EngineProcess:
    """A running engine. Also a context manager that stops it."""

    base_url: str
    api_key: str
    log_path: Path
    process: subprocess.Popen[bytes]
    lifeline: int  # the engine ends when this descriptor closes
    log_start: int = 0  # bytes that earlier engines wrote into that log
    stopped: bool = False  # by `stop`

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self.process.pid

    def poll(self) -> int | None:
        """The exit status, or None while the engine runs."""
        return self.process.poll()

    @property
    def is_alive(self) -> bool:
        """Whether the engine runs."""
        return self.poll() is None

    @property
    def killed(self) -> str | None:
        """In words, that it was ended by a SIGKILL which this process did not send."""
        return KILLED if self.poll() == -signal.SIGKILL and not self.stopped else None

    def log_tail(self, lines: int = LOG_LINES) -> str:
        """The last lines of the log that are this engine's."""
        return _tail(self.log_path, lines, self.log_start)

    def stop(self, grace_s: float = 20.0) -> None:
        """End the engine: politely, so that it finishes a save, then not. Safe to call again."""
        if self.is_alive:
            self.stopped = True
            self.process.terminate()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start(
    models: Mapping[str, str],
    data_dir: Path,
    log_path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    timeout_s: float = 60.0,
    chat_template: Path | None = None,
    dtype: str = "",
) -> EngineProcess:
    """Start an engine serving `models` (name -> directory or hub id).

    Args:
        models: what clients may name as base_model. Any directory or hub id works as well.
        data_dir: where the engine keeps runs and checkpoints.
        log_path: where its output goes (appended).
        host: the address to listen on.
        port: the port, 0 for a free one.
        timeout_s: how long to wait for the port.
        chat_template: a Jinja file that stands in for the models' own.
        dtype: what base models are held in; by default float32 on a CPU, bfloat16 on a GPU.

    Raises:
        PtlError: it did not start; the message ends with the log's last lines.
    """
    require_directory(data_dir)
    with writing(log_path), private.files():
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log_path.touch()
        earlier = log_path.stat().st_size
    token = f"tml-{secrets.token_hex(24)}"
    ready_read, ready_write = os.pipe()
    lifeline_read, lifeline_write = os.pipe()
    command = [
        sys.executable, "-m", "posttrain_recipes.engine",
        "--host", host, "--port", str(port), "--data-dir", str(data_dir),
        "--ready-fd", str(ready_write), "--lifeline-fd", str(lifeline_read),
        "--parent-pid", str(os.getpid()),
    ]  # fmt: skip
    if dtype:
        command += ["--dtype", dtype]
    if chat_template is not None:
        command += ["--chat-template", str(chat_template)]
    for name, path in models.items():
        command += ["--model", f"{name}={path}"]
    try:
        process = _spawn(command, log_path, _environment(token), ready_write, lifeline_read)
    except BaseException:
        for descriptor in (ready_read, ready_write, lifeline_read, lifeline_write):
            os.close(descriptor)
        raise
    os.close(ready_write)
    os.close(lifeline_read)
    engine = EngineProcess("", token, log_path, process, lifeline_write, earlier)
    try:
        engine.base_url = _wait_for_url(ready_read, timeout_s)
    except BaseException:
        engine.process.kill()
        engine.stop()
        raise
    finally:
        os.close(ready_read)
    if not engine.base_url:
        killed = engine.killed
        engine.process.kill()
        status = engine.process.wait()
        engine.stop()
        if killed:
            raise PtlError("the engine did not start", why=killed, hint="free some memory")
        raise PtlError(
            f"the engine did not start (exit status {status})",
            why=f"its log, {log_path}, ends:\n{engine.log_tail()}",
            hint="fix what the log names, or run the command by hand: "
            f"{' '.join(command[:3])} --help",
        )
    return engine


def _spawn(
    command: list[str], log_path: Path, environment: Mapping[str, str], ready: int, lifeline: int
) -> subprocess.Popen[bytes]:
    """The process. It tells where it listens by `ready`, and ends with the end of `lifeline`."""
    with private.files(), log_path.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=(ready, lifeline),
            start_new_session=True,  # Ctrl-C is for the parent, which then stops the engine
        )


def _environment(token: str) -> dict[str, str]:
    """The child's environment: the token, and this package found where the parent found it."""
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PTL_ENGINE_TOKEN": token,
        "PYTHONPATH": os.pathsep.join([root, inherited] if inherited else [root]),
        "PYTHONSAFEPATH": "1",  # a torch.py in the user's folder is not torch
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _wait_for_url(descriptor: int, timeout_s: float) -> str:
    """What the engine writes once it listens; empty if it ended, or took too long."""
    deadline = time.monotonic() + timeout_s
    received = b""
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([descriptor], [], [], left)
        if not ready:
            break
        part = os.read(descriptor, 4096)
        if not part:
            return received.decode()
        received += part
    return ""


def _tail(path: Path, lines: int, start: int) -> str:
    try:
        with path.open("rb") as log:
            log.seek(start)
            text = log.read().decode("utf-8", errors="replace")
    except OSError as error:
        return f"(cannot be read: {error})"
    return "\n".join(text.splitlines()[-lines:])
