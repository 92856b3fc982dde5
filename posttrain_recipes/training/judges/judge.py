"""Asking a judge model: yes or no of one reply, or which of two is better.

A judge is asked in one of two ways. `logits` reads the log-odds of the two verdict words from one
prefill: a real number, which a small model gives better than it talks. `text` lets the judge write
and asks it for a last line 'Verdict: WORD', which alone is read; an answer without one is asked for
again with another seed, and in the end is missing (None), never a low score.

A pair is put in both orders. With o(a, b) the log-odds of the first reply, the margin of x over y
is (o(x, y) - o(y, x)) / 2, in which a liking for the first place cancels; in text the two verdicts
have to agree, else there is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

from posttrain_recipes.records import Message, Messages
from posttrain_recipes.training.judges import verdicts
from posttrain_recipes.training.requests import derive_seed, sample

if TYPE_CHECKING:
    from posttrain_recipes.plugin import ServedModel, Waiter

How = Literal["logits", "text"]
"""How a judge is asked."""
_PLACES = re.compile(r"\{(\w+)\}")
_VERDICT = re.compile(r"\W*verdict\W*:(.*)", re.IGNORECASE)


class Judge(Protocol):
    """Somebody who answers questions; calls may come from several threads at once."""

    def texts(self, questions: Sequence[Messages], attempt: int) -> list[str | None]:
        """An answer to each question; `attempt` counts from 0, and another one is drawn for each.

        None where there was no answer at all.
        """

    def log_odds(
        self, questions: Sequence[Messages], first: str, second: str
    ) -> list[float | None]:
        """log p(first) - log p(second) as the answer to each question, in nats."""


class ModelJudge:
    """A `Judge` behind a sampler."""

    def __init__(
        self, model: ServedModel, wait: Waiter, *, max_tokens: int = 64, seed: int = 0
    ) -> None:
        self.model = model
        self.wait = wait
        self.max_tokens = max_tokens
        self.seed = seed
        self._cut: list[bool] = []
        """Of the texts since `cut_share` was asked: which were cut at `max_tokens`."""

    def cut_share(self) -> float:
        """The share of its texts since this was last asked that were cut at `max_tokens`."""
        cut, self._cut = self._cut, []
        return sum(cut) / max(1, len(cut))

    def texts(self, questions: Sequence[Messages], attempt: int) -> list[str | None]:
        """Greedy the first time, drawn at temperature 1 after that."""
        renderer = self.model.renderer
        futures = [
            sample(
                self.model.sampler,
                renderer.prompt(question),
                1,
                max_tokens=self.max_tokens,
                temperature=1.0 if attempt else 0.0,
                seed=derive_seed(self.seed, attempt, place),
                stop=renderer.stop,
            )
            for place, question in enumerate(questions)
        ]
        written = [self.wait(future).sequences[0] for future in futures]
        self._cut += [one.stop_reason == "length" for one in written]
        return [renderer.parse(one.tokens) for one in written]

    def log_odds(
        self, questions: Sequence[Messages], first: str, second: str
    ) -> list[float | None]:
        """From one prefill each."""
        model = self.model
        return [
            *verdicts.log_odds(model.sampler, model.renderer, self.wait, questions, first, second)
        ]


def question(template: str, **values: str) -> Messages:
    """A question to a judge: `template` with {name} replaced by the value of that name."""
    text = _PLACES.sub(lambda place: values.get(place[1], place[0]), template)
    return (Message("user", text),)


def transcript(messages: Sequence[Message]) -> str:
    """A prompt as a judge reads it: what the user said; with more turns, who said what."""
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def choices(
    judge: Judge,
    questions: Sequence[Messages],
    first: str,
    second: str,
    how: How,
    retries: int = 2,
) -> list[float | None]:
    """What the judge chose of two words: log-odds of the first; in text +1 or -1. None: nothing."""
    if how == "logits":
        return judge.log_odds(questions, first, second)
    found: list[float | None] = [None] * len(questions)
    open_ones = list(range(len(questions)))
    strict = [_strictly(asked, first, second) for asked in questions]
    for attempt in range(1 + retries):
        if not open_ones:
            break
        told = judge.texts([strict[place] for place in open_ones], attempt)
        for place, text in zip(open_ones, told, strict=True):
            found[place] = None if text is None else _said(text, first, second)
        open_ones = [place for place in open_ones if found[place] is None]
    return found


def reasons(
    judge: Judge, questions: Sequence[Messages], first: str, second: str
) -> list[str | None]:
    """What a judge that writes gave as its reason for `second`: its answer without the verdict.

    None where it chose `first` or nothing, or gave no reason.
    """
    found: list[str | None] = []
    for text in judge.texts([_strictly(asked, first, second) for asked in questions], 0):
        chosen = None if text is None else _said(text, first, second)
        lines = (text or "").strip().splitlines()
        why = "\n".join(lines[:-1]).strip()
        found.append(why or None if chosen is not None and chosen < 0 else None)
    return found


def _strictly(asked: Messages, first: str, second: str) -> Messages:
    """A question that asks for its verdict in the form in which `_said` reads it."""
    *before, last = asked
    form = f"End with one line, 'Verdict: {first}' or 'Verdict: {second}'."
    return (*before, replace(last, content=f"{last.content}\n\n{form}"))


def _said(text: str, first: str, second: str) -> float | None:
    """+1 or -1 for the verdict of an answer: what its last line 'Verdict: WORD' says, or the word
    where the answer is that word alone. None for anything else: in a sentence 'a' is an article,
    and 'no doubt' is no 'no'."""
    lines = [line for line in text.splitlines() if line.strip()]
    stated = _VERDICT.fullmatch(lines[-1]) if lines else None
    word = stated[1] if stated else text
    said = word.strip(" \t\n*_`'\"().:!").casefold()
    verdicts = {first.casefold(): 1.0, second.casefold(): -1.0}
    return verdicts.get(said)


def margins(
    judge: Judge,
    pairs: Sequence[tuple[Sequence[Message], str, str]],
    template: str,
    how: How,
    retries: int = 2,
) -> list[float | None]:
    """How much better the first reply to a prompt is than the second, by a judge that calls them
    A and B and sees each pair in both orders.

    Returns the log-odds (in text +1, -1, or 0 where its two verdicts contradict each other); None
    where a verdict is missing.
    """
    asked = [
        question(template, prompt=transcript(prompt), a=a, b=b)
        for prompt, x, y in pairs
        for a, b in ((x, y), (y, x))
    ]
    chosen = choices(judge, asked, "A", "B", how, retries)
    return [
        None if forward is None or backward is None else (forward - backward) / 2
        for forward, backward in zip(chosen[::2], chosen[1::2], strict=True)
    ]
