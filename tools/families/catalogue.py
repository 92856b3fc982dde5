"""The families by name, and drawing from a split."""

from __future__ import annotations

import random
from collections.abc import Callable

from families.facts import extraction, json_facts
from families.judging import judging
from families.lists import comparing, counting, reversing, sorting
from families.problems import LEVELS, Problem, Split, split_of
from families.sums import arithmetic, stories
from families.tone import Request, tone_request

VERIFIABLE = (
    "arithmetic",
    "comparing",
    "sorting",
    "counting",
    "reversing",
    "extraction",
    "json",
    "judging",
)
FAMILIES: dict[str, Callable[[random.Random, int], Problem]] = {
    "arithmetic": arithmetic,
    "comparing": comparing,
    "sorting": sorting,
    "counting": counting,
    "reversing": reversing,
    "extraction": extraction,
    "json": json_facts,
    "judging": judging,
    "stories": stories,
}


def draw(family: str, split: Split, rng: random.Random, level: int | None = None) -> Problem:
    """Draw a problem of a family whose key lies in the split."""
    while True:
        grade = rng.randrange(LEVELS) if level is None else level
        problem = FAMILIES[family](rng, grade)
        if split_of(problem.key) == split:
            return problem


def draw_request(split: Split, rng: random.Random) -> Request:
    """Draw an everyday request whose key lies in the split."""
    while True:
        request = tone_request(rng)
        if split_of(request.key) == split:
            return request
