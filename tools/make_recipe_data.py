"""Write the recipes' data, `recipes/data/*.jsonl`, from the task families.

    python tools/make_recipe_data.py [--seed 0] [--out recipes/data]

Training files hold problems of the recipe split alone, held-out files of the held-out split alone;
the bundled models were pretrained on neither.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from families import (
    VERIFIABLE,
    Problem,
    Split,
    curt_reply,
    draw,
    draw_request,
    polite_reply,
)

Row = dict[str, Any]
Keyed = tuple[str, Row]
"""A row with the key of the problem it holds."""
SIZES = {
    "chat": 2400,
    "held_out": 256,
    "preferences": 1000,
    "preferences_held_out": 200,
    "arithmetic": 500,
    "arithmetic_held_out": 100,
}


def problems(
    families: tuple[str, ...], split: Split, count: int, rng: random.Random
) -> list[Problem]:
    """Draw problems, the families in turn, no question twice."""
    out: dict[str, Problem] = {}
    while len(out) < count:
        problem = draw(families[len(out) % len(families)], split, rng)
        out.setdefault(problem.question, problem)
    drawn = list(out.values())
    rng.shuffle(drawn)
    return drawn


def chat(rng: random.Random) -> list[Keyed]:
    """Conversations that answer barely."""
    return [
        (
            p.key,
            {
                "messages": [
                    {"role": "user", "content": p.question},
                    {"role": "assistant", "content": p.answer},
                ]
            },
        )
        for p in problems(VERIFIABLE, "recipe", SIZES["chat"], rng)
    ]


def held_out(rng: random.Random) -> list[Keyed]:
    """Prompts of the same families with their answers."""
    return [
        (p.key, {"prompt": p.question, "answer": p.answer})
        for p in problems(VERIFIABLE, "held_out", SIZES["held_out"], rng)
    ]


def preferences(split: Split, count: int) -> Callable[[random.Random], list[Keyed]]:
    """Pairs that prefer the polite reply."""

    def make(rng: random.Random) -> list[Keyed]:
        rows: dict[tuple[str, str], Keyed] = {}
        while len(rows) < count:
            request = draw_request(split, rng)
            chosen = polite_reply(rng, request)
            row = {"prompt": request.text, "chosen": chosen, "rejected": curt_reply(rng, request)}
            rows.setdefault((request.text, chosen), (request.key, row))
        return list(rows.values())

    return make


def word_problems(split: Split, count: int) -> Callable[[random.Random], list[Keyed]]:
    """Word problems in the form of GSM8K: one worked line, then #### and the number."""

    def make(rng: random.Random) -> list[Keyed]:
        return [
            (p.key, {"question": p.question, "answer": f"{p.worked}\n#### {p.answer}"})
            for p in problems(("stories",), split, count, rng)
        ]

    return make


FILES: dict[str, Callable[[random.Random], list[Keyed]]] = {
    "chat": chat,
    "held_out": held_out,
    "preferences": preferences("recipe", SIZES["preferences"]),
    "preferences_held_out": preferences("held_out", SIZES["preferences_held_out"]),
    "arithmetic": word_problems("recipe", SIZES["arithmetic"]),
    "arithmetic_held_out": word_problems("held_out", SIZES["arithmetic_held_out"]),
}


def rows_of(name: str, seed: int = 0) -> list[Keyed]:
    """Return the rows of one file with their keys.

    Each file has a generator of its own, so that one may change without the others.
    """
    return FILES[name](random.Random(f"{seed}:{name}"))


def main() -> None:
    """Write every file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent.parent / "recipes" / "data"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        rows = rows_of(name, args.seed)
        path = args.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for _, row in rows), encoding="utf-8")
        print(f"{path} {len(rows)} lines, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
