"""The time that a plan gives before anything was run, beside what the run then takes.

    python benchmarks/plan_time.py
    python benchmarks/plan_time.py --model DIR --recipes sft --preset quick

Each recipe is planned and run in a home of its own, so that the plan knows nothing but this
machine's speed. Sampling is planned for as a bound: replies that end early take less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import common

RECIPES = Path(__file__).parents[1] / "recipes"


def ptl(*words: str, check: bool = True) -> str:
    """What a command of `ptl` prints."""
    command = [sys.executable, "-m", "posttrain_recipes.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=check).stdout


def main() -> None:
    """Run it and print a row for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["sft", "dpo", "grpo_arithmetic"])
    parser.add_argument("--preset")
    parser.add_argument("--model", help="another model than the recipe's: a directory")
    parser.add_argument("--set", action="append", default=[], help="as 'ptl run --set'")
    args = parser.parse_args()
    print(common.machine())
    print(f"{'recipe':18} {'planned':>9} {'took':>9} {'ratio':>6}")
    more = ["--preset", args.preset] if args.preset else []
    more += ["--set", f"model={args.model}"] if args.model else []
    more += [word for text in args.set for word in ("--set", text)]
    for name in args.recipes:
        with tempfile.TemporaryDirectory() as home:
            path = str(RECIPES / f"{name}.yaml")
            plan = json.loads(ptl("plan", path, "--json", "--home", home, *more))
            # Another model than the recipe's may not come up to what the recipe expects.
            ptl("run", path, "--home", home, *more, check=False)
            kept = json.loads(ptl("runs", "--json", "--home", home))[0]
            if kept["status"] != "finished":
                sys.exit(f"{name}: {kept['status']}")
            planned, took = plan["estimate"]["seconds"], sum(s["seconds"] for s in kept["stages"])
            bound = "<=" if plan["estimate"]["at_most"] else "  "
            print(f"{name:18} {bound}{planned:6.0f} s {took:7.0f} s {took / planned:6.2f}")


if __name__ == "__main__":
    main()
