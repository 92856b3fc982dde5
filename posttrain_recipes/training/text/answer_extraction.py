"""Extracting the answer from a reply's text, and comparing it with the reference."""

from __future__ import annotations

import re
from typing import Literal

from posttrain_recipes.training.text.numbers import last_number

Extract = Literal["whole", "number", "hashes", "boxed"]
"""Which part of a reply is the answer: all of it, its last number, what stands after `####`, or
what stands in the last `\\boxed{}`."""

_DECIMAL = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_BOX = "\\boxed{"
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


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


def fenced(text: str) -> str:
    """What stands in the last fenced block of a reply (```), or all of it where there is none."""
    blocks = _FENCE.findall(text)
    return (blocks[-1] if blocks else text).strip()


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
