"""What the engine does on a GPU: one command, whose output is a report in Markdown to paste.

    python benchmarks/gpu.py --quick     # 0.6B, and the most important tests: under 2 minutes
    python benchmarks/gpu.py --full      # 0.6B, 1.7B, 8B, recipes, all tests: under 6 minutes
    python benchmarks/gpu.py --full --shape tiny --device cpu      # the same on a CPU, in small

Each section is a process of its own, with a limit of time: what fails, hangs or is killed ends
nothing else, and says so. What one shape is measured by is in `gpu_speed.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "unit"
SECONDS = {"quick": 115, "full": 350}
SHAPES = {"quick": ["0.6b"], "full": ["0.6b", "8b", "1.7b"]}
COMPUTE = ["kernels", "decoder", "backend", "losses", "sampler", "batches", "derived", "graphs"]
"""The tests of `test_engine_*.py` that take their device and dtype from the environment."""
FIRST = {"float32": ["kernels", "decoder", "backend"], "bfloat16": ["decoder", "losses", "sampler"]}
RECIPES = ["sft_then_dpo", "grpo_arithmetic"]
LEAST = 10.0  # seconds below which a section is not begun
SHOWN = 12  # lines of a failure
PROBE = """
import torch
cuda = torch.cuda
print(f"{cuda.get_device_name()}, compute capability {cuda.get_device_capability()}, "
      f"CUDA {torch.version.cuda}" if cuda.is_available() else "none")
"""
PACKAGES = ["torch", "transformers", "peft", "tinker", "numpy", "posttrain-recipes"]


@dataclass
class Job:
    """A command that runs beside others, and what it has said."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    output: str = ""
    code: int | None = None  # None: it was stopped, for its time was out
    seconds: float = 0.0


def main() -> int:
    """Run what the command line asks for. Returns 0 if every section ended by itself, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick")
    size.add_argument("--full", dest="size", action="store_const", const="full")
    parser.add_argument("--shape", help="one shape alone: 0.6b, 1.7b, 8b or tiny")
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--seconds", type=float, help="for everything, in place of the default")
    args = parser.parse_args()
    args.size = args.size or "quick"
    if args.device == "cpu" and args.shape != "tiny":
        parser.error("on a CPU only `--shape tiny` is of use: the others would take hours")
    args.tiny = args.shape == "tiny"
    sound = True
    began = time.monotonic()
    probe = "" if args.device == "cpu" else told(sys.executable, "-c", PROBE, seconds=60)
    if probe == "none":
        parser.error("torch sees no GPU here; `--shape tiny --device cpu` tries this script alone")
    seconds = args.seconds or SECONDS[args.size]
    end = began + seconds
    head(args, probe)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "goals.jsonl"
        shapes = [args.shape] if args.shape else SHAPES[args.size]
        first, others = shapes[0], shapes[1:]
        sound &= speed(first, args, found, end, 75)
        if args.size == "quick":
            sound &= tests(FIRST, args, found, end, 60)
        else:
            sound &= recipes(args, Path(folder), found, end, 100)
            for shape in others:
                sound &= speed(shape, args, found, end, 70 if shape == "8b" else 45)
            every = dict.fromkeys(FIRST, COMPUTE)
            sound &= tests(every, args, found, end, 90)
        goals(found)
    say(f"\nTook {time.monotonic() - began:.0f} s of {seconds:.0f}.")
    return 0 if sound else 1


def say(text: str = "") -> None:
    """Print at once: what follows may be killed."""
    print(text, flush=True)


def head(args: argparse.Namespace, probe: str) -> None:
    """The card, the versions and the command."""
    say(f"# GPU report, {args.size}\n")
    say(f"- command: `python {' '.join(sys.argv)}`")
    commit = told("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "not told by git"
    say(f"- commit: {commit}")
    asked = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    card = told("nvidia-smi", *asked) or "not told by nvidia-smi"
    if args.device == "cuda":
        say(f"- card: {'; '.join(card.splitlines())}; torch sees {probe or 'what it did not tell'}")
    else:
        say("- device: CPU")
    versions = []
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    say(f"- Python {platform.python_version()}, {os.cpu_count()} CPU cores; {', '.join(versions)}")


def told(*command: str, seconds: float = 10) -> str:
    """What a short command prints; nothing where there is none or it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
        return done.stdout.strip()
    return ""


def begin(title: str, end: float, most: float) -> float | None:
    """A section's heading, and the seconds that it may take; None, and a line, if too few."""
    left = min(most, end - time.monotonic())
    say(f"\n## {title}\n")
    if left < LEAST:
        say(f"Skipped: {max(0.0, left):.0f} s were left, and it takes {LEAST:.0f} or more.")
        return None
    return left


def environment(**more: str) -> dict[str, str]:
    """The environment of a section: this project first, and nothing from the network."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet = {"HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "TINKER_TELEMETRY": "0"}
    return {**os.environ, **quiet, "PYTHONPATH": path, **more}


# Speed --------------------------------------------------------------------------------------


def speed(shape: str, args: argparse.Namespace, found: Path, end: float, most: float) -> bool:
    """One shape's training and sampling, which a process of its own prints."""
    left = begin(f"Shape {shape}", end, most)
    if left is None:
        return False
    script = str(Path(__file__).with_name("gpu_speed.py"))
    # Its limit is for what it begins; what it is in the middle of then has a little more.
    limit = ["--seconds", str(0.85 * left), "--goals", str(found)]
    job = Job(shape, [sys.executable, script, "--shape", shape, "--device", args.device, *limit])
    together([job], left, live=True)
    if job.code:
        say(f"\nEnded by itself with exit code {job.code}. Its last lines:\n")
        quote(job.output.splitlines()[-SHOWN:])
    elif job.code is None:
        say(f"\nStopped after {left:.0f} s, its time: what stands above was measured.")
    return job.code == 0


def together(jobs: Sequence[Job], seconds: float, live: bool = False) -> None:
    """Run jobs at the same time, for so many seconds at most; `live` shows what they print, and
    keeps as output what they say of errors."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        running = []
        for job in jobs:
            log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            process = subprocess.Popen(
                job.command, cwd=ROOT, env=environment(**job.environment), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=None if live else log, stderr=log,
            )  # fmt: skip
            stack.enter_context(ended(process))
            running.append((job, process, log))
        waiting = list(running)
        while waiting and time.monotonic() < began + seconds:
            time.sleep(0.05)
            for job, process, _ in waiting:
                job.code, job.seconds = process.poll(), time.monotonic() - began
            waiting = [entry for entry in waiting if entry[0].code is None]
        for job, _, log in running:
            log.seek(0)
            job.output = log.read()


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within, a process and what it started; after, neither."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def quote(lines: Sequence[str]) -> None:
    """Lines as they are."""
    say("```text\n" + "\n".join(line.rstrip()[:200] for line in lines) + "\n```")


# Tests --------------------------------------------------------------------------------------


def tests(
    chosen: Mapping[str, Sequence[str]],
    args: argparse.Namespace,
    found: Path,
    end: float,
    most: float,
) -> bool:
    """The engine's unit tests where it computes: in float32, with tolerances ten times a CPU's, and
    in bfloat16, with wide ones and without those that assert equality."""
    title = f"Unit tests of the engine on {args.device}"
    if (left := begin(title, end, most)) is None:
        return False
    rest = sorted(p.stem.removeprefix("test_engine_") for p in TESTS.glob("test_engine_*.py"))
    groups = dict(chosen)
    if args.size == "full":
        groups["of what does not compute"] = [name for name in rest if name not in COMPUTE]
    if args.tiny:  # what is tried is this script
        groups = {"float32": ["kernels"]}
    jobs, without = [], []
    for name, stems in groups.items():
        files = [TESTS / f"test_engine_{stem}.py" for stem in stems]
        if importlib.util.find_spec("hypothesis") is None:
            needing = [file for file in files if "hypothesis" in file.read_text(encoding="utf-8")]
            without += [file.name for file in needing]
            files = [file for file in files if file not in needing]
        command = [sys.executable, "-m", "pytest", "-rfE", "--tb=line", "-p", "no:cacheprovider"]
        told_where = {"PTL_TEST_DEVICE": args.device}
        if name in ("float32", "bfloat16"):
            told_where["PTL_TEST_DTYPE"] = name
        jobs.append(Job(name, [*command, *map(str, files)], told_where))
    together(jobs, left)
    passed = True
    say("| tests | result | seconds |\n|---|---|---:|")
    for job in jobs:
        last = (job.output.strip().splitlines() or ["it said nothing"])[-1].strip("= ")
        last = last if job.code is not None else f"stopped after {left:.0f} s, not finished"
        passed &= job.code == 0
        say(f"| {job.name} | {last} | {job.seconds:.0f} |")
    if without:
        say(f"\nLeft out, since hypothesis is not installed: {', '.join(without)}.")
    for job in jobs:
        bad = [x for x in job.output.splitlines() if x.startswith(("FAILED", "ERROR"))]
        if job.code and not bad:
            bad = job.output.splitlines()[-SHOWN:]
        if bad:
            say(f"\nOf {job.name}:\n")
            quote(bad[:20])
    what = f"the engine's unit tests on {args.device}"
    goal(found, what, "all pass", "all pass" if passed else "see there", passed)
    return passed


# Recipes ------------------------------------------------------------------------------------


def recipes(args: argparse.Namespace, folder: Path, found: Path, end: float, most: float) -> bool:
    """Shipped recipes from end to end, at the same time, by the engine that `ptl run` starts."""
    if (left := begin("Recipes from end to end", end, most)) is None:
        return False
    preset = "tiny" if args.tiny else "quick"
    more = {} if args.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "posttrain_recipes.cli", "run"]
    jobs = [
        Job(name, [*command, f"recipes/{name}.yaml", "--preset", preset, "--fresh",
                   "--home", str(folder / name)], {**more, "COLUMNS": "120"})
        for name in RECIPES
    ]  # fmt: skip
    together(jobs, left)
    sound = True
    for job in jobs:
        sound &= job.code == 0
        said = job.output.splitlines()
        lines = [line for line in said if line.strip() and not line.startswith("ptl ")]
        state = f"exit code {job.code}" if job.code is not None else "stopped, not finished"
        say(f"{job.name}, preset {preset}: {state} after {job.seconds:.0f} s, both at once.\n")
        at = [i for i, line in enumerate(lines) if re.match(r"stage\s+eval", line)]
        kind = [line for line in lines if line.startswith("engine: ")]
        quote(kind + lines[at[-1] :] if at else lines[-SHOWN:])
        goal(found, f"{job.name}, preset {preset}", "exit code 0", state, job.code == 0)
    return sound


# Goals --------------------------------------------------------------------------------------


def goal(file: Path, what: str, wanted: str, got: str, reached: bool | None) -> None:
    """Keep a goal for the table at the end; None where it was not measured."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps([what, wanted, got, reached]) + "\n")


def goals(file: Path) -> None:
    """The table of goals."""
    say("\n## Goals\n")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    if not lines:
        say("Nothing was measured that has one.")
        return
    say("| what | goal | measured | verdict |\n|---|---|---|---|")
    for what, wanted, got, reached in map(json.loads, lines):
        verdict = {True: "reached", False: "**missed**", None: "not measured"}[reached]
        say(f"| {what} | {wanted} | {got} | {verdict} |")


if __name__ == "__main__":
    sys.exit(main())
