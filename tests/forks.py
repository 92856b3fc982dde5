"""Processes forked from one that has imported everything, which saves seconds each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.datasets import ptl_datasets
from posttrain_recipes.engine import launch
from posttrain_recipes.evals import ptl_evals
from posttrain_recipes.methods import ptl_methods
from posttrain_recipes.rewards import ptl_rewards
from tests.cookbook_programs import PRELOADED

ENGINE = (
    "posttrain_recipes.engine.__main__",
    "posttrain_recipes.engine.model.base",
    "posttrain_recipes.engine.train.forward_backward",
    "posttrain_recipes.engine.generate.batcher",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.auto.tokenization_auto",
)
"""What an engine imports, most of it when the first model is loaded."""
RUN = (
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    *(
        where.partition(":")[0]
        for hook in (ptl_methods, ptl_datasets, ptl_evals, ptl_rewards)
        for where in hook().values()
    ),
    "posttrain_recipes.running.runner",
    "posttrain_recipes.training.text.chat_template",
    "tinker",
    "torch",
)
"""What a run imports: seconds, and most of them in what is imported only when it is called."""


IMPORTED_WITH = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
"""What torch, as in the engine, and the hub's client read when they are imported."""


def context() -> ForkServerContext:
    """Where processes are forked from.

    There is one such place in a process, which imports what it was told before its first fork, in
    the environment of that moment: both have to be the same for everybody. What else a fork needs
    of the environment it has to be given.
    """
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([*RUN, *ENGINE, *PRELOADED])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in IMPORTED_WITH.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return made


class Forked:
    """An engine's process, with what `launch` uses of `subprocess.Popen`."""

    started: list[Forked] = []
    """All of them, the last one last."""

    def __init__(
        self, command: Sequence[str], log: Path, token: Mapping[str, str], ready: int, lifeline: int
    ) -> None:
        assert command[:3] == [sys.executable, "-m", "posttrain_recipes.engine"]
        self.command = command
        ends = (Connection(os.dup(ready)), Connection(os.dup(lifeline)))
        self._process = context().Process(
            target=_serve, args=(command[3:], str(log), dict(token), os.getcwd(), *ends)
        )
        self._process.start()
        for end in ends:
            end.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.started.append(self)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired(list(self.command), timeout or 0.0)
        return status

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _logged(log: str) -> None:
    """Be a process that computes on one core and writes what it says to a file."""
    from posttrain_recipes.engine.model import base

    # Two threads that wait for each other are slow where others want the cores as well.
    base._cores = lambda: 1
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)


def _serve(
    arguments: list[str],
    log: str,
    environment: dict[str, str],
    folder: str,
    ready: Connection,
    lifeline: Connection,
) -> None:
    from posttrain_recipes.engine import __main__ as engine

    _logged(log)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    logging.root.handlers.clear()
    mine = {
        "--ready-fd": os.dup(ready.fileno()),
        "--lifeline-fd": os.dup(lifeline.fileno()),
        "--parent-pid": os.getppid(),
    }
    ready.close()
    lifeline.close()
    for option, value in mine.items():
        arguments[arguments.index(option) + 1] = str(value)
    status = engine.main(arguments)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


TOKEN = "tml-of-an-engine-that-was-forked"


@contextmanager
def served(models: Mapping[str, str], folder: Path, **options: Any) -> Iterator[str]:
    """The address of an engine that is run as `ptl serve` runs it; its token is `TOKEN`."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = context().Process(target=_run, args=(dict(models), str(folder), options, writer))
    process.start()
    writer.close()
    try:
        yield reader.recv()
    finally:
        process.terminate()
        process.join()


def _run(models: dict[str, str], folder: str, options: dict[str, Any], ready: Connection) -> None:
    from posttrain_recipes.engine.__main__ import run_server

    _logged(f"{folder}.log")
    run_server(models, Path(folder), TOKEN, on_ready=ready.send, **options)
    os._exit(0)


@contextmanager
def engines() -> Iterator[None]:
    """Within, engines are forked."""

    def fork(
        command: list[str], log: Path, environment: Mapping[str, str], ready: int, lifeline: int
    ) -> Any:
        return Forked(command, log, environment, ready, lifeline)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_spawn", fork)
        yield
