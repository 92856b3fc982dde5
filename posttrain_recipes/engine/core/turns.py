"""Turns at the one worker: whose work is computed next.

What may wait for each other has a lane: the operations of a model, the samples from one set of
weights, and all the rest. The lane that has had the least time goes next, and one that comes anew
begins at the least that another has had: start-time fair queueing (Goyal et al. 1996), but that
lanes which come one after the other keep none out. So nobody waits for long, and lanes that always
have something share the time alike. A turn is an operation that trains, or a step of decoding; a
batch of samples keeps its lane between steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

J = TypeVar("J")


@dataclass(eq=False)
class Lane(Generic[J]):
    """Jobs that wait for each other, and the batch of samples that runs of them, between two of its
    turns."""

    name: Hashable
    used: float
    """Seconds of the worker, counted from those of the others when it came."""
    jobs: deque[J] = field(default_factory=deque)
    batch: Iterator[None] | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing waits or runs in it."""
        return self.batch is None and not self.jobs


class Turns(Generic[J]):
    """The lanes. Not safe for threads: its owner holds a lock.

    Args:
        ready: whether a job may run yet; the first one of a lane holds up those behind it.
    """

    def __init__(self, ready: Callable[[J], bool]) -> None:
        self._ready = ready
        self._lanes: dict[Hashable, Lane[J]] = {}
        self._used: dict[Hashable, float] = {}  # of lanes that are empty and had more than others
        self._now = 0.0  # what the lane of the last turn had used before it

    def __len__(self) -> int:
        """How many jobs wait; those in a running batch do not."""
        return sum(len(lane.jobs) for lane in self._lanes.values())

    def add(self, name: Hashable, job: J) -> None:
        """Put a job at the end of a lane. A lane called by a string, or by None, is held to what it
        used before; any other, such as the weights of a sampler, is not known once it is empty."""
        lane = self._lanes.get(name)
        if lane is None:
            before = self._used.pop(name, 0.0)
            least = min((x.used for x in self._lanes.values() if self._open(x)), default=0.0)
            lane = self._lanes[name] = Lane(name, max(self._now, before, least))
        lane.jobs.append(job)

    def remove(self, wanted: Callable[[J], bool]) -> J | None:
        """Take a waiting job out."""
        for lane in self._lanes.values():
            for job in lane.jobs:
                if wanted(job):
                    lane.jobs.remove(job)
                    return job
        return None

    @property
    def waiting(self) -> bool:
        """Whether a lane could have a turn."""
        return any(self._open(lane) for lane in self._lanes.values())

    def next(self) -> Lane[J] | None:
        """The lane whose turn it is; None where none could have one."""
        for lane in [lane for lane in self._lanes.values() if lane.empty]:
            self._leave(lane)
        lanes = [lane for lane in self._lanes.values() if self._open(lane)]
        if not lanes:
            return None
        chosen = min(lanes, key=lambda lane: lane.used)
        self._now = max(self._now, chosen.used)
        return chosen

    def presses(self, lane: Lane[J], seconds: float) -> bool:
        """Whether another lane should have its turn, `seconds` after this one's has begun."""
        limit = lane.used + seconds
        return any(
            other is not lane and other.used <= limit and self._open(other)
            for other in self._lanes.values()
        )

    def _open(self, lane: Lane[J]) -> bool:
        return lane.batch is not None or (bool(lane.jobs) and self._ready(lane.jobs[0]))

    def _leave(self, lane: Lane[J]) -> None:
        del self._lanes[lane.name]
        self._used = {name: used for name, used in self._used.items() if used > self._now}
        if lane.used > self._now and (lane.name is None or isinstance(lane.name, str)):
            self._used[lane.name] = lane.used
