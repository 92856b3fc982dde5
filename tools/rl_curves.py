"""Draw `docs/how-to/rl_curves.svg`: what one good and two bad RL runs look like, step by step.

    python tools/rl_curves.py [--home DIR]

Three runs of `recipes/grpo_arithmetic.yaml` on the bundled model, a minute each on two idle cores:
as it ships; with a reward that is never paid (the answers have words in front that no reply has);
with a learning rate a hundred times too high. A small price on divergence has it measured. Runs
that are kept in DIR are not repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import posttrain_recipes as ptl
from posttrain_recipes.reporting.plots import HEIGHT, WIDTH, curves

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "how-to" / "rl_curves.svg"
STEPS = 40
METRICS = {
    "reward/mean": "reward/mean: does it learn?",
    "groups/zero_variance_share": "groups/zero_variance_share: groups that teach nothing",
    "policy/entropy": "policy/entropy: does it still try?",
    "policy/kl_reference_per_token": "policy/kl_reference_per_token: how far from the start?",
}
COLOURS = ("#3f51b5", "#e65100", "#00897b")
HEAD, GAP = 40, 30
STYLE = """
.panel { fill: #ffffff; }
.grid { stroke: #dddddd; stroke-width: 1; }
.tick, .name, .key { font: 11px sans-serif; fill: #555555; }
.name { font-weight: bold; fill: #222222; }
.line { fill: none; stroke-width: 1.8; }
.faint { stroke-opacity: 0.25; stroke-width: 1; }
"""


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """The three recipes by what the picture calls them."""
    text = (ROOT / "recipes" / "grpo_arithmetic.yaml").read_text(encoding="utf-8")
    base = yaml.safe_load(text)
    stage = base["stages"][0]
    stage["method"] |= {"max_steps": STEPS, "kl_beta": 0.001}  # so that the divergence is measured
    stage["dataset"]["path"] = str(ROOT / "recipes" / "data" / "sums.jsonl")
    held = str(ROOT / "recipes" / "data" / "sums_held_out.jsonl")
    stage["eval"] = [
        {
            "use": "exact_match",
            "name": "held_out",
            "max_tokens": 12,
            "dataset": {"use": "jsonl", "path": held},
        }
    ]
    del base["presets"]
    unpaid = folder / "unpaid.jsonl"
    rows = (ROOT / "recipes" / "data" / "sums.jsonl").read_text(encoding="utf-8").splitlines()
    with unpaid.open("w", encoding="utf-8") as file:
        for row in map(json.loads, rows):
            file.write(json.dumps({**row, "answer": f"the sum is {row['answer']}"}) + "\n")
    never, wild = json.loads(json.dumps(base)), json.loads(json.dumps(base))
    never["name"], wild["name"] = "never_paid", "rate_too_high"
    never["stages"][0]["dataset"]["path"] = str(unpaid)
    wild["stages"][0]["method"]["learning_rate"] = 0.2
    return {"as it ships": base, "reward never paid": never, "learning rate x 100": wild}


def drawn(runs: Mapping[str, ptl.Result]) -> str:
    """The picture: a panel a metric, a line a run."""
    found = {name: result.curves for name, result in runs.items()}
    width, height = 2 * WIDTH + GAP, HEAD + 2 * (HEIGHT + GAP)
    keys = "".join(
        f'<circle cx="{60 + 210 * i}" cy="14" r="5" fill="{COLOURS[i]}"/>'
        f'<text class="key" x="{72 + 210 * i}" y="18">{name}</text>'
        for i, name in enumerate(found)
    )
    panels = []
    for place, (metric, title) in enumerate(METRICS.items()):
        series = {
            name: [(int(s), float(v)) for s, v in zip(f["step"], f["value"], strict=True)]
            for name, frame in found.items()
            if len(f := frame[frame["metric"] == metric])
        }
        x, y = (place % 2) * (WIDTH + GAP), HEAD + (place // 2) * (HEIGHT + GAP)
        picture = curves(series).replace(
            "<svg ", f'<svg x="{x}" y="{y + 6}" width="{WIDTH}" height="{HEIGHT}" ', 1
        )
        picture = re.sub(r"\d+\.\d{2,}", lambda m: f"{float(m[0]):.1f}", picture)
        for index, name in enumerate(found):
            if name in series:
                own = list(series).index(name)
                picture = picture.replace(f"line s{own}", f"line own{index}")
        panels.append(f'<text class="name" x="{x + 52}" y="{y + 2}">{title}</text>{picture}')
    colours = "".join(f".own{i} {{ stroke: {c}; }}\n" for i, c in enumerate(COLOURS))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        f'<style>{STYLE}{colours}</style><rect class="panel" width="100%" height="100%"/>'
        f"{keys}{''.join(panels)}</svg>\n"
    )


def main() -> None:
    """Run what has not been run, and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, help="where runs are kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = args.home or Path(folder) / "home"
        made = recipes(Path(folder) if args.home is None else args.home)
        runs = {name: ptl.run(recipe, home=home) for name, recipe in made.items()}
        for name, result in runs.items():
            print(name, result, sep="\n")
        TARGET.write_text(drawn(runs), encoding="utf-8")
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
