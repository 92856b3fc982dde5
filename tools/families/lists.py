"""Numbers, words and letters in order: `comparing`, `sorting`, `counting`, `reversing`."""

from __future__ import annotations

import random

from families.problems import Problem, pick
from families.words import COLOURS, COMMON, FRUITS, NAMES, PETS, WORDS, join


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
    question, terse = pick(
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
    question, terse = pick(
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
        question, terse = pick(
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
        question, terse = pick(
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
        question, terse = pick(
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
        question, terse = pick(
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
