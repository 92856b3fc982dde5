"""The scheduler: queues of accepted requests, and the one worker thread that computes them.

A POST is acknowledged at once with a request id; the work runs later on a single worker thread, and
the client polls for the result. Four rules make that right:

- A model's operations run in the order of their seq_id, whatever order they arrive in: a chunked
  forward_backward arrives out of order, its first chunk last.
- A POST that is sent again (same model and seq_id, or same sampler and seq_id) is the same request.
- Requests for samples that wait for the same weights run as one batch.
- Models, batches of different weights and all other work take turns (`turns`): a batch gives way
  between two tokens, so that no long generation keeps anybody out.

A request for samples can be cancelled: it leaves its queue, or its batch between two tokens.

All methods but the worker's run on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain_recipes.engine.core.futures import Futures, Pending
from posttrain_recipes.engine.core.turns import Lane, Turns
from posttrain_recipes.engine.wire import JSON, RequestError

log = logging.getLogger(__name__)

MAX_QUEUED = 8192  # requests that wait for the worker; one client of the SDK sends up to 2000
MAX_EARLY = 4096  # operations of one model that wait for those before them

IDLE_S = 2.0
"""Seconds without work after which freed memory is given back to the system."""

Work = Callable[[], Any]
"""Returns a dict, or what has `encode() -> (body, media type)`; anything for this process's own."""


@dataclass(eq=False)
class Batch:
    """A sample request and the batch that it may join: requests with equal `group` run together.

    `item` is the request itself. `run` answers all that a `Feed` gives, until it has no more, and
    yields where other work may have its turn. With `after`, it does not run before that is done.
    """

    group: Hashable
    item: Any
    run: Callable[[Feed], Iterator[None]]
    after: Pending | None = None


@dataclass(eq=False)
class _Job:
    pending: Pending
    work: Work | None = None
    batch: Batch | None = None

    @property
    def ready(self) -> bool:
        """Whether what it comes after is done."""
        return self.batch is None or self.batch.after is None or self.batch.after.finished


@dataclass
class _Line:
    """A model's queue: the next seq_id to run, and those that came before their turn."""

    next_seq: int = 1
    early: dict[int, _Job] = field(default_factory=dict)


class Feed:
    """The requests of a running batch: those that waited for it, and those that arrive
    meanwhile."""

    def __init__(self, scheduler: Scheduler, lane: Lane[_Job], first: _Job) -> None:
        self._scheduler, self._lane, self._first = scheduler, lane, [first]
        self._open: list[_Job] = []

    def take(self) -> list[tuple[Any, Any]]:
        """(ticket, item) of requests that have come since the last call."""
        new = self._first + self._scheduler._take(self._lane)
        self._first = []
        self._open += new
        return [(job, job.batch.item) for job in new if job.batch is not None]

    def wait(self, seconds: float) -> bool:
        """Whether something comes to wait for the worker within so many seconds."""
        return self._scheduler._wait_beside(self._lane, seconds)

    def pressed(self) -> bool:
        """Whether the batch should give way now: others wait who had no more time than it."""
        return self._scheduler._presses(self._lane)

    def dropped(self) -> list[Any]:
        """The tickets of requests given that were cancelled since, which need no answer."""
        gone = [job for job in self._open if job.pending.cancelled]
        if gone:
            self._open = [job for job in self._open if not job.pending.cancelled]
            self._scheduler._finish([(job, _cancelled()) for job in gone])
        return gone

    def answer(self, ticket: Any, result: Any) -> None:
        """Answer one of the requests given."""
        self._open.remove(ticket)
        self._scheduler._finish([(ticket, result)])

    def fail(self, error: Exception) -> None:
        """Answer all that are left with an error."""
        self.take()
        self._scheduler._finish([(job, error) for job in self._open])


Observer = Callable[[Pending, Any, float], None]


class Scheduler:
    """See the module's first lines. `start` on the event loop before use; `close` at the end.

    `observe` is called on the worker with each request, its result and the seconds it took, or 0
    for one that was answered within a batch.
    """

    def __init__(self, observe: Observer | None = None) -> None:
        self.futures = Futures()
        self._observe = observe
        self._lines: dict[str, _Line] = {}
        self._turns: Turns[_Job] = Turns(lambda job: job.ready)
        self._turn_began = 0.0
        self._busy = False
        self._wake = threading.Condition()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine-worker", daemon=True)

    def start(self, first: Callable[[], object] | None = None) -> None:
        """Start the worker; `first`, if given, runs on it before any request."""
        self._loop = asyncio.get_running_loop()
        if first is not None:
            self._turns.add(None, _Job(Pending(None), work=lambda: {"done": first() is None}))
        self._thread.start()

    def refuse_new(self) -> None:
        """Take no new requests from now on; what is queued is finished."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    async def close(self, grace_s: float = 10.0) -> None:
        """Finish what is queued within `grace_s` seconds, and stop."""
        self.refuse_new()
        await asyncio.to_thread(self._thread.join, grace_s)

    # Accepting -------------------------------------------------------------------------------

    def submit(self, key: Hashable, work: Work, model_id: str | None = None) -> Pending:
        """Accept `work`, to run when its turn comes. The same `key` again is the same request. Of a
        model, it runs before the operations of it that are accepted later."""
        return self.futures.same(key) or self._accept(_Job(Pending(key), work=work), model_id)

    def submit_ordered(self, model_id: str, seq_id: int, work: Work) -> Pending:
        """Accept the `seq_id`-th operation of a model. It runs after all those before it.

        Raises RequestError 400 or 410 for a seq_id that has been run and forgotten, 429 where too
        much waits, 503 while shutting down.
        """
        key = (model_id, seq_id)
        if (known := self.futures.same(key)) is not None:
            return known
        line = self._lines.setdefault(model_id, _Line())
        if seq_id < line.next_seq:
            raise RequestError(410 if seq_id > 0 else 400, f"seq_id {seq_id} has already been run")
        # The one that the others wait for is always taken: refusing it would hold them up.
        self._check_room(spare=seq_id == line.next_seq, early=len(line.early))
        job = _Job(Pending(key), work=work)
        self.futures.add(job.pending)
        line.early[seq_id] = job
        while line.next_seq in line.early:
            self._enqueue(line.early.pop(line.next_seq), model_id)
            line.next_seq += 1
        return job.pending

    def accepted(self, model_id: str) -> int:
        """The highest seq_id of a model's operations that were accepted."""
        line = self._lines.get(model_id, _Line())
        return max([line.next_seq - 1, *list(line.early)])

    def skip(self, model_id: str, seq_id: int) -> None:
        """A model's `seq_id`-th operation was refused: those after it do not wait for it."""
        line = self._lines.setdefault(model_id, _Line())
        if seq_id >= line.next_seq and seq_id not in line.early and len(line.early) < MAX_EARLY:
            self.submit_ordered(model_id, seq_id, dict)

    def submit_batched(
        self, key: Hashable, batch: Batch, note: dict[str, Any], channel: Hashable = None
    ) -> Pending:
        """Accept a request for samples. `note` goes out with the acknowledgement; its completion is
        told in `channel`. Raises RequestError 429 where too much waits."""
        if (known := self.futures.same(key)) is not None:
            return known
        self._check_room()
        pending = Pending(key, note=note, channel=channel, cancellable=True)
        return self._accept(_Job(pending, batch=batch), ("samples", batch.group))

    def submit_local(self, batch: Batch | None = None, work: Work | None = None) -> Pending:
        """Accept a request of this process itself: its answer is the result or the exception, not
        encoded, and only the caller keeps it. Raises RequestError 429 as above, 503 while shutting
        down."""
        self._check_room()
        pending = Pending(object(), local=True, cancellable=batch is not None)
        lane = None if batch is None else ("samples", batch.group)
        self._enqueue(_Job(pending, work=work, batch=batch), lane)
        return pending

    def cancel(self, pending: Pending) -> None:
        """Cancel a request for samples, waiting or running; one that is answered stays so.

        Raises RequestError 422 for any other: an operation that trains cannot be taken back.
        """
        if not pending.cancellable:
            raise RequestError(422, "only requests for samples can be cancelled")
        with self._wake:
            waiting = self._turns.remove(lambda job: job.pending is pending)
        if waiting is not None:
            self._finish([(waiting, _cancelled())])
        else:
            pending.cancelled = True  # its batch lets it go, if it has not been answered

    def forget_model(self, model_id: str) -> None:
        """Drop a model's queue. What already waits for its turn fails."""
        line = self._lines.pop(model_id, None)
        for job in line.early.values() if line else ():
            self._finish([(job, RequestError(404, f"model {model_id} was unloaded"))])

    @property
    def depth(self) -> int:
        """How many requests wait for the worker."""
        with self._wake:
            return len(self._turns)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits for the worker."""
        with self._wake:
            return not self._busy and not self._turns.waiting

    def _check_room(self, spare: bool = False, early: int = 0) -> None:
        if self._closing:
            raise RequestError(503, "the engine is shutting down")
        if not spare and (self.depth >= MAX_QUEUED or early >= MAX_EARLY):
            raise RequestError(429, "too many requests wait for this engine: send it again later")

    def _accept(self, job: _Job, lane: Hashable) -> Pending:
        self.futures.add(job.pending)
        self._enqueue(job, lane)
        return job.pending

    def _enqueue(self, job: _Job, lane: Hashable) -> None:
        with self._wake:
            if self._closing:
                raise RequestError(503, "the engine is shutting down")
            self._turns.add(lane, job)
            self._wake.notify()

    # Answering -------------------------------------------------------------------------------

    async def wait(self, request_id: str, timeout_s: float) -> tuple[bytes, str] | None:
        """The answer to a request, or None if it is not there within `timeout_s` seconds."""
        return await self.futures.wait(request_id, timeout_s)

    def release_polls(self) -> None:
        """Have every waiting poll answer now: the engine is going away."""
        self.futures.release()

    def _finish(self, results: Sequence[tuple[_Job, Any]], seconds: float = 0.0) -> None:
        """Encode and publish results; called on the worker, or on the loop for dropped jobs."""
        for job, result in results:
            if self._observe is not None:
                self._observe(job.pending, result, seconds)
        answers = [
            (job.pending, result if job.pending.local else _encode(result), result)
            for job, result in results
        ]
        with self._wake:
            for job, _ in results:
                job.pending.finished = True
            self._wake.notify()

        def publish() -> None:
            for pending, answer, result in answers:
                self.futures.publish(pending, answer, isinstance(result, Exception))

        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(publish)

    # Working ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while (lane := self._next()) is not None:
            self._turn_began = time.monotonic()
            self._turn(lane)
            with self._wake:
                lane.used += time.monotonic() - self._turn_began
                self._busy = False

    def _turn(self, lane: Lane[_Job]) -> None:
        if lane.batch is None:
            taken = self._take(lane, 1)
            if not taken:  # it was cancelled just now
                return
            job = taken[0]
            if job.batch is None:
                result = _compute(job)
                self._finish([(job, result)], time.monotonic() - self._turn_began)
                return
            lane.batch = self._serve(job.batch, Feed(self, lane, job))
        if next(lane.batch, lane) is lane:  # it has answered all
            lane.batch = None

    def _serve(self, batch: Batch, feed: Feed) -> Iterator[None]:
        """Run a batch of samples, a turn at a time."""
        try:
            yield from batch.run(feed)
        except Exception as error:  # whatever it is, the worker has to go on serving
            log.error("a batch of samples failed", exc_info=error)
            feed.fail(error)

    def _next(self) -> Lane[_Job] | None:
        """The lane whose turn it is, waiting for one. None: stop."""
        if not self._wait(IDLE_S):
            release_memory()
            self._wait(None)
        with self._wake:
            lane = self._turns.next()
            self._busy = lane is not None
            return lane

    def _wait(self, seconds: float | None) -> bool:
        """Whether there is something to do, or an end of it, within so many seconds."""
        with self._wake:
            return self._wake.wait_for(lambda: self._turns.waiting or self._closing, seconds)

    def _wait_beside(self, lane: Lane[_Job], seconds: float) -> bool:
        """Whether a job comes within so many seconds into a running batch's lane, or any other."""

        with self._wake:
            return self._wake.wait_for(
                lambda: bool(lane.jobs) or self._pressed(lane) or self._closing, seconds
            )

    def _presses(self, lane: Lane[_Job]) -> bool:
        with self._wake:
            return self._pressed(lane)

    def _pressed(self, lane: Lane[_Job]) -> bool:
        return self._turns.presses(lane, time.monotonic() - self._turn_began)

    def _take(self, lane: Lane[_Job], most: int | None = None) -> list[_Job]:
        """Take the first jobs of a lane out of it; all where no number is given."""
        with self._wake:
            count = len(lane.jobs) if most is None else min(most, len(lane.jobs))
            return [lane.jobs.popleft() for _ in range(count)]


def release_memory() -> None:
    """Give what the C library keeps of freed tensors back to the system, where it is glibc.

    Long batches leave hundreds of megabytes behind; giving them back takes milliseconds, which
    nobody waits for.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _cancelled() -> RequestError:
    return RequestError(410, "the request was cancelled")


def _compute(job: _Job) -> Any:
    assert job.work is not None
    try:
        return job.work()
    except Exception as error:  # as above
        return error


def _encode(result: Any) -> tuple[bytes, str]:
    if isinstance(result, RequestError):
        return json.dumps({"error": str(result), "category": "user"}).encode(), JSON
    if isinstance(result, Exception):
        log.error("a request failed", exc_info=result)
        message = f"{type(result).__name__}: {result}"
        return json.dumps({"error": message, "category": "server"}).encode(), JSON
    if isinstance(result, dict):
        return json.dumps(result).encode(), JSON
    body: tuple[bytes, str] = result.encode()
    return body
