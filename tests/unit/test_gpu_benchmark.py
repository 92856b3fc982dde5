"""The benchmark that is run where there is a GPU, tried in small on this machine's CPU."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "benchmarks"
PARTS = [
    "Ceilings",
    "Loading",
    "Training",
    "A step of decoding",
    "Sampling, `generate`",
    "Sampling, the engine",
    "Sampling, the engine with an adapter",
    "Training, torch + peft",
]


def report(*words: str) -> str:
    command = [sys.executable, str(FOLDER / "gpu.py"), "--shape", "tiny", "--device", "cpu"]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("failed", "kipped", "topped", "ran out", "nan"):
        assert word not in done.stdout, done.stdout
    return done.stdout


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu

    return gpu


@pytest.mark.nightly
def test_all_of_the_quick_report_on_a_cpu() -> None:
    text = report("--quick", "--seconds", "600")
    for part in PARTS:
        assert f"\n**{part}" in text
    assert "run by the engine's own decoder" in text
    assert "engine: " in text
    assert "of the ceiling" in text
    assert "| float32 | 6 passed" in text
    assert (
        "| tiny: decoding | no Python round trip a layer | 0 calls into Python | reached |" in text
    )
    goals = text[text.index("## Goals") :]
    assert goals.count("| reached |") + goals.count("| **missed** |") == 5


@pytest.mark.nightly
def test_all_of_the_full_report_on_a_cpu() -> None:
    text = report("--full", "--seconds", "3000")
    for name in ("sft_then_dpo", "grpo_arithmetic"):
        assert f"{name}, preset tiny: exit code 0" in text
        assert f"| {name}, preset tiny | exit code 0 | exit code 0 | reached |" in text


def test_without_a_gpu_it_says_so(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu, "told", lambda *command, **more: "none")
    with pytest.raises(SystemExit) as caught:
        gpu.main()
    assert caught.value.code == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_a_section_that_hangs_or_fails_ends_nothing_else(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = {"hangs": "import time; time.sleep(600)", "fails": "raise SystemExit('no memory')"}
    jobs = [gpu.Job(name, [sys.executable, "-c", text]) for name, text in programs.items()]
    gpu.together(jobs, 3.0)
    assert [job.code for job in jobs] == [None, 1]
    assert "no memory" in jobs[1].output


def test_a_section_without_time_is_told(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = argparse.Namespace(shape="8b", device="cuda", size="full", tiny=False)
    assert not gpu.speed("8b", args, tmp_path / "goals", time.monotonic() + 3, 70)
    said = capsys.readouterr().out
    assert "## Shape 8b" in said
    assert "Skipped: 3 s were left" in said


def test_a_part_that_fails_ends_nothing_else(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_speed

    def measuring(seconds: float) -> Any:
        args = {"device": "cpu", "seconds": seconds, "goals": str(tmp_path / "goals")}
        return gpu_speed.Measuring(argparse.Namespace(shape="tiny", **args))

    one = measuring(100)

    def fails() -> None:
        raise ValueError("out of\nmemory")

    assert one.part("First", fails) is None
    assert one.part("Second", lambda: "done") == "done"
    measuring(-1).part("Third", fails)
    said = capsys.readouterr().out
    assert "- failed: ValueError: out of memory (" in said
    assert "test_gpu_benchmark.py:" in said
    assert "**Third**\n\n- skipped: its time ran out" in said


def test_the_share_of_the_ceiling_follows_the_formula(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_speed

    args = {"device": "cpu", "seconds": 100, "goals": str(tmp_path / "goals")}
    one = gpu_speed.Measuring(argparse.Namespace(shape="tiny", **args))
    one.matrix = 1e9
    weights = 512 * 64 + 2 * 64 * (4 + 2 + 2 + 4) * 16 + 2 * 3 * 64 * 128
    # 4 sequences, 2 layers; 2 products forward and 4 back, of half of 32 x 32 pairs, 4 heads of 16
    attention = 4 * 2 * (2 + 4) * 2 * (32 * 32 / 2) * 4 * 16
    work = 128 * (4 * weights + 6 * 1000) + attention
    one.told_training(0.1, weights, 1000, "engine")
    (kept,) = (tmp_path / "goals").read_text(encoding="utf-8").splitlines()
    assert json.loads(kept)[2] == f"{work / 0.1 / 1e9:.1%}"
