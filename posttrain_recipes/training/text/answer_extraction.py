"""Extracting the answer from a reply's text, and comparing it with the reference."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Literal

from posttrain_recipes.training.text.numbers import (
    Number,
    last_number,
    last_value,
    leading_number,
    numbers_in,
    read_number,
)

Extract = Literal["whole", "number", "hashes", "boxed"]
"""Which part of a reply is the answer: all of it, its last number, what stands after `####`, or
what stands in the last `\\boxed{}`."""

NumberIn = Literal["auto", "number", "hashes", "boxed", "whole"]
"""Where a reply has its number; `auto`: see `final_number`."""

READER = "numbers 4"
"""What reads numbers: a result by another reader is not taken for one of this."""

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_SAID = re.compile(r"\banswer(?: is| would be)?(?:\s*[:=]|(?<=is|be))[\s*_:]*", re.IGNORECASE)
_SENTENCE = re.compile(r".*?(?=[.!?]+(?:\s|$)|\n|$)")
_DECIMAL = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_BOX = "\\boxed{"
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_DEFINES = re.compile(r"^\s*(?:async )?(?:def|class) ", re.MULTILINE)


def extract(text: str, how: Extract) -> str | None:
    """The answer in `text`, or None where there is none."""
    if how == "number":
        found = last_number(text)
        return None if found is None else found.removesuffix("%").rstrip()
    if how == "hashes":
        lines = text.rsplit("####", 1)[1].strip().splitlines() if "####" in text else None
        return lines if lines is None else "".join(lines[:1]).strip()
    if how == "boxed":
        return _boxed(text)
    return text.strip()


def _boxed(text: str) -> str | None:
    """What stands in the last box, braces within it balanced."""
    start = text.rfind(_BOX)
    depth = 1
    for end in range(start + len(_BOX), len(text) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + len(_BOX) : end].strip()
    return None


def final_number(text: str, how: NumberIn = "auto") -> Number | None:
    """The number that a reply comes to; None where it has none.

    `auto` looks within the last `<answer>` where there is one, and takes what stands in the last
    box, else after `####`, else after the last "answer is" or "answer:", else the last number.
    """
    if how == "auto":
        tags = _TAGGED.findall(text)
        text = tags[-1] if tags else text
    ways: tuple[Extract, ...] = ("boxed", "hashes", "number") if how == "auto" else (how,)
    for way in ways:
        if way == "number":
            said = _announced(text) if how == "auto" else None
            return said or last_value(text)
        part = extract(text, way)
        if part is not None:
            # As in `x = 7`; a factorial is not its number.
            alone = way != "whole" and len(numbers_in(part)) == 1 and not part.endswith("!")
            return read_number(part) or (last_value(part) if alone else None)
    return None


def reference_number(text: str, how: NumberIn = "auto") -> Number | None:
    """The number of a reference, which is often bare, however the reply is asked to say it."""
    for way in ("boxed", "hashes") if how != "whole" else ():
        part = extract(text, way)
        if part is not None:
            return read_number(part)
    return read_number(text) or last_value(text)


def _announced(text: str) -> Number | None:
    """The number of the sentence that says what the answer is: `The answer is $18 a day, over 7
    days.` has 18, `The answer is 16 - 3 = 13.` has 13. A text that is all one number is that."""
    said = list(_SAID.finditer(text))
    if not said:
        return read_number(text)
    sentence = _SENTENCE.match(text, said[-1].end())
    part = sentence[0].replace("**", "") if sentence else ""
    return read_number(part) or leading_number(part) or last_value(part)


def fenced(text: str) -> str:
    """What stands in the last fenced block of a reply (```), or all of it where there is none."""
    blocks = _FENCE.findall(text)
    return (blocks[-1] if blocks else text).strip()


def python_code(text: str) -> str:
    """The program of a reply: the last fenced block that defines something, else the last one; what
    stands between `[BEGIN]` and `[DONE]`, as in MBPP's paper; else all of it."""
    blocks = _FENCE.findall(text)
    found = text.rpartition("[BEGIN]")[2].partition("[DONE]")[0]
    if blocks:
        found = next((one for one in reversed(blocks) if _DEFINES.search(one)), blocks[-1])
    return dedent(found).strip("\n")


def equal(found: str | None, answer: str, *, ignore_case: bool = False) -> bool:
    """Whether two answers are the same: as numbers (`1,000` is `1000.0`), else as words."""
    if found is None:
        return False
    left, right = (" ".join(text.split()) for text in (found, answer))
    if ignore_case:
        left, right = left.casefold(), right.casefold()
    if left == right:
        return True
    if _DECIMAL.fullmatch(left) and _DECIMAL.fullmatch(right):
        return float(left.replace(",", "")) == float(right.replace(",", ""))
    return False
