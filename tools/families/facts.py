"""Facts about people: found in a text (`extraction`), or turned into JSON (`json_facts`)."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from families.problems import Problem, pick
from families.sums import near
from families.words import CITIES, JOBS, NAMES, PETS, join


@dataclass(frozen=True)
class Person:
    """Facts about somebody, for extraction and JSON."""

    name: str
    age: int
    city: str
    job: str
    pet: str

    def text(self, fields: Sequence[str], rng: random.Random) -> str:
        """Return the facts in a sentence or two."""
        said = {
            "age": (f"{self.name} is {self.age}", f"{self.name} is {self.age} years old"),
            "city": (f"lives in {self.city}", f"has a flat in {self.city}"),
            "job": (f"works as a {self.job}", f"is a {self.job}"),
            "pet": (f"has a {self.pet}", f"keeps a {self.pet}"),
        }
        parts = [rng.choice(said[f]) for f in fields]
        if not parts[0].startswith(self.name):
            parts[0] = f"{self.name} {parts[0]}"
        return (", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]) + "."


def draw_person(rng: random.Random) -> Person:
    """Draw somebody."""
    return Person(
        rng.choice(NAMES),
        rng.randint(18, 79),
        rng.choice(CITIES),
        rng.choice(JOBS),
        rng.choice(PETS),
    )


def _people(rng: random.Random, count: int, fields: Sequence[str]) -> tuple[list[Person], str, str]:
    """Draw people; return them, the text about them, and the canonical key of those facts."""
    names = rng.sample(NAMES, count)
    people = [
        Person(n, *(getattr(draw_person(rng), f) for f in ("age", "city", "job", "pet")))
        for n in names
    ]
    text = " ".join(p.text(fields, rng) for p in people)
    facts = sorted(
        ":".join([p.name, *(str(getattr(p, f)) for f in sorted(fields))]) for p in people
    )
    return people, text, "facts:" + "|".join(facts)


def extraction(rng: random.Random, level: int) -> Problem:
    """Find a fact in a context."""
    fields = ["age", *rng.sample(["city", "job", "pet"], 1 if level == 0 else 2)]
    if level == 2:
        fields = ["age", rng.choice(["city", "job", "pet"])]
    people, text, key = _people(rng, 2 if level == 2 else 1, fields)
    who = rng.choice(people)
    field = rng.choice([*fields, "name"] if level else fields)
    if field == "name":
        other = rng.choice(fields[1:])
        value = getattr(who, other)
        if sum(getattr(p, other) == value for p in people) > 1:
            return extraction(rng, level)
        ask = {
            "city": f"Who lives in {value}?",
            "job": f"Who is the {value}?",
            "pet": f"Who has the {value}?",
        }[other]
    else:
        ask = {
            "age": f"How old is {who.name}?",
            "city": f"Where does {who.name} live?",
            "job": f"What is the job of {who.name}?",
            "pet": f"Which pet does {who.name} have?",
        }[field]
    answer = str(getattr(who, field))
    question, terse = pick(
        rng,
        (
            f"{text}\n{ask}",
            f"Read this and tell me: {ask} {text}",
            f"Text: {text}\nQuestion: {ask}",
            f"{text} Now, {ask[0].lower() + ask[1:]}",
        ),
    )
    sentence = {
        "age": f"{who.name} is {answer} years old.",
        "city": f"{who.name} lives in {answer}.",
        "job": f"{who.name} is a {answer}.",
        "pet": f"{who.name} has a {answer}.",
        "name": f"It is {answer}.",
    }[field]
    pool: dict[str, Sequence[object]] = {
        "age": range(18, 80),
        "city": CITIES,
        "job": JOBS,
        "pet": PETS,
        "name": NAMES,
    }
    wrong = str(rng.choice([v for v in pool[field] if str(v) != answer]))
    return Problem(
        "extraction",
        key,
        question,
        answer,
        (f"The answer is {answer}.", f"The text says {answer}.", sentence),
        f"The text says that {f'it is {answer}.' if field == 'name' else sentence} So: {answer}",
        wrong,
        terse,
    )


def json_facts(rng: random.Random, level: int) -> Problem:
    """Turn facts into a JSON object; the contexts are those of extraction."""
    fields = ["age", *rng.sample(["city", "job", "pet"], (1, 1, 2)[level])]
    people, text, key = _people(rng, 1, fields)
    who = people[0]
    wanted = ["name", *fields] if level else fields
    named = join(wanted)
    question, terse = pick(
        rng,
        (
            f"{text}\nJSON with {named}:",
            f"Write a JSON object with {named} for this text: {text}",
            f"{text} Give {named} as JSON.",
            f"Can you turn this into JSON with the keys {named}? {text}",
        ),
    )
    record = {f: getattr(who, f) for f in wanted}
    answer = json.dumps(record)
    broken = rng.choice(
        (
            answer.replace('"', ""),
            answer[:-1],
            json.dumps({**record, "age": str(record["age"])}),
            json.dumps({**record, "age": near(rng, who.age)}),
        )
    )
    return Problem(
        "json",
        key,
        question,
        answer,
        (f"The JSON is {answer}", f"Here is the JSON: {answer}"),
        join([f"{f} is {record[f]}" for f in wanted]) + f". {answer}",
        broken,
        terse,
    )
