"""Runs that nobody looks at: a terminal that is closed, events, and what is told of the end."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from posttrain_recipes.progress.event_schema import EVENTS, event_schema
from posttrain_recipes.store import Store
from tests.conftest import ROOT, Ptl

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


def events(path: Path) -> list[dict[str, Any]]:
    """What a run wrote, each of the form that the schema has."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    validator = Draft202012Validator(event_schema())
    for event in found:
        validator.validate(event)
    return found


@pytest.mark.nightly
def test_events_tell_a_run_to_its_end_and_so_does_on_end(
    recipe: Path, tmp_path: Path, ptl: Ptl, quick_engines: None
) -> None:
    """Stopped by a bound, then taken to its end, where a gate does not hold."""
    recipe.write_text(
        recipe.read_text()
        + "    expect: {nll: '<= 0.001'}\n"
        + "limits: {max_tokens: 1200}\n"
        + "on_end: {command: [sh, -c, 'cat >> told.jsonl; echo >> told.jsonl']}\n"
    )
    log, words = tmp_path / "events.jsonl", ("run", str(recipe), "--home", str(tmp_path / "home"))
    stopped = ptl(*words, "--events", str(log))
    assert stopped.code == 4, stopped.err
    first = events(log)
    ended = ptl(*words, "--set", "limits.max_tokens=10000000", "--events", "-")
    assert ended.code == 3, ended.err
    log.write_text(ended.out)
    second = events(log)

    assert (first[-1]["status"], first[-1]["code"]) == ("limit-reached", "limit-reached")
    assert [event["resumed"] for event in (first[0], second[0])] == [False, True]
    steps = [event for event in (*first, *second) if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 9)), "each once, over both tries"
    assert all(event["stage"] == "sft" for event in steps)
    last = second[-1]
    assert (last["event"], last["status"], last["exit_code"]) == ("ended", "gate-failed", 3)
    assert [row["eval"] for row in last["results"]] == ["nll"]
    assert {event["event"] for event in second} >= {"training", "saved", "evaluated"}
    assert {event["event"] for event in second} <= set(EVENTS)
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert [one["exit_code"] for one in told] == [4, 3]
    assert told[1]["results"] == last["results"]
    (record,) = Store(tmp_path / "home").runs()
    assert (record.told, record.untold) == ("gate-failed", None)


def script(page: Path, first: str) -> str:
    """The block of a page that begins with this line."""
    blocks = page.read_text(encoding="utf-8").split("```")
    return next(
        text.partition("\n")[2] for text in blocks if text.partition("\n")[2].startswith(first)
    )


@pytest.mark.nightly
def test_the_script_for_slurm_goes_on_until_the_run_is_whole(recipe: Path, tmp_path: Path) -> None:
    """Under a real `timeout -s TERM`, which is sent to the script alone as Slurm's is."""
    recipe.write_text(
        recipe.read_text().replace("max_steps: 8, epochs: 2", "max_steps: 120, epochs: 30")
    )
    recipe.rename(recipe.with_name("recipe.yaml"))
    job = tmp_path / "train.sh"
    job.write_text(script(ROOT / "docs" / "how-to" / "unattended.md", "#!/bin/bash\n#SBATCH"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "ptl": f'exec "{sys.executable}" -m posttrain_recipes.cli "$@"',
        "scontrol": f'echo "$@" >> "{tmp_path}/requeued"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    there = {**environment(), "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}

    def submit(seconds: float, home: str) -> int:
        command = ["timeout", "--foreground", "-s", "TERM", str(seconds), "bash", str(job)]
        again = {**there, "PTL_HOME": str(tmp_path / home)}
        return subprocess.run(command, cwd=tmp_path, env=again, check=False).returncode

    began = time.monotonic()
    assert submit(600, "whole") == 0
    took = time.monotonic() - began
    (whole,) = Store(tmp_path / "whole").runs()
    assert not (tmp_path / "requeued").exists()
    tries, left = 0, 0.6 * took  # in the midst of training, however fast this machine is
    # `timeout` exits with 124 where it sent the signal, whatever the script made of it.
    while (code := submit(left, "parts")) == 124:
        tries, left = tries + 1, left + 0.1 * took
    assert code == 0
    (record,) = Store(tmp_path / "parts").runs()
    assert (tmp_path / "requeued").read_text().split("\n") == [*tries * ["requeue 7"], ""]
    starts = [
        event["step"] for event in events(tmp_path / "events.jsonl") if event["event"] == "training"
    ]
    assert any(0 < step < 120 for step in starts), "it was stopped in the midst, and went on"
    for mine, theirs in zip(record.stages, whole.stages, strict=True):
        assert mine.tokens == theirs.tokens
        for one, other in zip(mine.after, theirs.after, strict=True):
            assert one.metrics == other.metrics
