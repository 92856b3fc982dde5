"""Futures: accepted requests and their answers, kept until clients have fetched them.

A client posts, is told a request id, and polls for the answer. An answer is kept for a while after
it was fetched, because the response may have been lost on its way and the poll comes again; one
that nobody fetches is kept longer. Both are bounded, in time and the fetched ones in bytes, so that
a long run does not fill the memory.

All methods run on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from posttrain_recipes.engine.wire import RequestError

KEEP_RETRIEVED_S = 120.0  # a poll whose answer was lost comes again
KEEP_RETRIEVED_BYTES = 256 << 20
KEEP_S = 3600.0  # an answer nobody asked for


@dataclass(eq=False)
class Pending:
    """A request that was accepted. `answer` is (body, media type) once `done` is set; for a `local`
    one, of this process, it is the result itself."""

    key: Hashable
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    note: dict[str, Any] = field(default_factory=dict)  # sent with the acknowledgement
    channel: Hashable = None  # the sampler in whose list of completions it appears
    local: bool = False
    kind: str = ""  # the operation, for the metrics
    content: bytes | None = None  # a digest of what was asked; None for this process's own
    tokens: int = 0  # that it trains on, for the metrics
    answer: Any = None
    failed: bool = False
    finished: bool = False  # computed, if not told yet: what comes after it may run
    cancellable: bool = False
    cancelled: bool = False
    accepted: float = field(default_factory=time.monotonic)
    number: int = 0  # in the order of completion
    forget_at: float = float("inf")
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def size(self) -> int:
        """The bytes of its answer."""
        return len(self.answer[0]) if self.answer is not None and not self.local else 0

    def must_be(self, content: bytes) -> None:
        """Hold a request that came again to what it was.

        Args:
            content: a digest of the operation and its body.

        Raises:
            RequestError: 409, it is another one under the same number, and was not accepted.
        """
        if self.content is None:
            self.content = content
        elif self.content != content:
            raise RequestError(
                409,
                "another request was accepted under this seq_id: what is sent again has to be the "
                "same, and a new request takes the next number",
            )


class Futures:
    """The accepted requests by id and by key, with their answers."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Pending] = {}
        self._by_id: dict[str, Pending] = {}
        self._channels: dict[Hashable, dict[str, Pending]] = {}
        self._changed: dict[Hashable, asyncio.Event] = {}
        self._answered: OrderedDict[str, Pending] = OrderedDict()  # and not fetched
        self._fetched: OrderedDict[str, Pending] = OrderedDict()
        self._fetched_bytes = 0
        self._count = 0
        self._released = False

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, pending: Pending) -> None:
        """Remember a request."""
        self.sweep()
        self._by_key[pending.key] = self._by_id[pending.request_id] = pending
        if pending.channel is not None:
            self._channels.setdefault(pending.channel, {})[pending.request_id] = pending

    def same(self, key: Hashable) -> Pending | None:
        """The request with this key, if it is remembered."""
        return self._by_key.get(key)

    def get(self, request_id: str) -> Pending:
        """The request of this id. Raises RequestError 410."""
        pending = self._by_id.get(request_id)
        if pending is None:
            raise RequestError(
                410,
                "this engine does not know the request: it was answered long ago, or the "
                "engine was restarted; send it again",
            )
        return pending

    def publish(self, pending: Pending, answer: Any, failed: bool) -> None:
        """Answer a request; waiting polls return."""
        self._count += 1
        pending.answer, pending.failed, pending.number = answer, failed, self._count
        pending.done.set()
        if self._by_id.get(pending.request_id) is pending:
            pending.forget_at = time.monotonic() + KEEP_S
            self._answered[pending.request_id] = pending
            if (changed := self._changed.pop(pending.channel, None)) is not None:
                changed.set()

    async def wait(self, request_id: str, timeout_s: float) -> tuple[bytes, str] | None:
        """The answer to a request, or None if it is not there within `timeout_s` seconds."""
        pending = self.get(request_id)
        try:
            await asyncio.wait_for(pending.done.wait(), timeout_s)
        except TimeoutError:
            return None
        if pending.answer is None:  # the polls were released
            return None
        if self._answered.pop(request_id, None) is not None:
            pending.forget_at = time.monotonic() + KEEP_RETRIEVED_S
            self._fetched[request_id] = pending
            self._fetched_bytes += pending.size
            self.sweep()
        answer: tuple[bytes, str] = pending.answer
        return answer

    async def completions(
        self, channel: Hashable, cursor: int, timeout_s: float
    ) -> tuple[list[Pending], int]:
        """What has been answered in a channel since `cursor`, waiting for something, and the next
        cursor."""
        deadline = time.monotonic() + timeout_s
        while True:
            members = self._channels.get(channel, {})
            found = [p for p in members.values() if p.answer is not None and p.number > cursor]
            left = deadline - time.monotonic()
            if found or left <= 0 or self._released:
                found.sort(key=lambda p: p.number)
                return found, found[-1].number if found else cursor
            changed = self._changed.setdefault(channel, asyncio.Event())
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                continue

    def acknowledge(self, channel: Hashable, request_ids: Iterable[str]) -> None:
        """Forget requests of a channel: their client has the answers."""
        for request_id in request_ids:
            pending = self._channels.get(channel, {}).get(request_id)
            if pending is not None and pending.answer is not None:
                self._forget(pending)

    def release(self) -> None:
        """Have every waiting poll return now: the engine is going away."""
        self._released = True
        for pending in self._by_id.values():
            pending.done.set()
        for changed in self._changed.values():
            changed.set()

    def unfetched_since(self, moment: float) -> bool:
        """Whether an answer given after `moment` (monotonic) has not been fetched yet."""
        newest = next(reversed(self._answered.values()), None)
        return newest is not None and newest.forget_at - KEEP_S > moment

    def sweep(self) -> None:
        """Forget what has been kept for long enough."""
        now = time.monotonic()
        for line in (self._answered, self._fetched):
            while line and next(iter(line.values())).forget_at < now:
                self._forget(next(iter(line.values())))
        while self._fetched_bytes > KEEP_RETRIEVED_BYTES:
            self._forget(next(iter(self._fetched.values())))

    def _forget(self, pending: Pending) -> None:
        self._by_id.pop(pending.request_id, None)
        self._by_key.pop(pending.key, None)
        self._answered.pop(pending.request_id, None)
        if self._fetched.pop(pending.request_id, None) is not None:
            self._fetched_bytes -= pending.size
        if (members := self._channels.get(pending.channel)) is not None:
            members.pop(pending.request_id, None)
            if not members:
                del self._channels[pending.channel]
