"""Forms for evals alone: neither a pretraining document nor a training file asks or replies so.

The held-out split has contents that were not trained on, asked in the forms that were. Here the
forms are new too: sums in other words, and other kinds of requests, with replies none of whose
phrases is one of `tone.POLITE` or `tone.CURT`. Numbers, things, places and days stay those of the
other families.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from families.problems import LEVELS, split_of
from families.sums import compute, operands, sum_key
from families.tone import Request, reply_of
from families.words import DAYS, HOURS, PLACES, THINGS

SUMS: dict[str, tuple[str, ...]] = {
    "+": (
        "What do {a} and {b} make?",
        "Tell me the sum of {a} and {b}.",
        "{a} and another {b} makes how many?",
        "Which number is {b} more than {a}?",
        "Put {b} on top of {a}.",
    ),
    "-": (
        "Take {b} away from {a}.",
        "What is left of {a} without {b}?",
        "{a} less {b} makes how many?",
        "Which number is {b} less than {a}?",
        "By how much is {a} more than {b}?",
    ),
    "*": (
        "What do {a} groups of {b} make?",
        "Tell me the product of {a} and {b}.",
        "{a} lots of {b} makes how many?",
        "Which number is {a} times as much as {b}?",
        "Take {b} exactly {a} times.",
    ),
}
"""By sign: the same sums in other words."""
REQUESTS: dict[str, tuple[tuple[str, ...], str]] = {
    "return": (
        ("May I give back your {thing} on {day}?", "Is it fine if the {thing} comes back {day}?"),
        "give the {thing} back on {day}",
    ),
    "ride": (
        ("Could I ride with you to the {place} on {day}?", "Is a seat to the {place} free {day}?"),
        "ride with me to the {place} on {day}",
    ),
    "wait": (
        ("Will you wait for me at the {place} until {hour}?", "I may be late, is {hour} fine?"),
        "be there at {hour}",
    ),
    "buy": (
        ("Would you sell me your {thing}?", "How much do you want for that old {thing}?"),
        "buy the {thing} from me",
    ),
    "join": (
        (
            "Is there room for me on the walk to the {place}?",
            "May my friends join you at the {place}?",
        ),
        "join us at the {place}",
    ),
    "keep": (
        (
            "Could the {thing} stay with you until {day}?",
            "I have no room for my {thing} before {day}.",
        ),
        "leave the {thing} here until {day}",
    ),
    "share": (
        ("How about we share the {thing} from {day}?", "Two of us need a {thing} on {day}."),
        "share the {thing} with me from {day}",
    ),
}
"""By kind: how it is asked, and what a reply grants."""
POLITE = (
    (
        "Yes, with all my heart.",
        "How kind that you ask!",
        "I am so happy about this.",
        "Sure, dear neighbour.",
        "That sounds wonderful.",
    ),
    (
        "By all means",
        "You may gladly",
        "I am delighted to let you",
        "It makes me happy when you",
    ),
    (
        "Warm wishes to you!",
        "See you soon, I hope.",
        "Take good care of yourself.",
        "It means so much to me.",
    ),
)
CURT = (
    (
        "Oh no, not this now.",
        "How rude that you ask!",
        "I am so tired of this.",
        "Fine, you old pest.",
        "That sounds horrible.",
    ),
    (
        "For all I care",
        "You may sadly",
        "I am forced to let you",
        "It makes me angry when you",
    ),
    (
        "Bad luck to you!",
        "Never come back, I hope.",
        "Take it out of my sight.",
        "It means nothing to me.",
    ),
)
"""The two tones mirror each other as those of `tone` do."""


@dataclass(frozen=True)
class Sum:
    """A sum that is asked in new words."""

    key: str
    question: str
    answer: str


def unseen_sum(rng: random.Random) -> Sum:
    """Draw a sum of the held-out split, with operands as the other sums have them."""
    while True:
        a, sign, b = operands(rng, rng.randrange(LEVELS))
        if split_of(key := sum_key(a, sign, b)) == "held_out":
            break
    question = rng.choice(SUMS[sign]).format(a=a, b=b)
    return Sum(key, question, str(compute(a, sign, b)))


def unseen_request(rng: random.Random) -> Request:
    """Draw an everyday request of a kind that `tone` has not."""
    kind = rng.choice(tuple(REQUESTS))
    asked, granted = REQUESTS[kind]
    words = {
        "thing": rng.choice(THINGS),
        "place": rng.choice(PLACES),
        "day": rng.choice(DAYS),
        "hour": rng.choice(HOURS),
    }
    text, body = rng.choice(asked).format(**words), granted.format(**words)
    return Request(f"unseen:{kind}:{text}", text, body, body)


def unseen_replies(rng: random.Random, request: Request) -> tuple[str, str]:
    """Draw a polite and a curt reply to a request."""
    return reply_of(rng, POLITE, request.yes_body), reply_of(rng, CURT, request.no_body)
