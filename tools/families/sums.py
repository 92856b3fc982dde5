"""Sums, bare (`arithmetic`) and told as a story (`stories`)."""

from __future__ import annotations

import random

from families.problems import Problem, pick
from families.words import FRUITS, NAMES, THINGS, plural


def operands(rng: random.Random, level: int) -> tuple[int, str, int]:
    """Draw a sum.

    Products are rarer, and by small factors, so that one not seen before follows from others.
    """
    if level == 0:
        a, op, b = rng.randint(0, 19), rng.choice("+-"), rng.randint(0, 9)
    elif level == 1:
        op = rng.choice("++++----*")
        a, b = (
            (rng.randint(1, 20), rng.choice((2, 5, 10)))
            if op == "*"
            else (rng.randint(10, 60), rng.randint(1, 9))
        )
    else:
        op = rng.choice("++++----*")
        a, b = (
            (rng.randint(2, 30), rng.randint(2, 5))
            if op == "*"
            else (rng.randint(10, 99), rng.randint(10, 99))
        )
    if op == "-" and a < b:
        a, b = b, a
    return a, op, b


def compute(a: int, op: str, b: int) -> int:
    """Return what the sum comes to."""
    return a + b if op == "+" else a - b if op == "-" else a * b


def sum_key(a: int, op: str, b: int) -> str:
    """Return the key of a sum, the same in either order where the order does not matter."""
    low, high = (a, b) if op == "-" else sorted((a, b))
    return f"{'fact' if max(a, b) < 10 else 'sum'}:{low}{op}{high}"


def near(rng: random.Random, value: int) -> int:
    """Return a number that is wrong in the way people are: off by a little, or by ten."""
    return (
        max(0, value + rng.choice((-10, -2, -1, 1, 2, 10)))
        if value > 2
        else value + rng.choice((1, 2, 10))
    )


def arithmetic(rng: random.Random, level: int) -> Problem:
    """Add, subtract and multiply, bare of any story."""
    a, op, b = operands(rng, level)
    if op != "-" and rng.random() < 0.5:
        a, b = b, a
    spoken = {"+": f"{a} plus {b}", "-": f"{a} minus {b}", "*": f"{a} times {b}"}[op]
    order = {
        "+": f"Add {a} and {b}.",
        "-": f"Subtract {b} from {a}.",
        "*": f"Multiply {a} by {b}.",
    }[op]
    question, terse = pick(
        rng,
        (
            f"{a} {op} {b} =",
            f"What is {a} {op} {b}?",
            order,
            f"How much is {spoken}?",
            f"Calculate {a} {op} {b}.",
            f"Can you tell me what {spoken} is?",
        ),
    )
    answer = compute(a, op, b)
    return Problem(
        "arithmetic",
        sum_key(a, op, b),
        question,
        str(answer),
        (f"The answer is {answer}.", f"The result is {answer}.", f"It is {answer}."),
        f"{a} {op} {b} = {answer}",
        str(near(rng, answer)),
        terse,
        f"{a} {op} {b} =",
    )


def stories(rng: random.Random, level: int) -> Problem:
    """One-step word problems, in the manner of GSM8K; they share their keys with the bare sums."""
    while True:
        a, op, b = operands(rng, level)
        if a > 1 and b > 1 and a != b:
            break
    name, other = rng.sample(NAMES, 2)
    item = plural(rng.choice(FRUITS + THINGS[:8]))
    if op == "+":
        text = rng.choice(
            (
                f"{name} has {a} {item} and buys {b} more. How many {item} does {name} have now?",
                f"{name} has {a} {item} and {other} has {b}. "
                f"How many {item} do they have together?",
                f"A box holds {a} {item}. {name} puts in {b} more. How many {item} are in the box?",
            )
        )
    elif op == "-":
        text = rng.choice(
            (
                f"{name} has {a} {item} and gives {b} to {other}. "
                f"How many {item} does {name} have left?",
                f"There are {a} {item} in a box. {name} takes out {b}. How many {item} are left?",
                f"{name} has {a} {item} and {other} has {b}. "
                f"How many more {item} does {name} have?",
            )
        )
    else:
        text = rng.choice(
            (
                f"{name} has {a} boxes with {b} {item} in each. How many {item} does {name} have?",
                f"{name} buys {b} {item} on each of {a} days. How many {item} does {name} buy?",
            )
        )
    answer = compute(a, op, b)
    return Problem(
        "stories",
        sum_key(a, op, b),
        text,
        str(answer),
        (f"The answer is {answer}.", f"There are {answer} {item}."),
        f"{a} {op} {b} = {answer}",
        str(near(rng, answer)),
        rng.random() < 0.5,
    )
