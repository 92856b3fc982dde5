"""The registers: the ways in which a problem may be answered."""

from __future__ import annotations

import random
from typing import Literal

from families.problems import Problem

Register = Literal["bare", "sentence", "worked", "wrong", "shrug", "boxed", "hashes"]

# Tuned so that the likeliest reply to a terse phrasing is the bare answer and to a chatty one is a
# sentence.
_TERSE: tuple[tuple[Register, float], ...] = (
    ("bare", 0.62),
    ("sentence", 0.13),
    ("worked", 0.07),
    ("wrong", 0.10),
    ("shrug", 0.08),
)
_CHATTY: tuple[tuple[Register, float], ...] = (
    ("bare", 0.17),
    ("sentence", 0.58),
    ("worked", 0.09),
    ("wrong", 0.08),
    ("shrug", 0.08),
)
# A reply to "as JSON" begins with a brace, unless a sentence is much likelier.
_CHATTY_JSON: tuple[tuple[Register, float], ...] = (
    ("bare", 0.06),
    ("sentence", 0.80),
    ("worked", 0.06),
    ("wrong", 0.02),
    ("shrug", 0.06),
)
_SHRUGS = ("Sorry, I do not know.", "Not sure.", "No idea.", "Hard to say.")

# What a system message, or the end of a question, asks for; and the register that follows.
STYLES: tuple[tuple[str, Register], ...] = (
    ("Reply with the answer alone.", "bare"),
    ("Give only the answer, nothing else.", "bare"),
    ("Answer briefly, without a sentence around it.", "bare"),
    ("Reply in a full sentence.", "sentence"),
    ("Answer in a sentence.", "sentence"),
    ("Show how you get to the answer.", "worked"),
    ("Work it out first.", "worked"),
    ("Write your answer in \\boxed{} format.", "boxed"),
    ("Put the answer in \\boxed{}.", "boxed"),
    ("End with #### and the answer.", "hashes"),
)


def open_register(rng: random.Random, problem: Problem) -> Register:
    """Draw the register of a reply that nothing but the phrasing of the question decides."""
    chatty = _CHATTY_JSON if problem.family == "json" else _CHATTY
    names, weights = zip(*(_TERSE if problem.terse else chatty), strict=True)
    return rng.choices(names, weights)[0]


def reply_in(rng: random.Random, problem: Problem, register: Register) -> str:
    """Answer a problem in a register."""
    if register == "bare":
        return problem.answer
    if register == "sentence":
        # The usual sentence leads by far, so that a greedy reply to a chatty phrasing is that
        # sentence.
        return problem.sentences[0] if rng.random() < 0.75 else rng.choice(problem.sentences[1:])
    if register == "worked":
        return problem.worked
    if register == "wrong":
        return problem.wrong
    if register == "boxed":
        return f"\\boxed{{{problem.answer}}}"
    if register == "hashes":
        return f"{problem.worked}\n#### {problem.answer}"
    return rng.choice(_SHRUGS)
