"""Whether `learning_rate: auto` is near the best of five rates on a model that people use.

    python benchmarks/learning_rate.py MODEL_DIR --method sft|dpo|grpo [--home DIR] [--seed N]

Trains with a ninth, a third, one, three and nine times the rate that `auto` comes to, by a small
recipe of the method's own on the shipped data, and prints the held-out metric at each with its 95%
interval and the paired test against `auto`. `auto` holds where its value lies within the interval
of the best of the five. A run that was stopped is gone on with, and one that is there already is
not run again. `python tools/small_model.py DIR` makes a model for it.
Exits with 1 where `auto` does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_recipes import api
from posttrain_recipes.learning_rate import Family, automatic
from posttrain_recipes.reporting import comparisons, report
from posttrain_recipes.reporting.page import Pages

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "recipes" / "data"
FACTORS = (1.0, 9.0, 3.0, 1 / 3, 1 / 9)
"""Of the rate of `auto`, which comes first: the others are tested against it."""
RANK = 16
FAMILIES = {"sft": Family.IMITATION, "dpo": Family.PREFERENCE, "grpo": Family.RL}
METRICS = {"sft": "nll", "dpo": "preference_accuracy", "grpo": "exact_match"}


def jsonl(name: str, **options: Any) -> dict[str, Any]:
    """A shipped data set."""
    return {"use": "jsonl", "path": str(DATA / f"{name}.jsonl"), **options}


STAGES: Mapping[str, dict[str, Any]] = {
    # Short answers to questions of many kinds.
    "sft": {
        "dataset": jsonl("chat", test_size=384),
        "method": {"use": "sft", "batch_size": 16, "max_steps": 40, "warmup_steps": 4},
        "eval": [{"use": "nll", "name": "held_out"}],
    },
    # Formal replies before friendly ones, which the model itself finds likelier.
    "dpo": {
        "dataset": jsonl("formal"),
        "method": {"use": "dpo", "batch_size": 4, "max_steps": 48, "warmup_steps": 3},
        "eval": [
            {
                "use": "preference_accuracy",
                "name": "held_out",
                "dataset": jsonl("formal_held_out"),
            }
        ],
    },
    # Sums, of which the model has one in eight right within so few tokens.
    "grpo": {
        "dataset": jsonl("sums"),
        "method": {
            "use": "grpo",
            "batch_size": 4,
            "group_size": 8,
            "max_tokens": 16,
            "max_steps": 24,
        },
        "reward": {"use": "numeric"},
        "eval": [
            {
                "use": "exact_match",
                "name": "held_out",
                "extract": "number",
                "max_tokens": 16,
                "dataset": jsonl("sums_held_out"),
            }
        ],
    },
}


def rates(hidden: int, method: str) -> list[float]:
    """The five, that of `auto` first."""
    auto = automatic(hidden, FAMILIES[method], RANK)
    return [float(f"{auto * factor:.3g}") for factor in FACTORS]


def recipe(model: Path, method: str, seed: int) -> dict[str, Any]:
    """The recipe of a method, with a matrix over the five rates."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    stage = {"name": method, "init_from": "base", **STAGES[method]}
    return {
        "name": f"learning-rate-{method}",
        "model": str(model.resolve()),
        "seed": seed,
        "lora": {"rank": RANK},
        "renderer": {"chat_template": "chatml"},  # no system message: nothing but the task
        "stages": [stage],
        "matrix": {f"stages.{method}.method.learning_rate": rates(config["hidden_size"], method)},
    }


def _told(pages: Pages, method: str) -> bool:
    """Print a row for each rate, and whether `auto` holds."""
    stages = {s.inputs["method"]["config"]["learning_rate"]: s for s in pages.record.stages}
    auto, *_ = order = list(stages)
    metric, higher = METRICS[method], METRICS[method] != "nll"
    found = {rate: stages[rate].after[0].metrics[metric] for rate in order}
    best = (max if higher else min)(order, key=lambda rate: found[rate].value)
    print(f"\nbefore: {metric} {report.show(stages[auto].before[0].metrics[metric], False)}\n")
    print(f"| rate | {metric} | 95% interval | against auto | p |\n|---:|---:|---:|---:|---:|")
    for rate in sorted(order):
        sides = stages[rate], stages[auto]
        tested = comparisons.on_records(*sides, "held_out", metric, pages.scores).tested
        mark = " (auto)" * (rate == auto) + " (best)" * (rate == best)
        one = found[rate]
        print(
            f"| {rate:g}{mark} | {one.value:.3f} | {one.low:.3f} to {one.high:.3f} "
            f"| {'' if rate == auto else report.show_paired(tested, False)} "
            f"| {'' if rate == auto or not tested else report.show_p(tested.p)} |"
        )
    holds = found[best].low <= found[auto].value <= found[best].high
    told = "lies within" if holds else "LIES OUTSIDE"
    print(f"\n{method}: {found[auto].value:.3f} at auto {told} the interval of the best")
    return holds


def main() -> int:
    """Run what is not there yet, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--method", choices=sorted(STAGES), required=True)
    parser.add_argument("--home", type=Path, default=Path("rate-runs"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    written = recipe(args.model, args.method, args.seed)
    args.home.mkdir(parents=True, exist_ok=True)
    path = args.home / f"{args.method}.yaml"
    path.write_text(json.dumps(written, indent=1), encoding="utf-8")  # JSON is YAML
    record = api.run(path, home=args.home, reporter=None).record
    return 0 if _told(Pages(args.home, record), args.method) else 1


if __name__ == "__main__":
    sys.exit(main())
