"""A taskset of verifiers, single-turn: the sum of two numbers."""

from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["SumsTaskset"]


class SumsData(vf.TaskData):
    """A sum with its answer."""

    answer: str


class SumsTask(vf.Task[SumsData]):
    """What is asked, and what a reply is worth."""

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return float((trace.last_reply or "").strip() == self.data.answer)

    @vf.metric
    async def number(self, trace: vf.Trace) -> float:
        return float((trace.last_reply or "").strip().isdigit())


class SumsConfig(vf.TasksetConfig):
    """Options of the taskset."""

    below: int = 30
    """Both numbers are smaller."""


class SumsTaskset(vf.Taskset[SumsTask, SumsConfig]):
    """Every sum of two numbers below a bound, in an order that looks drawn."""

    def load(self) -> Iterator[SumsTask]:
        below = self.config.below
        for n in range(below * below):
            a, b = divmod(n * 7919 % (below * below), below)
            data = SumsData(prompt=f"What is {a} + {b}?", answer=str(a + b))
            yield SumsTask(data, self.config.task)
