"""Runs that nobody looks at: a terminal that is closed, events, and what is told of the end."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from posttrain_recipes.store import Store
from tests.conftest import ROOT

RECIPE = """\
name: small
model: ptl/nano
lora: {rank: 4}
stages:
  - name: sft
    dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 40, test_size: 8}
    method: {use: sft, learning_rate: 1e-3, batch_size: 4, save_every: 2, max_steps: 8, epochs: 2}
    eval: [{use: nll}]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    data = ROOT / "recipes" / "data"
    path.write_text(RECIPE.replace("DATA", str(data)))
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "posttrain_recipes.cli", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.mark.nightly
def test_a_closed_terminal_ends_nothing(recipe: Path, tmp_path: Path) -> None:
    """The terminal is the process's own: closing it sends the SIGHUP that a person's would."""
    ours, theirs = pty.openpty()

    def own() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY)

    home = tmp_path / "home"
    process = subprocess.Popen(
        command("run", recipe, "--home", home),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=own,
        env=environment(),
    )
    os.close(theirs)
    seen = b""
    while b"1/1 sft" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(120) == 0
    (record,) = Store(home).runs()
    assert (record.status, record.stages[0].total_steps) == ("finished", 8)
