"""Write the recipes' data and the starter's from the task families.

    python tools/make_recipe_data.py [--seed 0] [--root DIR]

The recipes' data is `recipes/data/*.jsonl` under the root, which is the repository unless said
otherwise; the starter's is `posttrain_recipes/starter/data/*.jsonl`, the first lines of two of
those files.

Training files hold problems of the recipe split alone, held-out files of the held-out split alone;
the bundled models were pretrained on neither. What `_held_out` files ask is new, the forms in which
they ask it are those of the training files; of `_new_forms` files the forms are new as well, of
`_new_requests` files those of the request and not of the replies.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from families import (
    VERIFIABLE,
    Problem,
    Split,
    curt_reply,
    draw,
    draw_request,
    polite_reply,
    split_of,
    unseen_replies,
    unseen_request,
    unseen_sum,
)
from families.sums import compute, sum_key
from families.tone import POLITE
from families.words import COMMON

Row = dict[str, Any]
Keyed = tuple[str, Row]
"""A row with the key of the problem it holds."""
SIZES = {
    "chat": 2400,
    "noisy": 800,
    "held_out": 256,
    "preferences": 1000,
    "preferences_held_out": 200,
    "preferences_flipped": 400,
    "preferences_long": 200,
    "arithmetic": 500,
    "arithmetic_short": 160,
    "arithmetic_held_out": 100,
    "thumbs": 600,
    "formal": 500,
    "formal_held_out": 150,
    "unseen_pairs": 600,
    "requests_held_out": 32,
    "styles_held_out": 200,
    "requests": 240,
    "sums": 960,
    "sums_held_out": 200,
    "kind_replies": 400,
    "everyday_held_out": 120,
    "tool_calls": 240,
    "calculations": 480,
    "calculations_held_out": 200,
    "programs": 320,
    "programs_held_out": 100,
    "sums_new_forms": 200,
    "preferences_new_requests": 160,
    "preferences_new_forms": 160,
    "reversed": 400,
    "reversed_held_out": 160,
}
STARTER = {"train": ("chat", 400), "held_out": ("held_out", 64)}
"""For each of the starter's files, the recipes' file it is the beginning of, and how many lines."""
ROOT = Path(__file__).resolve().parent.parent


def problems(
    families: tuple[str, ...], split: Split, count: int, rng: random.Random
) -> list[Problem]:
    """Draw problems, the families in turn, no question twice."""
    out: dict[str, Problem] = {}
    while len(out) < count:
        problem = draw(families[len(out) % len(families)], split, rng)
        out.setdefault(problem.question, problem)
    drawn = list(out.values())
    rng.shuffle(drawn)
    return drawn


def chat(rng: random.Random) -> list[Keyed]:
    """Conversations that answer barely."""
    return [
        (
            p.key,
            {
                "messages": [
                    {"role": "user", "content": p.question},
                    {"role": "assistant", "content": p.answer},
                ]
            },
        )
        for p in problems(VERIFIABLE, "recipe", SIZES["chat"], rng)
    ]


def noisy(rng: random.Random) -> list[Keyed]:
    """Prompts with replies to imitate, two in five of which are wrong: those to another problem of
    the kind."""
    rows: list[Keyed] = []
    drawn = [draw(VERIFIABLE[n % len(VERIFIABLE)], "recipe", rng) for n in range(SIZES["noisy"])]
    for number, problem in enumerate(drawn):
        answer, wrong = problem.answer, number % 5 < 2
        while wrong and answer == problem.answer:
            answer = draw(VERIFIABLE[number % len(VERIFIABLE)], "recipe", rng).answer
        rows.append((problem.key, {"prompt": problem.question, "answer": answer}))
    rng.shuffle(rows)
    return rows


def held_out(rng: random.Random) -> list[Keyed]:
    """Prompts of the same families with their answers."""
    return [
        (p.key, {"prompt": p.question, "answer": p.answer})
        for p in problems(VERIFIABLE, "held_out", SIZES["held_out"], rng)
    ]


def preferences(split: Split, count: int) -> Callable[[random.Random], list[Keyed]]:
    """Pairs that prefer the polite reply."""

    def make(rng: random.Random) -> list[Keyed]:
        rows: dict[tuple[str, str], Keyed] = {}
        while len(rows) < count:
            request = draw_request(split, rng)
            chosen = polite_reply(rng, request)
            row = {"prompt": request.text, "chosen": chosen, "rejected": curt_reply(rng, request)}
            rows.setdefault((request.text, chosen), (request.key, row))
        return list(rows.values())

    return make


def calculation(split: Split, signs: str, rng: random.Random) -> tuple[str, str, str, int]:
    """Draw a sum beyond what was pretrained on: its key, a question, the expression, the answer."""
    while True:
        a, b, sign = rng.randint(100, 999), rng.randint(11, 99), rng.choice(signs)
        if split_of(key := sum_key(a, sign, b)) == split:
            break
    spoken = {"+": "plus", "-": "minus", "*": "times"}[sign]
    order = {"+": f"Add {a} and {b}.", "-": f"Subtract {b} from {a}.", "*": f"Multiply {a} by {b}."}
    asked = (
        f"{a} {sign} {b} =",
        f"What is {a} {sign} {b}?",
        order[sign],
        f"How much is {a} {spoken} {b}?",
        f"Calculate {a} {sign} {b}.",
        f"Can you tell me what {a} {spoken} {b} is?",
    )
    return key, rng.choice(asked), f"{a} {sign} {b}", compute(a, sign, b)


def calculations(split: Split, count: int) -> Callable[[random.Random], list[Keyed]]:
    """Products of large numbers with their answers."""

    def make(rng: random.Random) -> list[Keyed]:
        rows: dict[str, Keyed] = {}
        while len(rows) < count:
            key, question, _, answer = calculation(split, "*", rng)
            rows.setdefault(question, (key, {"prompt": question, "answer": str(answer)}))
        return list(rows.values())

    return make


def tool_calls(rng: random.Random) -> list[Keyed]:
    """Conversations in which a product is handed to a calculator and its result is said again."""
    rows: dict[str, Keyed] = {}
    while len(rows) < SIZES["tool_calls"]:
        key, question, expression, answer = calculation("recipe", "*", rng)
        said = [
            ("user", question),
            ("assistant", f"<calculate>{expression}</calculate>"),
            ("tool", str(answer)),
            ("assistant", str(answer)),
        ]
        messages = [{"role": role, "content": text} for role, text in said]
        rows[question] = key, {"messages": messages}
    return list(rows.values())


def programs(split: Split, count: int) -> Callable[[random.Random], list[Keyed]]:
    """Small functions in the form of MBPP: what to write, the code, and tests."""
    forms = {
        "+": ("adds {a} to a number and multiplies it by {b}", "(x + {a}) * {b}"),
        "-": ("multiplies a number by {a} and subtracts {b}", "x * {a} - {b}"),
        "*": ("multiplies a number by {a} and adds {b}", "x * {a} + {b}"),
    }

    def make(rng: random.Random) -> list[Keyed]:
        rows: dict[str, Keyed] = {}
        while len(rows) < count:
            sign, a, b = rng.choice("+-*"), rng.randint(2, 99), rng.randint(2, 99)
            if split_of(key := f"program:{sign}:{a}:{b}") != split:
                continue
            says, body = (text.format(a=a, b=b) for text in forms[sign])
            tests = []
            for x in rng.sample(range(1, 50), 3):
                c = x + a if sign == "+" else x * a
                y = {"+": c * b, "-": c - b, "*": c + b}[sign]
                tests.append(f"assert f({x}) == {y}")
            row = {
                "text": f"Write a function f that {says}.",
                "code": f"def f(x):\n    return {body}",
                "test_list": tests,
            }
            rows[row["text"]] = key, row
        return list(rows.values())

    return make


def word_problems(split: Split, count: int) -> Callable[[random.Random], list[Keyed]]:
    """Word problems in the form of GSM8K: one worked line, then #### and the number."""

    def make(rng: random.Random) -> list[Keyed]:
        return [
            (p.key, {"question": p.question, "answer": f"{p.worked}\n#### {p.answer}"})
            for p in problems(("stories",), split, count, rng)
        ]

    return make


def kind_replies(rng: random.Random) -> list[Keyed]:
    """Requests with a polite reply, as formal as it comes, to imitate."""
    rows: dict[tuple[str, str], Keyed] = {}
    while len(rows) < SIZES["kind_replies"]:
        request = draw_request("recipe", rng)
        reply = polite_reply(rng, request)
        row = {"prompt": request.text, "completion": reply}
        rows.setdefault((request.text, reply), (request.key, row))
    return list(rows.values())


def sums(split: Split, count: int) -> Callable[[random.Random], list[Keyed]]:
    """Bare sums with their answers, for rewards that can be checked."""

    def make(rng: random.Random) -> list[Keyed]:
        return [
            (p.key, {"prompt": p.question, "answer": p.answer})
            for p in problems(("arithmetic",), split, count, rng)
        ]

    return make


def sums_new_forms(rng: random.Random) -> list[Keyed]:
    """Held-out sums in words that are in no training file."""
    rows: dict[str, Keyed] = {}
    while len(rows) < SIZES["sums_new_forms"]:
        drawn = unseen_sum(rng)
        rows[drawn.question] = drawn.key, {"prompt": drawn.question, "answer": drawn.answer}
    return list(rows.values())


def reversed_lists(split: Split, count: int) -> Callable[[random.Random], list[Keyed]]:
    """Three to five words with the same words from last to first, asked for in one form."""

    def make(rng: random.Random) -> list[Keyed]:
        rows: dict[str, Keyed] = {}
        while len(rows) < count:
            words = rng.sample(COMMON, rng.randint(3, 5))
            if split_of(key := "reversed:" + ", ".join(sorted(words))) != split:
                continue
            asked = f"Reverse the order of these words: {', '.join(words)}"
            rows[asked] = key, {"prompt": asked, "answer": ", ".join(words[::-1])}
        return list(rows.values())

    return make


def unseen_pairs(rng: random.Random) -> list[Keyed]:
    """Pairs that prefer the polite reply, in words of no other training file."""
    return _unseen_pairs("unseen_pairs", rng, new_replies=True)


def verdicts(which: slice) -> Callable[[random.Random], list[Keyed]]:
    """Questions which of two replies of `unseen_pairs` is more polite, in either order: A or B."""

    def make(rng: random.Random) -> list[Keyed]:
        made = []
        for key, row in rows_of("unseen_pairs")[which]:
            answer = rng.choice("AB")
            a, b = row["chosen"], row["rejected"]
            if answer == "B":
                a, b = b, a
            asked = f"Request: {row['prompt']}\nReply A: {a}\nReply B: {b}\n"
            question = f"{asked}Which reply is more polite, A or B?"
            made.append((key, {"prompt": question, "answer": answer}))
        return made

    return make


FLIPPED = 0.3
"""The share of pairs in `preferences_flipped` that prefer the other reply."""


def preferences_flipped(rng: random.Random) -> list[Keyed]:
    """Pairs that prefer the polite reply, but for some whose labels are wrong."""
    made = []
    for key, row in preferences("recipe", SIZES["preferences_flipped"])(rng):
        if rng.random() < FLIPPED:
            row = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        made.append((key, row))
    return made


def preferences_long(rng: random.Random) -> list[Keyed]:
    """Pairs that prefer the polite reply, which takes leave three times: half as long again."""
    made = []
    for key, row in preferences("recipe", SIZES["preferences_long"])(rng):
        leaves = rng.sample([one for one in POLITE[-1] if one not in row["chosen"]], 2)
        made.append((key, {**row, "chosen": " ".join([row["chosen"], *leaves])}))
    return made


def arithmetic_short(rng: random.Random) -> list[Keyed]:
    """Some of the word problems of `arithmetic`, with the last line of their solutions alone."""
    return [
        (key, {**row, "answer": row["answer"].splitlines()[-1]})
        for key, row in rows_of("arithmetic")[: SIZES["arithmetic_short"]]
    ]


def preferences_new_requests(rng: random.Random) -> list[Keyed]:
    """Pairs that prefer the polite reply: requests of other kinds, replies as in training."""
    return _unseen_pairs("preferences_new_requests", rng, new_replies=False)


def preferences_new_forms(rng: random.Random) -> list[Keyed]:
    """Pairs that prefer the polite reply: requests and replies in words of no training file."""
    return _unseen_pairs("preferences_new_forms", rng, new_replies=True)


def _unseen_pairs(name: str, rng: random.Random, *, new_replies: bool) -> list[Keyed]:
    rows: dict[str, Keyed] = {}
    while len(rows) < SIZES[name]:
        request = unseen_request(rng)
        if new_replies:
            chosen, rejected = unseen_replies(rng, request)
        else:
            chosen, rejected = polite_reply(rng, request), curt_reply(rng, request)
        row = {"prompt": request.text, "chosen": chosen, "rejected": rejected}
        rows.setdefault(request.text, (request.key, row))
    return list(rows.values())


# What a system message asks for, and what is said then: the registers but for the bare answer.
STYLES: tuple[tuple[str, Callable[[Problem], str]], ...] = (
    ("Reply in a full sentence.", lambda p: p.sentences[0]),
    ("Work it out first.", lambda p: p.worked),
    ("Put the answer in \\boxed{}.", lambda p: f"\\boxed{{{p.answer}}}"),
)


def styles(split: Split, count: int) -> Callable[[random.Random], list[Keyed]]:
    """Prompts that ask for another form of answer than the bare one, with the reply in it."""

    def make(rng: random.Random) -> list[Keyed]:
        rows = []
        for place, p in enumerate(problems(VERIFIABLE, split, count, rng)):
            asked, reply = STYLES[place % len(STYLES)]
            turns = [
                {"role": "system", "content": asked},
                {"role": "user", "content": p.question},
            ]
            rows.append((p.key, {"prompt": turns, "answer": reply(p)}))
        return rows

    return make


def requests(split: Split, count: int) -> Callable[[random.Random], list[Keyed]]:
    """Everyday requests without a reply."""

    def make(rng: random.Random) -> list[Keyed]:
        rows: dict[str, Keyed] = {}
        while len(rows) < count:
            request = draw_request(split, rng)
            rows.setdefault(request.text, (request.key, {"prompt": request.text}))
        return list(rows.values())

    return make


def thumbs(rng: random.Random) -> list[Keyed]:
    """Single replies with a verdict each: a third are polite, and called good."""
    rows: dict[tuple[str, str], Keyed] = {}
    while len(rows) < SIZES["thumbs"]:
        request = draw_request("recipe", rng)
        good = rng.random() < 1 / 3
        reply = (polite_reply if good else curt_reply)(rng, request)
        row = {"prompt": request.text, "completion": reply, "label": good}
        rows.setdefault((request.text, reply), (request.key, row))
    return list(rows.values())


FORMAL = (
    "Thank you for asking.",
    "It is good to hear from you.",
    "It is a pleasure.",
    "You are so very welcome to",
    "I would be glad if you",
    "I do look forward to it.",
    "Many thanks and kind regards.",
)
"""The polite phrases that a formal house prefers; the others are familiar."""


def formality(reply: str) -> int:
    """How many formal phrases a polite reply has, of three."""
    return sum(phrase in reply for phrase in FORMAL)


def formal(split: Split, count: int) -> Callable[[random.Random], list[Keyed]]:
    """Pairs of polite replies that prefer the one with more formal phrases."""

    def make(rng: random.Random) -> list[Keyed]:
        rows: dict[tuple[str, str], Keyed] = {}
        while len(rows) < count:
            request = draw_request(split, rng)
            worse, better = sorted((polite_reply(rng, request) for _ in range(2)), key=formality)
            if formality(worse) < formality(better):
                row = {"prompt": request.text, "chosen": better, "rejected": worse}
                rows.setdefault((request.text, better), (request.key, row))
        return list(rows.values())

    return make


FILES: dict[str, Callable[[random.Random], list[Keyed]]] = {
    "chat": chat,
    "noisy": noisy,
    "held_out": held_out,
    "preferences": preferences("recipe", SIZES["preferences"]),
    "preferences_held_out": preferences("held_out", SIZES["preferences_held_out"]),
    "preferences_flipped": preferences_flipped,
    "preferences_long": preferences_long,
    "arithmetic": word_problems("recipe", SIZES["arithmetic"]),
    "arithmetic_short": arithmetic_short,
    "arithmetic_held_out": word_problems("held_out", SIZES["arithmetic_held_out"]),
    "thumbs": thumbs,
    "formal": formal("recipe", SIZES["formal"]),
    "formal_held_out": formal("held_out", SIZES["formal_held_out"]),
    "unseen_pairs": unseen_pairs,
    "verdicts": verdicts(slice(450)),
    "verdicts_held_out": verdicts(slice(450, None)),
    "requests_held_out": requests("held_out", SIZES["requests_held_out"]),
    "styles_held_out": styles("held_out", SIZES["styles_held_out"]),
    "requests": requests("recipe", SIZES["requests"]),
    "kind_replies": kind_replies,
    "everyday_held_out": requests("held_out", SIZES["everyday_held_out"]),
    "sums": sums("recipe", SIZES["sums"]),
    "sums_held_out": sums("held_out", SIZES["sums_held_out"]),
    "tool_calls": tool_calls,
    "calculations": calculations("recipe", SIZES["calculations"]),
    "calculations_held_out": calculations("held_out", SIZES["calculations_held_out"]),
    "programs": programs("recipe", SIZES["programs"]),
    "programs_held_out": programs("held_out", SIZES["programs_held_out"]),
    "sums_new_forms": sums_new_forms,
    "preferences_new_requests": preferences_new_requests,
    "preferences_new_forms": preferences_new_forms,
    "reversed": reversed_lists("recipe", SIZES["reversed"]),
    "reversed_held_out": reversed_lists("held_out", SIZES["reversed_held_out"]),
}


def rows_of(name: str, seed: int = 0) -> list[Keyed]:
    """Return the rows of one file with their keys.

    Each file has a generator of its own, so that one may change without the others.
    """
    return FILES[name](random.Random(f"{seed}:{name}"))


def write(path: Path, rows: list[Keyed]) -> None:
    """Write rows without their keys, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for _, row in rows), encoding="utf-8")
    print(f"{path} {len(rows)} lines, {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Write every file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=ROOT)
    args = parser.parse_args()
    made = {name: rows_of(name, args.seed) for name in FILES}
    for name, rows in made.items():
        write(args.root / "recipes" / "data" / f"{name}.jsonl", rows)
    for name, (source, count) in STARTER.items():
        folder = args.root / "posttrain_recipes" / "starter" / "data"
        write(folder / f"{name}.jsonl", made[source][:count])


if __name__ == "__main__":
    main()
