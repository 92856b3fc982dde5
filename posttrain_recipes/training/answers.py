"""Telling a right reply from a wrong one by its text."""

from __future__ import annotations

import re
from typing import Literal

Extract = Literal["whole", "number", "hashes", "boxed"]
"""Which part of a reply is the answer: all of it, its last number, what stands after `####`, or
what stands in the last `\\boxed{}`."""

_NUMBER = re.compile(r"(?<![\d)])-?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?")
"""A minus between two numbers takes one from the other; it is not a sign."""
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def extract(text: str, how: Extract) -> str | None:
    """The answer in `text`, or None where there is none."""
    if how == "number":
        numbers = _NUMBER.findall(text)
        return numbers[-1] if numbers else None
    if how == "hashes":
        return text.rsplit("####", 1)[1].strip() if "####" in text else None
    if how == "boxed":
        boxes = _BOXED.findall(text)
        return boxes[-1].strip() if boxes else None
    return text.strip()


def equal(found: str | None, answer: str, *, ignore_case: bool = False) -> bool:
    """Whether two answers are the same: as numbers (`1,000` is `1000.0`), else as words."""
    if found is None:
        return False
    left, right = (" ".join(text.split()) for text in (found, answer))
    if ignore_case:
        left, right = left.casefold(), right.casefold()
    if left == right:
        return True
    if _NUMBER.fullmatch(left) and _NUMBER.fullmatch(right):
        return float(left.replace(",", "")) == float(right.replace(",", ""))
    return False
