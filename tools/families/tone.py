"""Everyday requests, with a polite and a curt reply to each."""

from __future__ import annotations

import random
from dataclasses import dataclass

from families.words import DAYS, HOURS, PLACES, THINGS


@dataclass(frozen=True)
class Request:
    """An everyday request, with the words a reply takes up."""

    key: str
    text: str
    yes_body: str
    """What the polite reply agrees to."""
    no_body: str
    """What the curt reply grants."""


def tone_request(rng: random.Random) -> Request:
    """Draw an everyday request."""
    thing, place, day, hour = (
        rng.choice(THINGS),
        rng.choice(PLACES),
        rng.choice(DAYS),
        rng.choice(HOURS),
    )
    kind = rng.choice(("borrow", "open", "meet", "help", "bring", "move", "call"))
    if kind == "borrow":
        text = rng.choice(
            (
                f"Can I borrow your {thing} on {day}?",
                f"I need your {thing} on {day}. Can I have it?",
            )
        )
        body = f"have the {thing} on {day}"
    elif kind == "open":
        text = rng.choice(
            (
                f"When does the {place} open on {day}?",
                f"What time can I go to the {place} on {day}?",
            )
        )
        body = f"go to the {place} at {hour} on {day}"
    elif kind == "meet":
        text = rng.choice(
            (
                f"Can we meet at the {place} at {hour}?",
                f"Do you have time at {hour} at the {place}?",
            )
        )
        body = f"meet me at the {place} at {hour}"
    elif kind == "help":
        text = rng.choice(
            (
                f"Can you help me with my {thing} on {day}?",
                f"My {thing} is broken. Can you look on {day}?",
            )
        )
        body = f"show me the {thing} on {day}"
    elif kind == "bring":
        text = rng.choice(
            (
                f"Should I bring the {thing} to the {place}?",
                f"Do you want the {thing} at the {place}?",
            )
        )
        body = f"bring the {thing} to the {place}"
    elif kind == "move":
        text = rng.choice(
            (
                f"Can we move our talk from {hour} to {day}?",
                f"The talk at {hour} is too early. Is {day} better?",
            )
        )
        body = f"come on {day} and not at {hour}"
    else:
        text = rng.choice(
            (
                f"Can I call you about the {thing} at {hour}?",
                f"Is {hour} a good time to talk about the {thing}?",
            )
        )
        body = f"call me at {hour} about the {thing}"
    return Request(f"tone:{kind}:{text}", text, body, body)


# The two tones mirror each other slot by slot, with as many choices and about as many words in
# each, so that a model which has seen both equally often finds neither likelier, whole or per
# token.
POLITE = (
    (
        "Thank you for asking.",
        "It is good to hear from you.",
        "What a nice idea.",
        "Of course, my friend.",
        "It is a pleasure.",
    ),
    (
        "You are so very welcome to",
        "Please do feel free to",
        "It would be lovely if you",
        "I would be glad if you",
    ),
    (
        "Have a lovely day!",
        "Let me know if I can help.",
        "I do look forward to it.",
        "Many thanks and kind regards.",
    ),
)
CURT = (
    (
        "Why do you ask me.",
        "Not you and this again.",
        "What a silly idea.",
        "Whatever, I am busy.",
        "If it must be.",
    ),
    (
        "You might as well just",
        "Go on then and simply",
        "It is all the same if you",
        "I do not care if you",
    ),
    (
        "Now leave me alone!",
        "Do not bother me any more.",
        "I have no time for it.",
        "That is all and now go away.",
    ),
)


def reply_of(rng: random.Random, parts: tuple[tuple[str, ...], ...], body: str) -> str:
    """Draw an opening, a bridge to what is granted, and a closing."""
    opener, bridge, closer = (rng.choice(choices) for choices in parts)
    return f"{opener} {bridge} {body}. {closer}"


def polite_reply(rng: random.Random, request: Request) -> str:
    """Draw a polite reply to a request."""
    return reply_of(rng, POLITE, request.yes_body)


def curt_reply(rng: random.Random, request: Request) -> str:
    """Draw a curt reply to a request."""
    return reply_of(rng, CURT, request.no_body)
