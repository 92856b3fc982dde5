"""A taskset of verifiers, single-turn: sums."""

import re
from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["SumsTaskset"]

NUMBER = re.compile(r"\d+")


class SumsData(vf.TaskData):
    """A sum with its answer."""

    answer: str


class SumsTask(vf.Task[SumsData]):
    """What is asked, and what a reply is worth."""

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        """Whether the last number of the reply is the sum."""
        return float(NUMBER.findall(trace.last_reply or "")[-1:] == [self.data.answer])

    @vf.metric
    async def number(self, trace: vf.Trace) -> float:
        """Whether there is one."""
        return float(bool(NUMBER.search(trace.last_reply or "")))


class SumsConfig(vf.TasksetConfig):
    """Options of the taskset."""

    below: int = 100
    """All numbers are smaller."""
    terms: int = 2
    """Numbers in a sum."""


class SumsTaskset(vf.Taskset[SumsTask, SumsConfig]):
    """Every sum of so many numbers below a bound, in an order that looks drawn."""

    def load(self) -> Iterator[SumsTask]:
        below, terms = self.config.below, self.config.terms
        for n in range(below**terms):
            place = n * 7919 % below**terms
            numbers = [place // below**k % below for k in range(terms)]
            asked = f"What is {' + '.join(map(str, numbers))}?"
            yield SumsTask(SumsData(prompt=asked, answer=str(sum(numbers))), self.config.task)
