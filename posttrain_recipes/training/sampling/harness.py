"""Calls a program of others, such as a suite of evals, in a process of its own.

It may handle signals, start threads and change directories as it likes. It is waited for as an
engine's answer is, so that Ctrl-C, a limit of the run and a dead engine end it too, with all that
it started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from posttrain_recipes.plugin import PtlError, Waiter

GRACE_S = 5.0
"""How long a program may take to end once it is told to."""
TOLD = 2000
"""Characters of its last words that an error has."""


def call(
    what: str,
    command: Sequence[str],
    wait: Waiter,
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    hint: str | None = None,
) -> str:
    """Run a program to its end and return what it printed.

    Args:
        what: what it is called in errors.
        command: the program and its arguments. Keys belong into `env`: arguments are seen by
            everybody on the machine.
        wait: as in `EvalContext`.
        cwd: where it works.
        env: variables beside those of this process.
        secrets: what never stands in an error or in what is returned, such as the engine's key.
        hint: what to do where it fails.

    Raises:
        PtlError: it cannot be started, or did not end well: with its last words.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # Ctrl-C in the terminal is ours to pass on
            )
        except OSError as error:
            raise PtlError(
                f"{what} cannot be started", why=str(error), hint=hint, code="program-failed"
            ) from None
        ended: Future[int] = Future()
        threading.Thread(target=lambda: ended.set_result(process.wait()), daemon=True).start()
        try:
            code: int = wait(ended)
        except BaseException:
            _end(process)
            raise
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(without(file.read().decode(errors="replace"), secrets))
    if code != 0:
        said = "\n".join(text.strip() for text in texts if text.strip())
        how = (
            f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        )
        raise PtlError(
            f"{what} {how}",
            why=said[-TOLD:].strip() or "it said nothing",
            hint=hint,
            code="program-failed",
        )
    return texts[0]


def without(text: str, secrets: Sequence[str]) -> str:
    """A text of such a program with `***` in the place of every secret."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):  # what it started may not listen to the first
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_S)
