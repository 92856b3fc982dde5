"""What a problem is, and which split it belongs to."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["pretrain", "recipe", "held_out"]
LEVELS = 3


def split_of(key: str) -> Split:
    """Return the split a problem belongs to: 80% pretraining, 10% recipe data, 10% held out.

    Sums of two digits are facts and not problems: nobody works out 3 + 5 from other sums, so all of
    them are pretrained on, and no other split has any.
    """
    if key.startswith("fact:"):
        return "pretrain"
    bucket = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 10
    return "held_out" if bucket == 0 else "recipe" if bucket == 1 else "pretrain"


@dataclass(frozen=True)
class Problem:
    """One question with its answer, in each register the corpus knows."""

    family: str
    key: str
    question: str
    answer: str
    sentences: tuple[str, ...]
    """Full-sentence answers; the first is the usual one."""
    worked: str
    wrong: str
    """A plausible wrong answer, bare."""
    terse: bool
    """Whether this phrasing tends to be answered barely."""
    short: str = ""
    """The question as a line of an exercise sheet; empty for a family that has no sheets."""


def pick(rng: random.Random, phrasings: Sequence[str]) -> tuple[str, bool]:
    """Choose a phrasing: even ones tend to be answered barely, odd ones in a sentence."""
    index = rng.randrange(len(phrasings))
    return phrasings[index], index % 2 == 0
