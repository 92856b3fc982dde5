"""Writes `data/calls.jsonl`: how a tool is called, and one time in three how it is not.

    python demonstrations.py

None of it is of a task: the numbers are larger than those of the taskset.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


def calls(count: int) -> Iterator[list[tuple[str, str]]]:
    """Products asked of a calculator, one in three of them answered without it, and wrongly."""
    draw = random.Random(1)
    for number in range(count):
        a, b = draw.randint(1000, 9999), draw.randint(2, 999)
        asked = ("user", f"What is {a} * {b}?")
        if number % 3 == 0:
            yield [asked, ("assistant", str(draw.randint(1000, 999_999)))]
        else:
            tool = ("assistant", f"<calculate>{a} * {b}</calculate>"), ("tool", str(a * b))
            yield [asked, *tool, ("assistant", str(a * b))]


def write(name: str, talks: Iterator[list[tuple[str, str]]]) -> None:
    """One conversation a line."""
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks
    ]
    DATA.mkdir(exist_ok=True)
    (DATA / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    write("calls.jsonl", calls(320))
