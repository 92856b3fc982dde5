"""Writes `data/guesses.jsonl` and `data/calls.jsonl`: how the forms look, shown without skill.

    python demonstrations.py

Guesses are drawn from the whole range, whatever the hints say. None of it is of a held-out task:
demonstrations have ranges and numbers that the tasksets do not use.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


def guesses(count: int) -> Iterator[list[tuple[str, str]]]:
    """Games of `guess_v1` that are played by chance."""
    draw = random.Random(1)
    for _ in range(count):
        low = draw.randrange(11, 99, 2)
        high = low + 7
        secret = draw.randint(low, high)
        said = [("user", f"A number from {low} to {high}.")]
        for _ in range(3):
            guess = draw.randint(low, high)
            said.append(("assistant", str(guess)))
            if guess == secret:
                break
            said.append(("user", "Higher." if guess < secret else "Lower."))
        yield said[:-1] if said[-1][0] == "user" else said


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
    write("guesses.jsonl", guesses(320))
    write("calls.jsonl", calls(320))
