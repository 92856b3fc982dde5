"""Many items that are made as they are asked for, by their place: none of them is held.

What is wrong with an item shows when it is made. It is raised then, or the item is left out, told
and counted, as whoever opened them says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar, overload

from posttrain_recipes.errors import UsageError

log = logging.getLogger(__name__)
_TOLD = 10
"""Items that are left out and named; the others are only counted."""

Item = TypeVar("Item")
Made = TypeVar("Made")


def _none(error: UsageError) -> bool:
    return False


class Streamed(Sequence[Item], Generic[Item]):
    """A sequence whose items are made whenever they are asked for.

    `items[place]` raises the `UsageError` of an item that cannot be used. Iteration, slices and
    `chosen` leave those out that may be, and raise it of the others.

    Args:
        count: how many there are, those that cannot be used among them.
        make: (place) -> the item. Raises `UsageError`, which names where it was read.
        size: (place) -> about how large the item is, without making it.
        leaves_out: whether an item is left out for what `make` raised.
        left_out: the places of items that were left out, to be added to.
    """

    def __init__(
        self,
        count: int,
        make: Callable[[int], Item],
        size: Callable[[int], int],
        *,
        leaves_out: Callable[[UsageError], bool] = _none,
        left_out: set[int] | None = None,
    ) -> None:
        self._count = count
        self._make = make
        self.size = size
        self._leaves_out = leaves_out
        self.left_out = set[int]() if left_out is None else left_out
        """Places that were asked for and left out, each once however often it was asked for."""

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return self.chosen(range(self._count)[place])
        return self._make(place if 0 <= place < self._count else range(self._count)[place])

    def __iter__(self) -> Iterator[Item]:
        for place in range(self._count):
            yield from self.chosen((place,))

    def chosen(self, places: Iterable[int]) -> list[Item]:
        """The items at these places, in their order, without those that are left out."""
        made = []
        for place in places:
            try:
                made.append(self._make(place))
            except UsageError as error:
                if not self._leaves_out(error):
                    raise
                if place not in self.left_out:
                    self.left_out.add(place)
                    if len(self.left_out) <= _TOLD:
                        log.warning("%s; it is left out", error.what)
        return made

    def tried(self, places: Iterable[int]) -> Iterator[Item]:
        """The items at these places that can be used; of the others nothing is told."""
        for place in places:
            with suppress(UsageError):
                yield self._make(place)

    def at(self, places: Sequence[int]) -> Streamed[Item]:
        """Those at these places, in this order."""
        return Streamed(
            len(places),
            lambda place: self._make(int(places[place])),
            lambda place: self.size(int(places[place])),
            leaves_out=self._leaves_out,
        )

    def map(self, make: Callable[[Item], Made]) -> Streamed[Made]:
        """What `make` makes of each; may raise `UsageError`. What is left out is counted here."""
        return Streamed(
            self._count,
            lambda place: make(self._make(place)),
            self.size,
            leaves_out=self._leaves_out,
            left_out=self.left_out,
        )

    def leaving_out(self, leaves_out: Callable[[UsageError], bool]) -> Streamed[Item]:
        """The same, of which those are left out too for whose error this is true."""
        before = self._leaves_out
        return Streamed(
            self._count,
            self._make,
            self.size,
            leaves_out=lambda error: before(error) or leaves_out(error),
            left_out=self.left_out,
        )
