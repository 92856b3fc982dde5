"""Try every task of reasoning-gym, and write `tasks.json`: what `ptl validate` knows of them.

    python -m ptl_reasoning_gym.survey [--write]

Prints a table of those about which there is something to say; takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path
from typing import Any

from posttrain_recipes.plugin import UsageError
from ptl_reasoning_gym import library
from ptl_reasoning_gym.library import Item

TRIED = 20
"""Items of each task."""
SLOW_MS = 100.0
"""An item that takes longer is worth a word."""
LATE_S = 10.0
"""Three items of a level that take longer are too slow."""
NONSENSE = "xyzzy"


def found_of(task: str) -> tuple[dict[str, Any], list[str]]:
    """What the table holds of a task, and what is to be said of it beside."""
    one = library.describe(task)
    items = [Item(task, None, "{}", 0, index) for index in range(TRIED)]
    began = time.perf_counter()
    try:
        entries = [item.entry() for item in items]
    except UsageError as error:
        return {**one, "unusable": str(error.why)}, []
    took = 1000 * (time.perf_counter() - began) / TRIED
    said = [f"{took:.0f} ms an item"] if took > SLOW_MS else []
    answers = [entry["answer"] for entry in entries]
    if None in answers:
        said.append("no reference answer: nothing to imitate")
    elif any(item.score(str(a)) < 1 for item, a in zip(items, answers, strict=True)):
        said.append("its own answers do not score 1")
    scores = []
    for item in items:
        try:
            scores.append(item.score(NONSENSE))
        except Exception as error:
            said.append(f"score_answer raises on words ({type(error).__name__})")
            break
    if scores and min(scores) >= 1:
        one["unusable"] = "its score_answer takes any answer for right"
    elif scores and max(scores) > 0:
        said.append(f"nonsense scores up to {max(scores):.2f}")
    return one, [*said, *_of_levels(task, one["levels"])]


def _of_levels(task: str, count: int) -> list[str]:
    """Levels of which no item can be made, or none in time."""
    refused, late = [], []
    for level in range(count):
        signal.setitimer(signal.ITIMER_REAL, LATE_S)
        try:
            for index in range(3):
                Item(task, level, "{}", 0, index).entry()
        except (UsageError, ValueError):
            refused.append(str(level))
        except TimeoutError:
            late.append(str(level))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return [
        f"level {', '.join(levels)} {what}"
        for levels, what in (
            (refused, "is refused by the task"),
            (late, f"takes {LATE_S:.0f} s for three items"),
        )
        if levels
    ]


def too_late(*_: object) -> None:
    """For SIGALRM: ends what takes too long."""
    raise TimeoutError


def main() -> None:
    """Try all, print, write."""
    from reasoning_gym.factory import DATASETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true", help="write tasks.json")
    write = parser.parse_args().write
    signal.signal(signal.SIGALRM, too_late)
    known: dict[str, dict[str, Any]] = {}
    for task in sorted(DATASETS):
        if task == "composite":
            known[task] = {"fields": [], "levels": 0, "unusable": "name the tasks under 'tasks'"}
            continue
        known[task], said = found_of(task)
        said += [str(known[task]["unusable"])] if "unusable" in known[task] else []
        if said:
            print(f"| `{task}` | {'; '.join(said)} |", flush=True)
    if write:
        lines = [f" {json.dumps(task)}: {json.dumps(one)}" for task, one in known.items()]
        path = Path(library.__file__).with_name("tasks.json")
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
