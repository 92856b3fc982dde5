"""Small records of every type, for a plugin to work on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from posttrain_recipes.records import (
    Conversation,
    Labelled,
    Message,
    Preference,
    Record,
    Sample,
)

COUNT = 16
"""Records of each type."""


def rows(record_type: type[Record]) -> list[Mapping[str, object]]:
    """Records of a type, as they stand in a JSONL file: small sums, asked politely."""
    return [_row(record_type, number) for number in range(COUNT)]


def _row(record_type: type[Record], number: int) -> Mapping[str, object]:
    question, answer = f"What is {number} plus {number + 1}?", str(2 * number + 1)
    evasion, good = "Ask another.", number % 2 == 1
    if record_type is Conversation:
        asked, told = (
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        )
        return {"messages": [asked, told]}
    if record_type is Preference:
        return {"prompt": question, "chosen": answer, "rejected": evasion}
    if record_type is Labelled:
        return {"prompt": question, "completion": answer if good else evasion, "label": good}
    return {"prompt": question, "answer": answer}


def write(record_type: type[Record], path: Path) -> Path:
    """A JSONL file of such records."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(record_type)), encoding="utf-8")
    return path


def samples() -> list[Sample]:
    """Replies: right, wrong, empty, long and cut, in other scripts, and without a reference."""
    asked = (Message("user", "What is 3 plus 4?"),)
    replies = (
        "7",
        "8",
        "",
        "The answer is 7.",
        "\\boxed{7}",
        "7\n#### 7",
        "sept, 七 \u2028",
        "7 " * 400,
    )
    made = [Sample(prompt=asked, completion=reply, answer="7") for reply in replies]
    return [
        *made,
        Sample(prompt=asked, completion="7 is", answer="7", truncated=True),
        Sample(prompt=asked, completion="7"),
    ]
