"""Items of a task without end, in two parts that have nothing in common.

An item has a seed of its own, which counts up from that of the first, so that two datasets with
the seeds 0 and 1 share all items but one. Here the seeds of the two parts lie 2**31 apart, and
those of different `seed`s a million.

That is not enough where a task has few questions: the same one comes of many seeds. So a question
is of one part, by a hash of its words: a quarter of all questions is held out, whatever the seed,
the level or the size, and a training set never asks one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ptl_reasoning_gym.library import CHUNK, Item

Part = Literal["train", "held_out"]
STRIDE = 1_000_000
"""Items of one `seed`."""
HELD_OUT = 2**31
"""What the seeds of held-out items begin with."""
SEEDS = 2000
"""How many `seed`s there are; the library's generators take 32 bits."""
SHARE = 4
"""One question of so many is held out."""
IN_VAIN = 2000
"""Items in a row that are of no use, after which there are taken to be no more."""


@dataclass(frozen=True)
class Source:
    """A task with its options."""

    task: str
    level: int | None = None
    config: str = "{}"
    """The options that were given, as JSON."""
    weight: float = 1.0


@dataclass
class Tally:
    """What became of the items of a source."""

    made: int = 0
    kept: int = 0
    others: int = 0
    """Items whose question belongs to the other part."""
    again: int = 0
    """Held-out items that ask what an earlier one asked, of this source or of another."""
    spent: bool = False
    """Whether there are no more."""


def first_seed(part: Part, seed: int) -> int:
    """The seed of the first item."""
    return (HELD_OUT if part == "held_out" else 0) + seed * STRIDE


def part_of(question: str) -> Part:
    """The part that a question belongs to, by its words."""
    digest = hashlib.sha256(" ".join(question.split()).encode()).digest()
    return "train" if digest[0] % SHARE else "held_out"


@dataclass
class Stream:
    """The items of one source that belong to a part, one after another.

    Held-out items ask something new each time; training items may ask the same thing twice.
    """

    source: Source
    part: Part
    seed: int
    seen: set[str] = field(default_factory=set)
    """Questions that were asked; several streams may share them."""
    tally: Tally = field(default_factory=Tally)

    def __iter__(self) -> Iterator[tuple[Item, Mapping[str, Any]]]:
        begin, vain, tally = first_seed(self.part, self.seed), 0, self.tally
        for number in range(STRIDE):
            if vain >= IN_VAIN:
                break
            chunk, index = divmod(number, CHUNK)
            one = self.source
            item = Item(one.task, one.level, one.config, begin + chunk * CHUNK, index)
            entry = item.entry()
            tally.made, vain = tally.made + 1, vain + 1
            question = str(entry["question"])
            if part_of(question) != self.part:
                tally.others += 1
            elif self.part == "held_out" and question in self.seen:
                tally.again += 1
            else:
                self.seen.add(question)
                tally.kept, vain = tally.kept + 1, 0
                yield item, entry
        tally.spent = True


def interleaved(streams: list[Stream]) -> Iterator[tuple[Stream, Item, Mapping[str, Any]]]:
    """Items of all streams, at every point as near to the weights as can be.

    A stream that has no more ends it all: the shares would no longer hold.
    """
    running = [iter(stream) for stream in streams]
    weights = [stream.source.weight for stream in streams]
    credit = [0.0] * len(streams)
    while True:
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        place = max(range(len(streams)), key=lambda i: (credit[i], -i))
        credit[place] -= sum(weights)
        found = next(running[place], None)
        if found is None:
            return
        yield streams[place], *found
