"""Records of an eval that training data hold, told by their words rather than by their bytes.

Two ways to hold a record: to ask the same question, whatever its case and punctuation; or to have
`n` words in a row in common with it (13, as Brown et al. 2020, "Language Models are Few-Shot
Learners", appendix C). Runs of words that several records of the eval have are its template, an
instruction or a system's phrase: they tell nothing of one record, and are left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from posttrain_recipes.conversion import REPLY
from posttrain_recipes.plugin import (
    Conversation,
    Labelled,
    Message,
    Preference,
    Prompt,
    Record,
)

WORDS = 13
"""Words in a row that are no chance."""
SHARE = 0.5
"""Of a record's runs of words, how many in common make it one that the training data hold: with
fewer it may be a phrase that both have, and is counted apart."""
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Scripts without spaces between words, of which each sign counts: Thai, Lao, Burmese, Khmer,
Chinese, Japanese."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_DROPPED = frozenset(".,;:!?\"'`“”‘’«»„…()[]{}、。，：；！？「」（）*_#|")
"""Punctuation and marks of layout. Signs that calculate stay: `3 + 4` is not `3 - 4`."""
Kind = Literal["question", "words"]


@dataclass(frozen=True)
class Held:
    """A record of the eval that is in the training data."""

    source: str
    """Where the record was read."""
    there: str
    """Where the training data hold it."""
    kind: Kind
    share: float
    """Of its runs of words that are its own, how many the training data have; 1 for a question."""
    text: str
    """The words in common, or the question."""


@dataclass
class Contamination:
    """What of one eval is in the training data."""

    count: int = 0
    """Records of the eval."""
    held: list[Held] = field(default_factory=list)
    """In the eval's order."""
    part: list[Held] = field(default_factory=list)
    """Those with some words in common, and fewer than `share` of them."""
    short: int = 0
    """Records with no run of that many words of their own: the question alone was compared."""
    shared: int = 0
    """Runs of words that several records have, left out."""

    def of(self, kind: Kind) -> list[Held]:
        """Those that are held in that way."""
        return [held for held in self.held if held.kind == kind]


def words(text: str) -> list[str]:
    """A text as words: without case, form of signs and punctuation."""
    found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [word for word in found if word not in _DROPPED]


def find(
    train: Iterable[Record], evals: Sequence[Record], n: int = WORDS, share: float = SHARE
) -> Contamination:
    """Which of the records of an eval are in the training data, which are read once, one by one.

    Args:
        n: words in a row; at least 1.
        share: see `SHARE`; 0 holds a record for one run in common, as Brown et al. do.
    """
    found = Contamination(len(evals))
    texts = [_words(record) for record in evals]
    asked = [" ".join(words(list(_questions(record))[-1])) for record in evals]
    questions: dict[str, list[int]] = {}
    for place, question in enumerate(asked):
        if question:
            questions.setdefault(question, []).append(place)
    # Copies within the eval are one text: their words are not a template.
    whole = [" ".join(text) for text in texts]
    begins = {text: place for place, text in reversed(list(enumerate(whole)))}
    first = [begins[text] for text in whole]
    own: dict[int, int] = {}
    several: set[int] = set()
    counts = [0] * len(evals)
    for place, text in enumerate(texts):
        if first[place] != place:
            continue
        for gram in set(_runs(text, n)):
            if own.setdefault(gram, place) != place:
                several.add(gram)
    for gram in several:
        del own[gram]
    for place in own.values():
        counts[place] += 1
    found.shared = len(several)
    found.short = sum(not counts[place] for place in first)

    same: dict[int, str] = {}
    met: dict[int, dict[int, tuple[str, str]]] = {}
    for record in train:
        for question in _questions(record):
            for place in questions.get(" ".join(words(question)), ()):
                same.setdefault(place, record.source)
        text = _words(record)
        for start, gram in enumerate(_runs(text, n)):
            if (place := own.get(gram, -1)) >= 0:
                run = " ".join(text[start : start + n])
                met.setdefault(place, {}).setdefault(gram, (record.source, run))
    for place, record in enumerate(evals):
        if place in same:
            held = Held(record.source, same[place], "question", 1.0, asked[place])
            found.held.append(held)
        elif runs := met.get(first[place]):
            there, run = next(iter(runs.values()))
            common = len(runs) / counts[first[place]]
            held = Held(record.source, there, "words", common, run)
            (found.held if common >= share else found.part).append(held)
    return found


def _runs(text: Sequence[str], n: int) -> Iterator[int]:
    for start in range(len(text) - n + 1):
        yield hash(tuple(text[start : start + n]))


def _words(record: Record) -> list[str]:
    return words("\n".join(message.content for message in _messages(record)))


def _questions(record: Record) -> Iterator[str]:
    """What each of its replies answers, without system prompts; empty where nothing is asked."""
    prompts: list[Sequence[Message]] = []
    match record:
        case Conversation():
            there = record.messages
            prompts = [there[:i] for i, m in enumerate(there) if m.role == "assistant"] or [there]
        case Prompt():
            prompts = [record.messages]
        case Preference() | Labelled():
            prompts = [record.prompt]
    for prompt in prompts or [()]:
        yield "\n".join(m.content for m in prompt if m.role != "system")


def _messages(record: Record) -> Iterator[Message]:
    found: Sequence[Message] = ()
    match record:
        case Conversation():
            found = record.messages
        case Prompt():
            answer = str(record.metadata.get(REPLY, record.answer or ""))
            found = (*record.messages, Message("assistant", answer))
        case Preference():
            found = (*record.prompt, *record.chosen, *record.rejected)
        case Labelled():
            found = (*record.prompt, *record.completion)
    yield from (message for message in found if message.role != "system")
