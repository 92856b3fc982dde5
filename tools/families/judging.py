"""Whether a reply keeps a stated rule, yes or no."""

from __future__ import annotations

import random

from families.problems import Problem, pick
from families.sums import compute, near, operands, sum_key
from families.tone import curt_reply, polite_reply, tone_request
from families.words import CITIES, DAYS, HOURS, NAMES, THINGS


def judging(rng: random.Random, level: int) -> Problem:
    """Judge a reply by a stated rule: yes or no."""
    kind = rng.choice(
        (
            ("word", "number", "tone"),
            ("start", "number", "tone", "sum"),
            ("length", "start", "sum"),
        )[level]
    )
    yes = rng.random() < 0.5
    if kind == "sum":
        while True:
            a, op, b = operands(rng, 0 if rng.random() < 0.4 else 1)
            value = compute(a, op, b)
            claim = value if yes else near(rng, value)
            if yes or claim != value:
                break
        rule, reply, key = (
            "The reply answers the question right",
            f"{a} {op} {b} = {claim}",
            sum_key(a, op, b),
        )
    elif kind == "tone":
        request = tone_request(rng)
        reply = polite_reply(rng, request) if yes else curt_reply(rng, request)
        rule, key = "The reply is polite", request.key
    else:
        name, city, thing, day = (
            rng.choice(NAMES),
            rng.choice(CITIES),
            rng.choice(THINGS),
            rng.choice(DAYS),
        )
        number = rng.randint(2, 99)
        parts = [f"{name} needs the {thing}", f"in {city}", f"on {day}"]
        if kind == "number":
            rule = "The reply has a number in it"
            if yes:
                parts.append(
                    f"at {rng.choice(HOURS)}" if rng.random() < 0.5 else f"for {number} hours"
                )
            else:
                parts.append(rng.choice(("at noon", "for a while", "for a friend")))
            reply = " ".join([parts[0], rng.choice(parts[1:3]), parts[3]]) + "."
        elif kind == "word":
            word = rng.choice((thing, city)) if yes else rng.choice(THINGS + CITIES)
            reply = " ".join(parts[:2]) + "."
            yes = word in (thing, city)
            rule = f"The reply has the word {word} in it"
        elif kind == "start":
            first = name if yes else rng.choice(NAMES)
            yes = first == name
            rule, reply = (
                f"The reply starts with {first}",
                " ".join([parts[0], rng.choice(parts[1:])]) + ".",
            )
        else:
            reply = " ".join(parts[: rng.randint(1, 3)]) + "."
            size = len(reply.split())
            limit = size + rng.choice((1, 2, 3)) if yes else max(2, size - rng.choice((0, 1, 2)))
            rule = f"The reply has fewer than {limit} words"
        key = f"judge:{rule}|{reply}"
    question, terse = pick(
        rng,
        (
            f"Rule: {rule}.\nReply: {reply}\nYes or no?",
            f"Does this reply keep the rule? Reply: {reply} Rule: {rule}.",
            f"Reply: {reply}\n{rule}: yes or no?",
            f"Here is a reply: {reply} Please say if this is so: {rule[0].lower() + rule[1:]}.",
        ),
    )
    answer = "yes" if yes else "no"
    return Problem(
        "judging",
        key,
        question,
        answer,
        (
            f"The reply {'keeps' if yes else 'breaks'} the rule.",
            f"I would say {answer}.",
        ),
        f"The rule is: {rule[0].lower() + rule[1:]}. So {answer}",
        "no" if yes else "yes",
        terse,
    )
