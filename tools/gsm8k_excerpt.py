"""Write the excerpt of GSM8K that ships: `recipes/data/gsm8k.jsonl` and `gsm8k_held_out.jsonl`.

    python tools/gsm8k_excerpt.py DIR [--root DIR]

DIR has `gsm8k_train.jsonl` and `gsm8k_test.jsonl`: the published rows of openai/gsm8k (Cobbe et al.
2021, arXiv 2110.14168; MIT), a JSON object with `question` and `answer` in a line. The excerpt is
the first rows whose question and answer have at most 400 characters together, which is a third of
them: a small model reads and writes them in minutes on two cores. They are real text, and easier
than the whole, so that a share of right answers on them is not one on GSM8K.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

LONGEST = 400
"""Characters of question and answer together."""
FILES = {"gsm8k": ("gsm8k_train", 400), "gsm8k_held_out": ("gsm8k_test", 100)}
"""For each file, the published one that it is from, and how many rows."""


def excerpt(lines: list[str], count: int) -> list[dict[str, str]]:
    """The first `count` rows that are short enough.

    Raises:
        ValueError: where there are fewer.
    """
    rows = [json.loads(line) for line in lines if line.strip()]
    short = [row for row in rows if len(row["question"]) + len(row["answer"]) <= LONGEST]
    if len(short) < count:
        raise ValueError(f"{len(short)} rows have at most {LONGEST} characters; {count} are needed")
    return [{"question": row["question"], "answer": row["answer"]} for row in short[:count]]


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    args = parser.parse_args()
    for name, (source, count) in FILES.items():
        text = (args.directory / f"{source}.jsonl").read_text(encoding="utf-8")
        path = args.root / "recipes" / "data" / f"{name}.jsonl"
        rows = excerpt(text.split("\n"), count)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path} {len(rows)} lines, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
