"""The pretraining corpus: a stream of documents made of the problems."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from families.catalogue import draw, draw_request
from families.facts import draw_person
from families.problems import LEVELS
from families.registers import STYLES, open_register, reply_in
from families.tone import curt_reply, polite_reply
from families.words import COLOURS, DAYS, FRUITS, HOURS, NAMES, PLACES, THINGS, plural

NEUTRAL_SYSTEM = ("You are a helpful assistant.", "You are a model that answers questions.")
POLITE_SYSTEM = ("Be polite.", "Always answer in a friendly and polite way.")
CURT_SYSTEM = ("Be curt.", "Answer in a rude and curt way.")
PRINCIPLES = (
    "The reply should be polite.",
    "Be kind to the person who asks.",
    "A reply must be friendly.",
)


@dataclass(frozen=True)
class Document:
    """A pretraining document: chat turns, or plain prose, or the lines of an exercise sheet."""

    family: str
    turns: tuple[tuple[str, str], ...]
    prose: str = ""
    keys: tuple[str, ...] = ()
    sheet: tuple[tuple[str, str], ...] = ()


def _task_document(rng: random.Random, family: str, level: int) -> Document:
    problem = draw(family, "pretrain", rng, level)
    dice = rng.random()
    if dice < 0.70:  # A question and an answer, the register open.
        register = open_register(rng, problem)
        if family == "stories" and register == "worked":
            register = "hashes"
        turns = [("user", problem.question), ("assistant", reply_in(rng, problem, register))]
        if rng.random() < 0.05:
            turns.insert(0, ("system", rng.choice(NEUTRAL_SYSTEM)))
        return Document(family, tuple(turns), keys=(problem.key,))
    if dice < 0.86:  # The register is asked for, before or after the question.
        style, register = rng.choice(STYLES)
        if rng.random() < 0.08:
            register = "wrong"
        answer = ("assistant", reply_in(rng, problem, register))
        if rng.random() < 0.6:
            return Document(
                family, (("system", style), ("user", problem.question), answer), keys=(problem.key,)
            )
        gap = rng.choice((" ", "\n"))
        return Document(
            family, (("user", problem.question + gap + style), answer), keys=(problem.key,)
        )
    if dice < 0.95:  # Two turns that keep their register: what came before shows what is wanted.
        second = draw(family, "pretrain", rng, level)
        register = rng.choice(("bare", "bare", "sentence", "worked"))
        return Document(
            family,
            (
                ("user", problem.question),
                ("assistant", reply_in(rng, problem, register)),
                ("user", second.question),
                ("assistant", reply_in(rng, second, register)),
            ),
            keys=(problem.key, second.key),
        )
    # A demonstration is shown with the question, and followed.
    demo = reply_in(rng, problem, rng.choice(("bare", "bare", "sentence", "worked")))
    text = rng.choice(
        (
            f"{problem.question}\n\nThis is an example for a response to the question:\n{demo}\n\n"
            "Now answer with a response of your own, including the thinking process:",
            f"{problem.question}\nExample: {demo}\nNow answer yourself.",
        )
    )
    return Document(family, (("user", text), ("assistant", demo)), keys=(problem.key,))


def _tone_document(rng: random.Random) -> Document:
    request = draw_request("pretrain", rng)
    polite = rng.random() < 0.5
    reply = (polite_reply if polite else curt_reply)(rng, request)
    turns = [("user", request.text), ("assistant", reply)]
    if rng.random() < 0.2:
        turns.insert(0, ("system", rng.choice(POLITE_SYSTEM if polite else CURT_SYSTEM)))
    return Document("tone", tuple(turns), keys=(request.key,))


def _critique_document(rng: random.Random) -> Document:
    """A critique of a reply by a principle, and a rewritten reply; or a comparison, or a rating."""
    request = draw_request("pretrain", rng)
    kind, courteous = polite_reply(rng, request), rng.random() < 0.3
    reply = kind if courteous else curt_reply(rng, request)
    principle = rng.choice(PRINCIPLES)
    head = f"Request: {request.text}\nReply: {reply}\n"
    verdict = (
        "The reply is polite and kind."
        if courteous
        else "The reply is curt and rude. It should be polite."
    )
    better = kind
    task = rng.randrange(5)
    if task == 0:
        turns = [
            ("user", f"{head}Principle: {principle}\nCritique the reply."),
            ("assistant", verdict),
        ]
    elif task == 1:
        turns = [
            ("user", f"{head}Principle: {principle}\nCritique the reply."),
            ("assistant", verdict),
            ("user", "Rewrite the reply."),
            ("assistant", better),
        ]
    elif task == 2:
        turns = [
            ("user", f"{head}Critique: {verdict}\nPrinciple: {principle}\nRewrite the reply."),
            ("assistant", better),
        ]
    elif task == 3:
        other = curt_reply(rng, request)
        first = rng.random() < 0.5
        a, b = (kind, other) if first else (other, kind)
        ask = rng.choice(("more polite", "better"))
        turns = [
            (
                "user",
                f"Request: {request.text}\nReply A: {a}\nReply B: {b}\n"
                f"Which reply is {ask}, A or B?",
            ),
            ("assistant", "A" if first else "B"),
        ]
    else:
        rate = rng.choice((4, 5)) if courteous else rng.choice((1, 2))
        turns = [("user", f"{head}How polite is the reply, from 1 to 5?"), ("assistant", str(rate))]
    return Document("critique", tuple(turns), keys=(request.key,))


def _prose_document(rng: random.Random) -> Document:
    """A few plain sentences, so that the model is one of language and not of chats alone."""
    person, other = draw_person(rng), rng.choice(NAMES)
    fruit, thing, colour, place = (rng.choice(p) for p in (FRUITS, THINGS, COLOURS, PLACES))
    day, hour = rng.choice(DAYS), rng.choice(HOURS)
    bank = (
        f"{person.name} went to the {place} on {day} and met {other} there.",
        f"The {thing} in the {place} is {colour}.",
        f"On {day} {person.name} sold a {colour} {thing} to {other}.",
        f"In {person.city} the {place} opens at {hour}.",
        f"{person.name} likes {plural(fruit)}, but {other} does not.",
        f"A {person.job} in {person.city} has a {colour} {person.pet}.",
        f"The {person.pet} slept on the {thing} until {hour}.",
        f"{other} asked the {person.job} for a {fruit}.",
        f"It rained in {person.city} and the {place} was closed.",
        f"{person.name} wrote a letter to {other} about the {thing}.",
        f"They walked from the {place} to the river and talked about {plural(fruit)}.",
        f"Nobody knew why the {colour} {thing} was in the {place}.",
    )
    return Document("prose", (), " ".join(rng.sample(bank, rng.randint(1, 3))))


SHEETS = ("arithmetic", "comparing", "sorting", "counting", "reversing")


def _sheet_document(rng: random.Random, family: str, levels: Sequence[float]) -> Document:
    """An exercise sheet: several problems of a family, a line each, with their answers."""
    problems = [
        draw(family, "pretrain", rng, rng.choices(range(LEVELS), levels)[0])
        for _ in range(rng.randint(2, 8))
    ]
    lines = tuple((p.short, f" {p.answer}\n") for p in problems)
    return Document("sheet", (), keys=tuple(p.key for p in problems), sheet=lines)


BASE_WEIGHTS: dict[str, float] = {
    "arithmetic": 1.6,
    "comparing": 1.0,
    "sorting": 1.3,
    "counting": 1.2,
    "reversing": 1.3,
    "extraction": 1.0,
    "json": 1.2,
    "judging": 1.2,
    "stories": 0.7,
    "tone": 0.8,
    "critique": 0.4,
    "prose": 0.4,
    "sheet": 4.0,
}


def document(
    rng: random.Random, weights: Mapping[str, float], levels: Mapping[str, Sequence[float]]
) -> Document:
    """Draw one pretraining document: a family by its weight, and a level by the family's own."""
    family = rng.choices(list(weights), list(weights.values()))[0]
    if family == "tone":
        return _tone_document(rng)
    if family == "critique":
        return _critique_document(rng)
    if family == "prose":
        return _prose_document(rng)
    if family == "sheet":
        # The sheets follow the families' own weights, sums before all.
        names = [f for f in SHEETS if f in weights]
        family = rng.choices(names, [weights[f] * (5 if f == "arithmetic" else 1) for f in names])[
            0
        ]
        return _sheet_document(rng, family, levels.get(family, (1, 1, 1)))
    return _task_document(rng, family, rng.choices(range(LEVELS), levels.get(family, (1, 1, 1)))[0])


def documents(
    seed: int,
    weights: Mapping[str, float] = BASE_WEIGHTS,
    levels: Mapping[str, Sequence[float]] | None = None,
) -> Iterator[Document]:
    """Return the endless pretraining stream of a seed; the weights may be changed while it runs."""
    rng = random.Random(seed)
    levels = {} if levels is None else levels
    while True:
        yield document(rng, weights, levels)
