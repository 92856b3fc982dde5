"""A small LRU cache of values derived from objects, such as merged weights of an adapter."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Derived(Generic[T]):
    """The values of the last few owners, one state of each.

    An owner is held weakly and known by itself: an address is taken again once its owner has died,
    and a strong reference would keep the weights of a session that has ended.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[tuple[weakref.ref[object], Hashable, T]] = []  # last used last

    def of(self, owner: object, state: Hashable, make: Callable[[], T]) -> T:
        """The value of `owner` in this `state`: the one kept, or what `make` returns."""
        found = [e for e in self._kept if e[0]() is owner and e[1] == state]
        others = [e for e in self._kept if e[0]() is not None and e[0]() is not owner]
        if not found:
            # Room first: two of a large model's would not fit beside each other.
            others = self._kept = others[max(0, len(others) - self._size + 1) :]
            found = [(weakref.ref(owner, self._forget), state, make())]
        self._kept = [*others, *found]
        return found[0][2]

    def _forget(self, dead: weakref.ref[object]) -> None:
        self._kept = [entry for entry in self._kept if entry[0] is not dead]
