"""Order, retries and batches, without a model: the work is plain Python."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_recipes.engine.core import futures as futures_module
from posttrain_recipes.engine.core import scheduler as scheduler_module
from posttrain_recipes.engine.core.futures import Pending
from posttrain_recipes.engine.core.scheduler import Batch, Feed, Scheduler
from posttrain_recipes.engine.wire import RequestError

WAIT_S = 20.0


def batch(
    group: str, item: Any, work: Callable[[Feed], None], after: Pending | None = None
) -> Batch:
    """A batch that does its work in one turn."""

    def run(feed: Feed) -> Iterator[None]:
        work(feed)
        yield

    return Batch(group, item, run, after)


@asynccontextmanager
async def running() -> AsyncIterator[Scheduler]:
    scheduler = Scheduler()
    scheduler.start()
    yield scheduler
    await scheduler.close()


def run(scenario: Callable[[Scheduler], Awaitable[None]]) -> None:
    async def main() -> None:
        async with running() as scheduler:
            await scenario(scheduler)

    asyncio.run(main())


async def answer(scheduler: Scheduler, pending: Pending) -> dict[str, Any]:
    got = await scheduler.wait(pending.request_id, WAIT_S)
    assert got is not None
    decoded: dict[str, Any] = json.loads(got[0])
    return decoded


def test_operations_run_by_seq_id_whatever_order_they_arrive_in() -> None:
    ran: list[int] = []

    async def scenario(scheduler: Scheduler) -> None:
        def work(seq: int) -> Callable[[], dict[str, Any]]:
            return lambda: ran.append(seq) or {"seq": seq}

        pending = [scheduler.submit_ordered("m", seq, work(seq)) for seq in (1, 4, 3, 2, 6, 5)]
        assert [(await answer(scheduler, p))["seq"] for p in pending] == [1, 4, 3, 2, 6, 5]

    run(scenario)
    assert ran == [1, 2, 3, 4, 5, 6]


def test_an_operation_waits_for_those_before_it_and_other_models_do_not() -> None:
    async def scenario(scheduler: Scheduler) -> None:
        early = scheduler.submit_ordered("m", 2, lambda: {"n": 2})
        other = scheduler.submit_ordered("other", 1, lambda: {"n": 1})
        assert await answer(scheduler, other) == {"n": 1}
        assert await scheduler.wait(early.request_id, 0.0) is None
        scheduler.submit_ordered("m", 1, lambda: {"n": 1})
        assert await answer(scheduler, early) == {"n": 2}

    run(scenario)


def test_a_request_sent_again_is_the_same_request() -> None:
    ran: list[str] = []

    async def scenario(scheduler: Scheduler) -> None:
        def ordered() -> Pending:
            return scheduler.submit_ordered("m", 1, lambda: ran.append("step") or {})

        def sampled() -> Pending:
            def work(feed: Feed) -> None:
                for ticket, _ in feed.take():
                    ran.append("sample")
                    feed.answer(ticket, {})

            note = {"sample_sequence_ids": ["a"]}
            return scheduler.submit_batched(("sampler", 7), batch("w", 1, work), note)

        first, second = ordered(), ordered()
        assert first is second
        await answer(scheduler, first)
        assert ordered() is first  # after it has run, too
        assert sampled() is (again := sampled())
        assert again.note == {"sample_sequence_ids": ["a"]}
        await answer(scheduler, again)
        assert (await answer(scheduler, again)) == {}  # a second poll gets the answer again

    run(scenario)
    assert ran == ["step", "sample"]


def test_waiting_samples_of_the_same_weights_run_as_one_batch() -> None:
    batches: list[list[int]] = []

    async def scenario(scheduler: Scheduler) -> None:
        gate = threading.Event()
        scheduler.submit("hold", lambda: gate.wait(WAIT_S) and {} or {})

        def submit_local(group: str, n: int) -> Pending:
            def work(feed: Feed) -> None:
                taken = feed.take()
                batches.append([n for _, n in taken])
                for ticket, n in taken:
                    feed.answer(ticket, RequestError(422, "odd") if n % 2 else {"n": n})
                assert feed.take() == []

            return scheduler.submit_batched((group, n), batch(group, n, work), {})

        pending = [
            submit_local("a", 0),
            submit_local("a", 1),
            submit_local("a", 2),
            submit_local("b", 10),
            submit_local("a", 4),
            submit_local("b", 12),
        ]
        gate.set()
        got = [await answer(scheduler, p) for p in pending]
        assert got[0] == {"n": 0}
        assert got[1] == {"error": "odd", "category": "user"}
        assert got[4] == {"n": 4}

    run(scenario)
    assert batches == [[0, 1, 2, 4], [10, 12]]


def test_a_batch_may_wait_for_what_comes_next() -> None:
    seen: list[Any] = []

    async def scenario(scheduler: Scheduler) -> None:
        waiting = threading.Event()

        def work(feed: Feed) -> None:
            taken = feed.take()
            seen.append(feed.wait(0.0))
            waiting.set()
            seen.append(feed.wait(WAIT_S))
            taken += feed.take()
            for ticket, n in taken:
                feed.answer(ticket, {"n": n})

        first = scheduler.submit_batched(1, batch("w", 1, work), {})
        await asyncio.to_thread(waiting.wait, WAIT_S)
        second = scheduler.submit_batched(2, batch("w", 2, work), {})
        assert [await answer(scheduler, p) for p in (first, second)] == [{"n": 1}, {"n": 2}]

    run(scenario)
    assert seen == [False, True]


def test_a_batch_that_fails_fails_its_requests_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        def work(feed: Feed) -> None:
            (ticket, _), *_ = feed.take()
            feed.answer(ticket, {"n": 0})
            raise MemoryError("too much")

        gate = threading.Event()
        scheduler.submit("hold", lambda: gate.wait(WAIT_S) and {} or {})
        pending = [scheduler.submit_batched(n, batch("w", n, work), {}) for n in range(3)]
        gate.set()
        assert await answer(scheduler, pending[0]) == {"n": 0}
        for late in pending[1:]:
            assert "MemoryError" in (await answer(scheduler, late))["error"]

    run(scenario)


def test_a_failure_is_told_and_the_worker_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        def broken() -> dict[str, Any]:
            raise ZeroDivisionError("oops")

        got = await answer(scheduler, scheduler.submit_ordered("m", 1, broken))
        assert got == {"error": "ZeroDivisionError: oops", "category": "server"}
        assert await answer(scheduler, scheduler.submit_ordered("m", 2, lambda: {"n": 2})) == {
            "n": 2
        }

    run(scenario)


def test_unknown_and_stale_requests_are_refused() -> None:
    async def scenario(scheduler: Scheduler) -> None:
        with pytest.raises(RequestError) as caught:
            await scheduler.wait("nothing", 1.0)
        assert caught.value.status == 410
        with pytest.raises(RequestError):
            scheduler.submit_ordered("m", 0, dict)

    run(scenario)


def test_what_is_queued_is_finished_on_close() -> None:
    ran: list[int] = []

    async def main() -> None:
        scheduler = Scheduler()
        scheduler.start()
        for n in range(5):
            scheduler.submit(n, lambda n=n: ran.append(n) or {})
        await scheduler.close()
        with pytest.raises(RequestError, match="shutting down"):
            scheduler.submit("late", dict)

    asyncio.run(main())
    assert ran == [0, 1, 2, 3, 4]


def gated(scheduler: Scheduler) -> threading.Event:
    """The worker waits until the event is set."""
    gate = threading.Event()
    scheduler.submit("hold", lambda: gate.wait(WAIT_S) and {} or {})
    return gate


def sample(scheduler: Scheduler, key: Any, channel: Any = None, result: Any = None) -> Pending:
    def work(feed: Feed) -> None:
        while taken := feed.take():
            for ticket, wanted in taken:
                feed.answer(ticket, wanted)

    return scheduler.submit_batched(key, batch("w", result or {}, work), {}, channel)


def test_samples_are_cancelled_in_the_queue_and_in_their_batch() -> None:
    seen: list[Any] = []

    async def scenario(scheduler: Scheduler) -> None:
        running, let_go = threading.Event(), threading.Event()

        def work(feed: Feed) -> None:
            (ticket, _), *_ = feed.take()
            running.set()
            assert let_go.wait(WAIT_S)
            seen.extend(feed.dropped())
            assert seen == [ticket]
            assert feed.dropped() == []

        first = scheduler.submit_batched("first", batch("a", 1, work), {})
        await asyncio.to_thread(running.wait, WAIT_S)
        waiting, other = sample(scheduler, "waiting"), sample(scheduler, "other")
        scheduler.cancel(waiting)
        scheduler.cancel(first)
        let_go.set()
        for pending in (first, waiting):
            assert "cancelled" in (await answer(scheduler, pending))["error"]
        assert await answer(scheduler, other) == {}
        scheduler.cancel(other)  # answered: it stays so
        assert await answer(scheduler, other) == {}

    run(scenario)
    assert len(seen) == 1


def test_what_trains_cannot_be_cancelled() -> None:
    async def scenario(scheduler: Scheduler) -> None:
        gate = gated(scheduler)
        step = scheduler.submit_ordered("m", 1, lambda: {"n": 1})
        early = scheduler.submit_ordered("m", 3, lambda: {"n": 3})
        for pending in (step, early):
            with pytest.raises(RequestError, match="only requests for samples"):
                scheduler.cancel(pending)
        gate.set()
        assert await answer(scheduler, step) == {"n": 1}

    run(scenario)


def test_a_channel_tells_what_was_answered_since() -> None:
    async def scenario(scheduler: Scheduler) -> None:
        futures = scheduler.futures
        gate = gated(scheduler)
        mine = [sample(scheduler, n, "mine") for n in range(3)]
        sample(scheduler, "theirs", "theirs")
        bad = sample(scheduler, "bad", "mine", RequestError(422, "odd"))
        poll = asyncio.create_task(futures.completions("mine", 0, WAIT_S))
        await asyncio.sleep(0)
        assert not poll.done()
        gate.set()
        found, cursor = await poll
        while len(found) < 4:
            more, cursor = await futures.completions("mine", cursor, WAIT_S)
            found += more
        assert {p.request_id for p in found} == {p.request_id for p in [*mine, bad]}
        assert [p.failed for p in found] == [p is bad for p in found]
        assert await futures.completions("mine", cursor, 0.0) == ([], cursor)
        again, _ = await futures.completions("mine", 0, 0.0)  # an answer that was lost on its way
        assert again == found
        futures.acknowledge("mine", [mine[0].request_id, "unknown"])
        futures.acknowledge("theirs", [mine[1].request_id])
        with pytest.raises(RequestError, match="does not know"):
            await scheduler.wait(mine[0].request_id, 0.0)
        assert await answer(scheduler, mine[1]) == {}

    run(scenario)


def test_answers_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futures_module, "KEEP_RETRIEVED_BYTES", 1000)

    async def scenario(scheduler: Scheduler) -> None:
        futures = scheduler.futures
        big = [sample(scheduler, n, "c", {"x": "y" * 300}) for n in range(10)]
        for pending in big:
            await answer(scheduler, pending)
        assert len(futures) == 3  # 3 x 309 bytes; those that were fetched first went
        assert sample(scheduler, 9) is big[9]
        unasked = [sample(scheduler, f"u{n}", "c") for n in range(5)]
        await asyncio.gather(*(p.done.wait() for p in unasked))
        assert len(futures) == 8
        for pending in [*big, *unasked]:
            pending.forget_at = 0.0
        futures.sweep()
        assert (len(futures), futures._channels, futures._fetched_bytes) == (0, {}, 0)

    run(scenario)


def test_a_long_run_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futures_module, "KEEP_RETRIEVED_S", -1.0)

    async def scenario(scheduler: Scheduler) -> None:
        for seq in range(1, 2001):
            await answer(scheduler, scheduler.submit_ordered("m", seq, dict))
            await answer(scheduler, sample(scheduler, seq, "c"))
        assert len(scheduler.futures) == 0
        assert scheduler.futures._by_key == {}
        assert scheduler._lines["m"].early == {}
        with pytest.raises(RequestError, match="already been run") as caught:
            scheduler.submit_ordered("m", 7, dict)
        assert caught.value.status == 410  # final; the SDK tries a 409 again for minutes

    run(scenario)


def test_queues_have_limits_but_never_refuse_what_others_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler_module, "MAX_QUEUED", 3)
    monkeypatch.setattr(scheduler_module, "MAX_EARLY", 2)

    async def scenario(scheduler: Scheduler) -> None:
        gate = gated(scheduler)
        while scheduler.depth:  # until the worker holds it
            await asyncio.sleep(0)
        early = [scheduler.submit_ordered("m", seq, dict) for seq in (3, 2)]
        with pytest.raises(RequestError, match="too many requests") as caught:
            scheduler.submit_ordered("m", 4, dict)
        assert caught.value.status == 429
        accepted = [sample(scheduler, n) for n in range(3)]
        with pytest.raises(RequestError) as caught:
            sample(scheduler, "more")
        assert caught.value.status == 429
        assert sample(scheduler, 0) is accepted[0]  # sent again, it is no new one
        first = scheduler.submit_ordered("m", 1, dict)
        gate.set()
        for pending in [*early, *accepted, first]:
            assert await answer(scheduler, pending) == {}

    run(scenario)


def test_an_operation_that_was_refused_holds_nobody_up() -> None:
    async def scenario(scheduler: Scheduler) -> None:
        later = scheduler.submit_ordered("m", 3, lambda: {"n": 3})
        scheduler.skip("m", 1)
        scheduler.skip("m", 1)  # sent again, and refused again
        scheduler.skip("m", 2)
        assert await answer(scheduler, later) == {"n": 3}
        scheduler.skip("m", 3)
        after = scheduler.submit_ordered("m", 4, lambda: {"n": 4})
        assert await answer(scheduler, after) == {"n": 4}

    run(scenario)


def test_memory_is_given_back_once_nothing_is_left_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Semaphore(0)
    monkeypatch.setattr(scheduler_module, "IDLE_S", 0.01)
    monkeypatch.setattr(scheduler_module, "release_memory", released.release)

    async def scenario(scheduler: Scheduler) -> None:
        for number in range(2):
            pending = scheduler.submit_ordered("m", number + 1, lambda: {"done": True})
            assert await answer(scheduler, pending) == {"done": True}
            assert await asyncio.to_thread(released.acquire, timeout=WAIT_S)

    run(scenario)


def steps(seen: list[str], name: str, count: int) -> Callable[[Feed], Iterator[None]]:
    """A batch that generates for so many turns, and notes each."""

    def run(feed: Feed) -> Iterator[None]:
        taken = feed.take()
        for _ in range(count):
            seen.append(name)
            yield
        for ticket, _ in taken:
            feed.answer(ticket, {})

    return run


def test_a_long_generation_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two long ones, a short one and operations of two models that come when they run."""
    ticks = itertools.count()
    # A clock of its own: that of the event loop, and of what waits for it, goes on.
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr(scheduler_module, "time", clock)
    seen: list[str] = []

    async def scenario(scheduler: Scheduler) -> None:
        gate = gated(scheduler)
        submit = scheduler.submit_batched
        pending = [submit(name, Batch(name, 1, steps(seen, name, 50)), {}) for name in ("x", "y")]
        pending.append(submit("s", Batch("short", 1, steps(seen, "short", 4)), {}))
        for model in ("a", "b"):
            work = lambda model=model: seen.append(model) or {}  # noqa: E731
            pending += [scheduler.submit_ordered(model, seq, work) for seq in (1, 2)]
        gate.set()
        for one in pending:
            assert await answer(scheduler, one) == {}

    run(scenario)
    assert {name: seen.count(name) for name in seen} == {
        "x": 50,
        "y": 50,
        "short": 4,
        "a": 2,
        "b": 2,
    }
    for name, most in (("a", 30), ("b", 30), ("short", 40)):
        assert len(seen) - 1 - seen[::-1].index(name) < most, f"{name} waited for long generations"


def test_samples_of_weights_wait_until_those_are_saved() -> None:
    seen: list[str] = []

    async def scenario(scheduler: Scheduler) -> None:
        saved = scheduler.submit_ordered("m", 2, lambda: seen.append("saved") or {})
        late = Batch("late", 1, steps(seen, "sampled", 1), after=saved)
        samples = [scheduler.submit_batched(n, late, {}) for n in range(2)]
        assert await answer(scheduler, scheduler.submit("other", dict)) == {}
        assert await answer(scheduler, sample(scheduler, "of other weights")) == {}
        assert seen == []
        scheduler.submit_ordered("m", 1, dict)
        for pending in samples:
            assert await answer(scheduler, pending) == {}

    run(scenario)
    assert seen == ["saved", "sampled"]


def test_samples_of_weights_that_will_never_be_saved_are_told(caplog: Any) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        def failed(feed: Feed) -> None:
            raise RequestError(422, "could not be saved")

        saved = scheduler.submit_ordered("m", 2, dict)
        sampled = scheduler.submit_batched(1, batch("w", 1, failed, after=saved), {})
        scheduler.forget_model("m")
        assert "unloaded" in (await answer(scheduler, saved))["error"]
        assert "could not be saved" in (await answer(scheduler, sampled))["error"]

    run(scenario)
