"""What the runner costs: over a loop by hand, and for plans that are long or of much data.

    python benchmarks/runner.py               # all of it, as Markdown
    python benchmarks/runner.py overhead --steps 200 --rounds 5

`overhead` trains the same examples on the same engine with the same SDK, in turns: by a loop of
twenty lines, and by `ptl run` with its tracking, checkpoints and metering. The time is that of the
steps; what a run costs once (imports, MLflow's database) is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

BATCH = 8
LINES = 1_000_000


def overhead(folder: Path, steps: int, rounds: int, model: str) -> str:
    """A loop by hand against `ptl run`, in turns; medians."""
    import posttrain_recipes as ptl
    from posttrain_recipes.engine import launch
    from posttrain_recipes.models import resolve
    from posttrain_recipes.running.events import Reporter

    os.environ["TINKER_TELEMETRY"] = "0"
    rows = [
        {"prompt": f"What is {a} plus {b}?", "completion": f"{a} plus {b} is {a + b}."}
        for a in range(40)
        for b in range(-(-steps * BATCH // 40))
    ]
    write(folder / "chat.jsonl", rows[: steps * BATCH])

    class Clock(Reporter):
        began = ended = 0.0

        def training(self, *_: Any) -> None:
            self.began = time.monotonic()

        def step(self, number: int, total: int, metrics: Any) -> None:
            self.ended = time.monotonic()

    with launch.start({model: resolve(model)}, folder / "engine", folder / "log") as engine:
        os.environ["NO_PROXY"] = "127.0.0.1"
        os.environ["BENCH_KEY"] = engine.api_key
        recipe = folder / "recipe.yaml"
        recipe.write_text(
            f"name: bench\nmodel: {model}\n"
            f"engine: {{use: server, base_url: '{engine.base_url}', "
            "api_key: '${env:BENCH_KEY}'}\n"
            "stages:\n  - name: sft\n    dataset: {use: jsonl, path: chat.jsonl}\n"
            f"    method: {{use: sft, batch_size: {BATCH}, schedule: constant, grad_clip: 0}}\n"
        )
        by_hand(engine, folder, model, 5)  # warm
        ours, theirs, whole = [], [], []
        for _ in range(rounds):
            theirs.append(by_hand(engine, folder, model, steps))
            clock, began = Clock(), time.monotonic()
            ptl.run(recipe, home=folder / "home", fresh=True, reporter=clock)
            whole.append(time.monotonic() - began)
            ours.append(clock.ended - clock.began)
    hand, run = statistics.median(theirs), statistics.median(ours)
    ratios = sorted(a / b - 1 for a, b in zip(ours, theirs, strict=True))
    return (
        f"| {model}, {steps} steps of {BATCH} | {1000 * hand / steps:.1f} ms a step "
        f"| {1000 * run / steps:.1f} ms a step | {statistics.median(ratios):+.1%} "
        f"({ratios[0]:+.1%} to {ratios[-1]:+.1%}) | {statistics.median(whole) - run:.1f} s |"
    )


def by_hand(engine: Any, folder: Path, model: str, steps: int) -> float:
    """Seconds of the steps of a loop as one would write it, one step ahead."""
    import tinker

    from posttrain_recipes.models import resolve
    from posttrain_recipes.records import Message
    from posttrain_recipes.training.text.chat_template import load_renderer
    from posttrain_recipes.training.text.examples import datum, tokenize

    renderer = load_renderer(resolve(model))
    rows = [json.loads(line) for line in (folder / "chat.jsonl").read_text().splitlines()]
    data = [
        tokenize(
            (Message("user", row["prompt"]), Message("assistant", row["completion"])),
            renderer,
            max_length=2048,
        )
        for row in rows
    ]
    service = tinker.ServiceClient(base_url=engine.base_url, api_key=engine.api_key)
    began = time.monotonic()
    client = service.create_lora_training_client(base_model=model, rank=16, seed=0).result()
    waiting: deque[tuple[Any, Any]] = deque()
    for step in range(steps):
        batch = [datum(example, 1.0) for example in data[step * BATCH : (step + 1) * BATCH]]
        gradient = client.forward_backward(batch, "cross_entropy")
        update = client.optim_step(tinker.AdamParams(learning_rate=5e-4))
        waiting.append((gradient, update))
        if len(waiting) > 1:
            for future in waiting.popleft():
                future.result()
    for future in waiting.popleft():
        future.result()
    ended = time.monotonic()
    service.close("success").result()
    return ended - began


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


PROBE = """\
import resource, sys, time
from pathlib import Path
began = time.process_time()
from posttrain_recipes import api
from posttrain_recipes.planning import costs
from posttrain_recipes.planning import pricing
from posttrain_recipes.planning.reuse import Scope, decisions
imported = time.process_time()
plan = api.plan(sys.argv[1])
planned = time.process_time()
decided = list(decisions(plan, Scope(), [], Path(sys.argv[2])))
list(costs.Estimator(plan, pricing.load(Path(sys.argv[2]))).stages(decided))
estimated = time.process_time()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(imported - began, planned - imported, estimated - planned, peak)
"""


def probe(recipe: Path, home: Path) -> tuple[float, float, float, float]:
    """Seconds of a core to import, plan and estimate, and MiB at the peak, of a new process."""
    command = [sys.executable, "-c", PROBE, str(recipe), str(home)]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    a, b, c, d = (float(word) for word in words)
    return a, b, c, d


def plans(folder: Path) -> list[str]:
    """A plan of 200 stages, and plans over few and over very many lines."""
    row = {"prompt": "What is 3 plus 4?", "completion": "3 plus 4 is 7."}
    write(folder / "few.jsonl", [row] * 1000)
    with (folder / "many.jsonl").open("w") as file:
        for number in range(LINES):
            file.write(json.dumps({**row, "prompt": f"What is {number} plus 4?"}) + "\n")

    def recipe(name: str, data: str, stages: int) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(
            f"name: {name}\nmodel: ptl/tiny\nstages:\n"
            + "".join(
                f"  - name: s{i}\n    dataset: {{use: jsonl, path: {data}, test_size: 8}}\n"
                f"    method: {{use: sft, learning_rate: {1e-4 * (i + 1)}}}\n"
                f"    eval: [{{use: nll, name: nll{i}}}]\n"
                for i in range(stages)
            )
        )
        return path

    lines = []
    for what, path in (
        ("200 stages, 1,000 lines", recipe("stages", "few.jsonl", 200)),
        ("1 stage, 1,000 lines", recipe("few", "few.jsonl", 1)),
        (f"1 stage, {LINES:,} lines", recipe("many", "many.jsonl", 1)),
    ):
        imported, planned, estimated, peak = probe(path, folder / "home")
        lines.append(
            f"| {what} | {planned:.2f} s | {estimated:.2f} s | {imported:.2f} s | {peak:.0f} MiB |"
        )
    return lines


def main() -> None:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", choices=("all", "overhead", "plans"), default="all")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="ptl/tiny")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.what in ("all", "overhead"):
            print("| training | by hand | ptl run | difference | a run costs once |")
            print("|---|--:|--:|--:|--:|")
            print(overhead(folder, given.steps, given.rounds, given.model), flush=True)
            print()
        if given.what in ("all", "plans"):
            print("| plan | planning | estimating | importing | memory |")
            print("|---|--:|--:|--:|--:|")
            print("\n".join(plans(folder)))


if __name__ == "__main__":
    main()
