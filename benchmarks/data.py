"""From the start of a run to its first step on a large file: seconds by phase, and its memory.

    python benchmarks/data.py
    python benchmarks/data.py --rows 10000 1000000 --test-size 1000

Each file is made in a temporary folder (conversations of about 300 bytes) and trained on with `sft`
and `ptl/nano` for two steps, in a process, a home and a cache of its own. A phase ends where the
next one is said; the seconds of CPU are those of the run's process, without the engine's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

RECIPE = """\
name: large
model: ptl/nano
stages:
  - name: sft
    method: {{use: sft, batch_size: 32, max_steps: 2}}
    dataset: {{use: jsonl, path: rows.jsonl{more}}}
"""
WORDS = "apple river stone cloud letter window garden number copper signal winter summer"
WORDS += " bridge valley engine market doctor school paper island"


def make(path: Path, rows: int) -> None:
    """A file of conversations, each with a question of its own."""
    draw, words = random.Random(0), WORDS.split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            asked = f"Question {number}: " + " ".join(draw.choices(words, k=14)) + "?"
            reply = " ".join(draw.choices(words, k=14)) + "."
            messages = [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": reply},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


# Run by a process of its own: says when each phase began, and how much memory was held by then.
CHILD = """
import sys, time

def say(what):
    status = open("/proc/self/status").read()
    peak = int(status.partition("VmHWM:")[2].split()[0]) // 1024
    took = f"{time.time() - float(sys.argv[1])}\\t{time.process_time()}"
    print(f"{took}\\t{peak}\\t{what}", flush=True)

from posttrain_recipes import api
from posttrain_recipes.running.events import Reporter

class Timer(Reporter):
    def run_started(self, plan, record, resumed): say("planned")
    def doing(self, what): say(what)
    def stage_started(self, stage, kept, count): say("stage begins")
    def training(self, stage, done, total): say(f"training, {total:,} steps")
    def step(self, step, total, metrics): say(f"step {step}")
    def note(self, text): say("note: " + text)
    def warning(self, text): say("warning: " + text.replace(chr(10), " ")[:150])

say("imported")
api.run("recipe.yaml", reporter=Timer())
say("end")
"""


def measured(rows: int, more: str, again: bool) -> list[tuple[float, float, int, str]]:
    """The phases of a run: seconds since its start, those that its process computed for, MB that it
    held at most, and what began."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "rows.jsonl", rows)
        (Path(folder) / "recipe.yaml").write_text(RECIPE.format(more=more), encoding="utf-8")
        environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
        small = Path(folder) / "small"
        small.mkdir()
        (Path(folder) / "cache" / "posttrain-recipes").mkdir(parents=True)
        make(small / "rows.jsonl", 100)
        (small / "recipe.yaml").write_text(RECIPE.format(more=""), encoding="utf-8")
        plan = [sys.executable, "-m", "posttrain_recipes.cli", "plan", "recipe.yaml"]
        # The machine's speed is measured once for each model and kept: no part of this.
        subprocess.run(plan, cwd=small, env=environment, check=True, capture_output=True)
        for number in range(1 + again):
            command = [sys.executable, "-c", CHILD, str(time.time())]
            home = {"PTL_HOME": f"{folder}/home{number}"}
            done = subprocess.run(
                command,
                cwd=folder,
                env={**environment, **home},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(done.stderr[-2000:])
    lines = (line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 3)
    return [(float(wall), float(cpu), int(peak), what) for wall, cpu, peak, what in lines]


def main() -> None:
    """Run it and print the phases of each size, then a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--test-size", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="time the second run, not the first")
    args = parser.parse_args()
    print(common.machine())
    more = f", test_size: {args.test_size}" if args.test_size else ""
    table = []
    for rows in args.rows:
        phases = measured(rows, more, args.again)
        print(f"\n{rows:,} rows")
        for wall, cpu, peak, what in phases:
            print(f"  {wall:7.2f} s {cpu:7.2f} s of CPU {peak:6,} MB  {what}")
        first, spent = next(phase[:2] for phase in phases if phase[3] == "step 1")
        table.append((rows, first, spent, max(phase[2] for phase in phases)))
    print(f"\n{'rows':>10} {'first step':>11} {'of CPU':>9} {'memory':>9}")
    for rows, first, spent, peak in table:
        print(f"{rows:10,} {first:9.1f} s {spent:7.1f} s {peak:6,} MB")


if __name__ == "__main__":
    main()
