"""Futures, their order, and the one thread that computes.

A POST is acknowledged at once with a request id; the work runs later on a single worker thread, and
the client polls for the result. Three rules make that right:

- A model's operations run in the order of their seq_id, whatever order they arrive in: a chunked
  forward_backward arrives out of order, its first chunk last.
- A POST that is sent again (same model and seq_id, or same sampler and seq_id) is the same request.
- Requests for samples that wait for the same weights run as one batch.

All methods but the worker's run on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from posttrain_recipes.engine.wire import JSON, RequestError

log = logging.getLogger(__name__)

KEEP_RETRIEVED_S = 120.0  # a poll whose answer was lost comes again
KEEP_S = 3600.0  # an answer nobody asked for


class Encodable(Protocol):
    """A result that knows its bytes and their media type."""

    def encode(self) -> tuple[bytes, str]:
        """(body, media type)."""
        ...


Work = Callable[[], Encodable | dict[str, Any]]


@dataclass(eq=False)
class Pending:
    """A request that was accepted. `answer` is (body, media type) once `done` is set."""

    key: Hashable
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    note: dict[str, Any] = field(default_factory=dict)  # sent with the acknowledgement
    answer: tuple[bytes, str] | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    expires: float = float("inf")


@dataclass(eq=False)
class Batch:
    """What a request for samples adds to a batch: requests with equal `group` may run together.

    `run` answers what a `Feed` gives, until it has no more.
    """

    group: Hashable
    item: Any
    run: Callable[[Feed], None]


@dataclass(eq=False)
class _Job:
    pending: Pending
    work: Work | None = None
    batch: Batch | None = None


@dataclass
class _Line:
    """A model's queue: the next seq_id to run, and those that came before their turn."""

    next_seq: int = 1
    early: dict[int, _Job] = field(default_factory=dict)


class Feed:
    """Gives a batch its requests: those that wait for it, and those that arrive while it runs."""

    def __init__(self, scheduler: Scheduler, jobs: list[_Job]) -> None:
        self._scheduler, self._new = scheduler, jobs
        self._open: list[_Job] = []

    def take(self) -> list[tuple[Any, Any]]:
        """(ticket, item) of requests that have come since. None while other work waits, so that a
        stream of requests for samples does not keep training out."""
        assert self._new or self._open
        new, self._new = self._new or self._scheduler._more(self._group), []
        self._open += new
        return [(job, job.batch.item) for job in new if job.batch is not None]

    @property
    def _group(self) -> Hashable:
        batch = (self._new or self._open)[0].batch
        return None if batch is None else batch.group

    def answer(self, ticket: Any, result: Any) -> None:
        """Answer one of the requests given."""
        self._open.remove(ticket)
        self._scheduler._finish([(ticket, result)])

    def fail(self, error: Exception) -> None:
        """Answer all that are left with an error."""
        self._scheduler._finish([(job, error) for job in self._open + self._new])


class Scheduler:
    """See the module's first lines. `start` on the event loop before use; `close` at the end."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._by_key: dict[Hashable, Pending] = {}
        self._by_id: OrderedDict[str, Pending] = OrderedDict()
        self._queue: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine-worker", daemon=True)

    def start(self, first: Callable[[], object] | None = None) -> None:
        """Start the worker; `first`, if given, runs on it before any request."""
        self._loop = asyncio.get_running_loop()
        if first is not None:
            self._queue.append(_Job(Pending(None), work=lambda: {"done": first() is None}))
        self._thread.start()

    async def close(self, grace_s: float = 10.0) -> None:
        """Let polls answer, finish what is queued within `grace_s` seconds, and stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, grace_s)

    def release_polls(self) -> None:
        """Have every waiting poll answer now: the engine is going away."""
        for pending in self._by_id.values():
            pending.done.set()

    # Accepting -------------------------------------------------------------------------------

    def submit(self, key: Hashable, work: Work) -> Pending:
        """Accept `work`, to run when its turn comes. The same `key` again is the same request."""
        return self._by_key.get(key) or self._accept(_Job(Pending(key), work=work))

    def submit_ordered(self, model_id: str, seq_id: int, work: Work) -> Pending:
        """Accept the `seq_id`-th operation of a model. It runs after all those before it."""
        key = (model_id, seq_id)
        if key in self._by_key:
            return self._by_key[key]
        line = self._lines.setdefault(model_id, _Line())
        if seq_id < line.next_seq:
            raise RequestError(409 if seq_id > 0 else 400, f"seq_id {seq_id} has already been run")
        job = _Job(Pending(key), work=work)
        self._remember(job.pending)
        line.early[seq_id] = job
        while line.next_seq in line.early:
            self._enqueue(line.early.pop(line.next_seq))
            line.next_seq += 1
        return job.pending

    def submit_batched(self, key: Hashable, batch: Batch, note: dict[str, Any]) -> Pending:
        """Accept a request for samples. `note` goes out with the acknowledgement."""
        if key in self._by_key:
            return self._by_key[key]
        return self._accept(_Job(Pending(key, note=note), batch=batch))

    def forget_model(self, model_id: str) -> None:
        """Drop a model's queue. What already waits for its turn fails."""
        line = self._lines.pop(model_id, None)
        for job in line.early.values() if line else ():
            self._finish([(job, RequestError(404, f"model {model_id} was unloaded"))])

    def idle(self) -> bool:
        """Whether nothing waits for the worker."""
        return not self._queue

    def _accept(self, job: _Job) -> Pending:
        self._remember(job.pending)
        self._enqueue(job)
        return job.pending

    def _remember(self, pending: Pending) -> None:
        self._expire()
        self._by_key[pending.key] = self._by_id[pending.request_id] = pending

    def _enqueue(self, job: _Job) -> None:
        with self._wake:
            if self._closing:
                raise RequestError(503, "the engine is shutting down")
            self._queue.append(job)
            self._wake.notify()

    def _expire(self) -> None:
        """Forget old answers, oldest request first. Bounded work a call, amortized."""
        now = time.monotonic()
        for request_id in list(self._first(4)):
            pending = self._by_id[request_id]
            if pending.expires < now:
                del self._by_id[request_id]
                self._by_key.pop(pending.key, None)
            else:
                self._by_id.move_to_end(request_id)

    def _first(self, count: int) -> Sequence[str]:
        ids = iter(self._by_id)
        return [request_id for _, request_id in zip(range(count), ids, strict=False)]

    # Answering -------------------------------------------------------------------------------

    async def wait(self, request_id: str, timeout_s: float) -> tuple[bytes, str] | None:
        """The answer to a request, or None if it is not there within `timeout_s` seconds."""
        pending = self._by_id.get(request_id)
        if pending is None:
            raise RequestError(
                410,
                "this engine does not know the request: it was answered long ago, or the "
                "engine was restarted; send it again",
            )
        try:
            await asyncio.wait_for(pending.done.wait(), timeout_s)
        except TimeoutError:
            return None
        if pending.answer is not None:
            pending.expires = time.monotonic() + KEEP_RETRIEVED_S
        return pending.answer

    def _finish(self, results: Sequence[tuple[_Job, Any]]) -> None:
        """Encode and publish results; called on the worker, or on the loop for dropped jobs."""
        answers = [(job.pending, _encode(result)) for job, result in results]

        def publish() -> None:
            for pending, answer in answers:
                pending.answer = answer
                pending.expires = time.monotonic() + KEEP_S
                pending.done.set()

        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(publish)

    # Working ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._next()) is not None:
            if job.batch is None:
                self._finish([(job, _compute(job))])
                continue
            feed = Feed(self, [job, *self._gather(job.batch.group)])
            try:
                job.batch.run(feed)
            except Exception as error:  # whatever it is, the worker has to go on serving
                feed.fail(error)

    def _next(self) -> _Job | None:
        """The next job, waiting for it. None: stop."""
        with self._wake:
            while not self._queue:
                if self._closing:
                    return None
                self._wake.wait()
            return self._queue.popleft()

    def _gather(self, group: Hashable) -> list[_Job]:
        """All waiting requests for samples of `group`. They overtake what waits before them, which
        changes nothing: weights that are sampled from never change."""
        with self._wake:
            mine = [job for job in self._queue if job.batch and job.batch.group == group]
            if mine:
                self._queue = deque(job for job in self._queue if job not in mine)
        return mine

    def _more(self, group: Hashable) -> list[_Job]:
        """The waiting requests for samples of `group` that nothing else waits before."""
        if not self._queue:
            return []
        taken = []
        with self._wake:
            while self._queue and (batch := self._queue[0].batch) and batch.group == group:
                taken.append(self._queue.popleft())
        return taken


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
