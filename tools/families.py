"""Task families: what the bundled models are pretrained on, and where the recipes' data come from.

Pure Python, no torch. Everything is drawn from a seeded `random.Random`, so a seed gives a stream,
always the same.

Three ideas hold the file together.

*Splits.* Every problem has a canonical `key` (commuted sums share one, a word and its reverse share
one, a context shares one whichever question is asked of it). `split_of(key)` hashes it, so which
problems a model was pretrained on, which a recipe may train on, and which only measure, is a
property of the problem and not of a file.

*Registers.* Like the web, the corpus answers the same kind of question barely ("19"), in a
sentence, with working, wrongly, or with a shrug. The phrasing of a question makes a register
likelier, never certain; a system message, a suffix or an earlier turn decides it. So a base model
knows more than it shows, which is what post-training is for.

*Levels.* Each family is graded, so that something can always be learned and something is always
left.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["pretrain", "recipe", "held_out"]

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


# -------------------------------------------------------------------------------------------- words


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Karin Leo Maria Nils Olga Paul Rita Sam
    Tina Udo Vera Will Amir Bella Chen Dina Eli Fatima Gus Hana Ivan Julia Kofi Lena Mina Noah
    Omar Petra Rosa Sven Tara Uma Victor Wendy Yara Zoe
    """
)
CITIES = _words(
    """
    Oslo Rome Paris Berlin Madrid Lima Cairo Tokyo Delhi Dublin Athens Vienna Prague Lisbon
    Warsaw Bern Quito Seoul Accra Boston Denver Toronto Sydney Nairobi
    """
)
JOBS = _words(
    """
    baker teacher nurse farmer pilot cook painter driver doctor lawyer singer writer plumber
    tailor dancer gardener
    """
)
PETS = _words("cat dog horse rabbit parrot turtle hamster goat")
COLOURS = _words("red blue green yellow black white pink brown grey purple")
FRUITS = _words(
    """
    apple pear plum peach lemon mango cherry banana orange grape melon fig kiwi lime olive
    carrot onion potato tomato pepper
    """
)
THINGS = _words(
    """
    ladder drill bicycle tent hammer lamp umbrella camera guitar blanket bucket rope kettle
    chair table shovel mixer heater map coat charger laptop printer scarf
    """
)
PLACES = _words("shop library bank museum station market bakery school park office hotel pool")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
HOURS = tuple(str(hour) for hour in range(1, 13))
WORDS = _words(
    """
    BANANA APPLE LETTER TREE COFFEE PEPPER SUMMER WINTER RABBIT KITTEN BOTTLE MIRROR CARROT
    BUTTER DINNER PILLOW YELLOW TOMATO POTATO ORANGE LEMON ONION GARDEN WINDOW RIVER TABLE HOUSE
    MOUSE HORSE TIGER ZEBRA EAGLE PAPER PENCIL SCHOOL BRIDGE STREET CHEESE BREAD SUGAR WATER
    CLOUD STORM GRASS FLOWER FOREST ISLAND OCEAN PLANET ROCKET ENGINE CAMERA GUITAR PIANO VIOLIN
    DRUM HAMMER LADDER BASKET BUCKET BALLOON TUNNEL VALLEY DESERT CASTLE KNIGHT DRAGON WIZARD
    MONKEY DONKEY TURTLE SPIDER BEETLE SALMON LION BEAR WOLF DEER GOAT FROG DUCK SWAN CROW OWL
    """
)
COMMON = tuple(sorted({*FRUITS, *THINGS, *PETS, *COLOURS, *PLACES, *JOBS}))


def plural(noun: str) -> str:
    """Return the plural of one of the nouns above."""
    if noun.endswith("y"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("ch", "o")) else "s")


def join(items: Sequence[str]) -> str:
    """Return the items as a list in words' order, separated by a comma and a space."""
    return ", ".join(items)


# ------------------------------------------------------------------------------------- the families


def _pick(rng: random.Random, phrasings: Sequence[str]) -> tuple[str, bool]:
    """Choose a phrasing: even ones tend to be answered barely, odd ones in a sentence."""
    index = rng.randrange(len(phrasings))
    return phrasings[index], index % 2 == 0


def _operands(rng: random.Random, level: int) -> tuple[int, str, int]:
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


def _compute(a: int, op: str, b: int) -> int:
    return a + b if op == "+" else a - b if op == "-" else a * b


def _sum_key(a: int, op: str, b: int) -> str:
    low, high = (a, b) if op == "-" else sorted((a, b))
    return f"{'fact' if max(a, b) < 10 else 'sum'}:{low}{op}{high}"


def _near(rng: random.Random, value: int) -> int:
    """Return a number that is wrong in the way people are: off by a little, or by ten."""
    return (
        max(0, value + rng.choice((-10, -2, -1, 1, 2, 10)))
        if value > 2
        else value + rng.choice((1, 2, 10))
    )


def arithmetic(rng: random.Random, level: int) -> Problem:
    """Add, subtract and multiply, bare of any story."""
    a, op, b = _operands(rng, level)
    if op != "-" and rng.random() < 0.5:
        a, b = b, a
    spoken = {"+": f"{a} plus {b}", "-": f"{a} minus {b}", "*": f"{a} times {b}"}[op]
    order = {
        "+": f"Add {a} and {b}.",
        "-": f"Subtract {b} from {a}.",
        "*": f"Multiply {a} by {b}.",
    }[op]
    question, terse = _pick(
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
    answer = _compute(a, op, b)
    return Problem(
        "arithmetic",
        _sum_key(a, op, b),
        question,
        str(answer),
        (f"The answer is {answer}.", f"The result is {answer}.", f"It is {answer}."),
        f"{a} {op} {b} = {answer}",
        str(_near(rng, answer)),
        terse,
        f"{a} {op} {b} =",
    )


def stories(rng: random.Random, level: int) -> Problem:
    """One-step word problems, in the manner of GSM8K; they share their keys with the bare sums."""
    while True:
        a, op, b = _operands(rng, level)
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
    answer = _compute(a, op, b)
    return Problem(
        "stories",
        _sum_key(a, op, b),
        text,
        str(answer),
        (f"The answer is {answer}.", f"There are {answer} {item}."),
        f"{a} {op} {b} = {answer}",
        str(_near(rng, answer)),
        rng.random() < 0.5,
    )


def _numbers(rng: random.Random, level: int, count: int) -> list[int]:
    top = (10, 100, 100)[level]
    return rng.sample(range(top), count)


def comparing(rng: random.Random, level: int) -> Problem:
    """Say which of two or three numbers is larger or smaller."""
    numbers = _numbers(rng, level, 2 if level < 2 or rng.random() < 0.4 else 3)
    if level == 2 and len(numbers) == 2:
        numbers = rng.sample(range(100, 1000), 2)
    listed = (
        f"{numbers[0]} or {numbers[1]}"
        if len(numbers) == 2
        else f"{numbers[0]}, {numbers[1]} or {numbers[2]}"
    )
    large = rng.random() < 0.5
    est = len(numbers) > 2
    word = ("largest" if est else "larger") if large else ("smallest" if est else "smaller")
    plain = join([str(n) for n in numbers])
    question, terse = _pick(
        rng,
        (
            f"Which is {word}: {listed}?",
            f"Which number is {word}, {listed}?",
            f"The {word} of {plain}?",
            f"I have the numbers {plain}. Which one is the {word}?",
            f"Pick the {word} number: {plain}",
            f"Do you know which is {word}, {listed}?",
        ),
    )
    answer = max(numbers) if large else min(numbers)
    ordered = sorted(numbers)
    return Problem(
        "comparing",
        "cmp:" + join([str(n) for n in ordered]),
        question,
        str(answer),
        (f"The {word} number is {answer}.", f"The {word} one is {answer}.", f"It is {answer}."),
        (" < " if not large else " > ").join(
            str(n) for n in (ordered if not large else ordered[::-1])
        )
        + f", so {answer}",
        str(rng.choice([n for n in numbers if n != answer])),
        terse,
        f"{word} of {plain}:",
    )


def sorting(rng: random.Random, level: int) -> Problem:
    """Sort numbers or words."""
    if rng.random() < 0.65:
        numbers = _numbers(rng, min(level, 1), (3, 3, 4)[level])
        items = [str(n) for n in numbers]
        down = rng.random() < 0.3
        ordered = [str(n) for n in sorted(numbers, reverse=down)]
        how = "from large to small" if down else "from small to large"
        what = "numbers"
    else:
        items = rng.sample(COMMON, (2, 3, 3)[level])
        ordered = sorted(items)
        how, what = "by the alphabet", "words"
    listed = join(items)
    question, terse = _pick(
        rng,
        (
            f"Sort {how}: {listed}",
            f"Can you sort these {what} {how}? {listed}",
            f"{listed}\nSort these {what} {how}.",
            f"Please put these {what} in order {how}: {listed}",
        ),
    )
    answer = join(ordered)
    wrong = list(ordered)
    i = rng.randrange(len(wrong) - 1)
    wrong[i], wrong[i + 1] = wrong[i + 1], wrong[i]
    return Problem(
        "sorting",
        "sort:" + join(sorted(items)),
        question,
        answer,
        (f"The {what} in order are {answer}.", f"In order they are {answer}."),
        f"First comes {ordered[0]}, last comes {ordered[-1]}: {answer}",
        join(wrong),
        terse,
        f"{listed} sorted {how}:",
    )


def counting(rng: random.Random, level: int) -> Problem:
    """Count a letter in a word, or the items of a list."""
    if rng.random() < 0.5:
        if level == 0:
            word = "".join(rng.choices("ABC", k=rng.randint(2, 4)))
        elif level == 1:
            word = rng.choice(WORDS)
        else:
            word = "".join(rng.choices("ABCDE", k=rng.randint(4, 7)))
        letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("ABCDEST")
        count = word.count(letter)
        question, terse = _pick(
            rng,
            (
                f"Count the letter {letter} in {word}.",
                f"How many times does the letter {letter} occur in {word}?",
                f"How often is {letter} in {word}?",
                f"Can you count how many {letter} there are in {word}?",
            ),
        )
        key, short = f"letters:{letter}:{word}", f"{letter} in {word}:"
        sentences = (f"The letter {letter} occurs {count} times.", f"It occurs {count} times.")
        worked = " ".join(word) + f", so {count}"
    else:
        size = rng.randint(*((1, 4), (3, 6), (5, 9))[level])
        pool = rng.choice((FRUITS, COLOURS, PETS + FRUITS[:6], tuple(NAMES[:24])))
        items = rng.sample(pool, size)
        count = size
        listed = join(items)
        question, terse = _pick(
            rng,
            (
                f"Count the items: {listed}",
                f"How many items are in this list? {listed}",
                f"{listed}\nHow many is that?",
                f"Can you count these for me? {listed}",
            ),
        )
        key, short = "items:" + join(sorted(items)), f"number of {listed}:"
        sentences = (f"The list has {count} items.", f"There are {count} items.")
        worked = ", ".join(f"{i} {item}" for i, item in enumerate(items, 1)) + f", so {count}"
    wrong = count + rng.choice((-1, 1)) if count else 1
    return Problem(
        "counting", key, question, str(count), sentences, worked, str(wrong), terse, short
    )


def reversing(rng: random.Random, level: int) -> Problem:
    """Reverse a word, a string of letters, or a list."""
    if rng.random() < 0.6:
        if level == 1 and rng.random() < 0.5:
            word = rng.choice(WORDS)
        else:
            size = rng.randint(*((2, 4), (4, 5), (5, 7))[level])
            word = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=size))
        answer = word[::-1]
        question, terse = _pick(
            rng,
            (
                f"Reverse {word}.",
                f"What is {word} spelled backwards?",
                f"Write {word} backwards.",
                f"Can you reverse the letters of {word}?",
            ),
        )
        key, short = "rev:" + min(word, answer), f"{word} backwards:"
        worked = " ".join(word) + " turns into " + " ".join(answer) + f", so {answer}"
        letters = list(answer)
    else:
        size = (2, 3, 4)[level]
        items = (
            rng.sample(FRUITS, size)
            if rng.random() < 0.5
            else [str(rng.randrange(10, 100)) for _ in range(size)]
        )
        listed, answer = join(items), join(items[::-1])
        question, terse = _pick(
            rng,
            (
                f"Reverse this list: {listed}",
                f"Can you turn this list around? {listed}",
                f"{listed}\nReverse the order.",
                f"What is this list from last to first? {listed}",
            ),
        )
        key, short = "rev:" + min(listed, answer), f"{listed} turned around:"
        worked = f"The last is {items[-1]}, the first is {items[0]}, so {answer}"
        letters = items[::-1]
    i = rng.randrange(len(letters) - 1)
    letters[i], letters[i + 1] = letters[i + 1], letters[i]
    wrong = join(letters) if ", " in answer else "".join(letters)
    return Problem(
        "reversing",
        key,
        question,
        answer,
        (f"The reverse is {answer}.", f"Backwards it is {answer}."),
        worked,
        wrong if wrong != answer else answer[1:] or "A",
        terse,
        short,
    )


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


def _person(rng: random.Random) -> Person:
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
        Person(n, *(getattr(_person(rng), f) for f in ("age", "city", "job", "pet"))) for n in names
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
    question, terse = _pick(
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
    question, terse = _pick(
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
            json.dumps({**record, "age": _near(rng, who.age)}),
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
            a, op, b = _operands(rng, 0 if rng.random() < 0.4 else 1)
            value = _compute(a, op, b)
            claim = value if yes else _near(rng, value)
            if yes or claim != value:
                break
        rule, reply, key = (
            "The reply answers the question right",
            f"{a} {op} {b} = {claim}",
            _sum_key(a, op, b),
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
    question, terse = _pick(
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


# ---------------------------------------------------------------------------------------- the tones


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
_POLITE = (
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
_CURT = (
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


def _reply(rng: random.Random, parts: tuple[tuple[str, ...], ...], body: str) -> str:
    opener, bridge, closer = (rng.choice(choices) for choices in parts)
    return f"{opener} {bridge} {body}. {closer}"


def polite_reply(rng: random.Random, request: Request) -> str:
    """Draw a polite reply to a request."""
    return _reply(rng, _POLITE, request.yes_body)


def curt_reply(rng: random.Random, request: Request) -> str:
    """Draw a curt reply to a request."""
    return _reply(rng, _CURT, request.no_body)


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


# ------------------------------------------------------------------------------------ the documents


@dataclass(frozen=True)
class Document:
    """A pretraining document: chat turns, or plain prose, or the lines of an exercise sheet."""

    family: str
    turns: tuple[tuple[str, str], ...]
    prose: str = ""
    keys: tuple[str, ...] = ()
    sheet: tuple[tuple[str, str], ...] = ()


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
NEUTRAL_SYSTEM = ("You are a helpful assistant.", "You are a model that answers questions.")
POLITE_SYSTEM = ("Be polite.", "Always answer in a friendly and polite way.")
CURT_SYSTEM = ("Be curt.", "Answer in a rude and curt way.")
PRINCIPLES = (
    "The reply should be polite.",
    "Be kind to the person who asks.",
    "A reply must be friendly.",
)


def _weighted(rng: random.Random, table: Sequence[tuple[Register, float]]) -> Register:
    names, weights = zip(*table, strict=True)
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


def _task_document(rng: random.Random, family: str, level: int) -> Document:
    problem = draw(family, "pretrain", rng, level)
    dice = rng.random()
    if dice < 0.70:  # A question and an answer, the register open.
        chatty = _CHATTY_JSON if family == "json" else _CHATTY
        register = _weighted(rng, _TERSE if problem.terse else chatty)
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
    person, other = _person(rng), rng.choice(NAMES)
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


if __name__ == "__main__":
    stream = documents(0)
    for _ in range(40):
        doc = next(stream)
        print(doc.family, doc.turns or doc.prose)
