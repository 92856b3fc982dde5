"""Order, retries and batches, without a model: the work is plain Python."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from posttrain_recipes.engine.scheduler import Batch, Feed, Pending, Scheduler
from posttrain_recipes.engine.wire import RequestError

WAIT_S = 20.0


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

            batch = Batch("w", 1, work)
            return scheduler.submit_batched(("sampler", 7), batch, {"sample_sequence_ids": ["a"]})

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

        def ask(group: str, n: int) -> Pending:
            def work(feed: Feed) -> None:
                taken = feed.take()
                batches.append([n for _, n in taken])
                for ticket, n in taken:
                    feed.answer(ticket, RequestError(422, "odd") if n % 2 else {"n": n})
                assert feed.take() == []

            return scheduler.submit_batched((group, n), Batch(group, n, work), {})

        pending = [ask("a", 0), ask("a", 1), ask("a", 2), ask("b", 10), ask("a", 4), ask("b", 12)]
        gate.set()
        got = [await answer(scheduler, p) for p in pending]
        assert got[0] == {"n": 0}
        assert got[1] == {"error": "odd", "category": "user"}
        assert got[4] == {"n": 4}

    run(scenario)
    assert batches == [[0, 1, 2, 4], [10, 12]]


def test_a_batch_that_fails_fails_its_requests_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(scheduler: Scheduler) -> None:
        def work(feed: Feed) -> None:
            (ticket, _), *_ = feed.take()
            feed.answer(ticket, {"n": 0})
            raise MemoryError("too much")

        gate = threading.Event()
        scheduler.submit("hold", lambda: gate.wait(WAIT_S) and {} or {})
        pending = [scheduler.submit_batched(n, Batch("w", n, work), {}) for n in range(3)]
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
