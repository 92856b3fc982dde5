"""Waiting for an engine: answers, refusals, deaths and Ctrl-C, without a wait of its own."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import tinker

from posttrain_recipes import waiting, watching
from posttrain_recipes.errors import PtlError
from posttrain_recipes.waiting import EngineWaiter, Interrupts, in_thread


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "TICK", 0.001)


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


class Looks:
    """`alive()` that answers True a number of times, and does something meanwhile."""

    def __init__(self, count: int, then: Any = None) -> None:
        self.left, self.then = count, then

    def __call__(self) -> bool:
        self.left -= 1
        if self.left == 0 and self.then is not None:
            self.then()
        return self.left >= 0


# --- answers -------------------------------------------------------------------------------------


def test_the_answer_is_the_futures() -> None:
    assert EngineWaiter()(done(3)) == 3


def test_what_an_engine_says_is_told_without_what_the_sdk_puts_around_it() -> None:
    said = "cannot load base model 'a': for want of files\nand more"
    raised = tinker.RequestFailedError(
        f"Request failed: {said} for self.request_id='1-2' and expected type self.model_cls=<class "
        "'tinker.SampleResponse'>",
        request_id="1-2",
        category=tinker.types.RequestErrorCategory.User,
    )
    with pytest.raises(PtlError) as caught:
        EngineWaiter()(failed(raised))
    assert caught.value.why == said
    with pytest.raises(PtlError) as caught:
        EngineWaiter()(failed(tinker.TinkerError("Request failed: it is so")))
    assert caught.value.why == "Request failed: it is so"


def test_an_answer_may_come_after_many_looks() -> None:
    future: Future[int] = Future()
    looks = Looks(5, lambda: future.set_result(4))
    assert EngineWaiter(looks)(future) == 4
    assert looks.left == 0


def test_the_sdks_future_is_asked_for_the_one_inside() -> None:
    class ApiFuture:
        def future(self) -> Future[int]:
            return done(5)

    assert EngineWaiter()(ApiFuture()) == 5  # type: ignore[arg-type]


def test_an_answer_that_is_there_counts_even_where_the_engine_is_gone() -> None:
    assert EngineWaiter(lambda: False)(done(6)) == 6


# --- deaths --------------------------------------------------------------------------------------


def test_a_dead_engine_is_told_though_the_future_never_resolves() -> None:
    looks = Looks(3)
    with pytest.raises(PtlError, match="the engine is gone"):
        EngineWaiter(looks)(Future())
    assert looks.left == -1


def test_a_death_is_explained_by_who_knows_why() -> None:
    told = PtlError("the engine ran out of memory", hint="see engine.log")
    for future in (Future[Any](), failed(ConnectionError("refused"))):
        with pytest.raises(PtlError) as caught:
            EngineWaiter(lambda: False, explain_death=lambda: told)(future)
        assert caught.value is told


# --- refusals ------------------------------------------------------------------------------------


def test_a_refused_key_says_which_variable() -> None:
    response = httpx.Response(401, request=httpx.Request("POST", "http://x"))
    error = tinker.AuthenticationError("bad key", response=response, body=None)
    with pytest.raises(PtlError) as caught:
        EngineWaiter()(failed(error))
    assert caught.value.what == "the engine refused the API key"
    assert (caught.value.why, caught.value.hint) == ("bad key", "check TINKER_API_KEY")


def test_what_the_engine_could_not_do_is_quoted() -> None:
    with pytest.raises(PtlError) as caught:
        EngineWaiter()(failed(tinker.TinkerError("rank 999 is too large")))
    assert caught.value.what == "the engine could not do what was asked"
    assert caught.value.why == "rank 999 is too large"
    assert isinstance(caught.value.__cause__, tinker.TinkerError)


def test_a_mistake_of_ours_keeps_its_own_name() -> None:
    with pytest.raises(ZeroDivisionError):
        EngineWaiter()(failed(ZeroDivisionError()))


def test_a_time_limit_of_the_sdk_is_not_a_reason_to_wait_on() -> None:
    with pytest.raises(TimeoutError, match="of the SDK"):
        EngineWaiter()(failed(TimeoutError("of the SDK")))


# --- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_delivered_once_at_the_next_wait(number: signal.Signals) -> None:
    interrupts = Interrupts()
    wait = EngineWaiter(interrupts=interrupts)
    with interrupts.installed():
        os.kill(os.getpid(), number)
        worked = sum(range(1000))  # work between waits is not torn apart
        with pytest.raises(KeyboardInterrupt):
            wait(done(1))
        assert wait(done(2)) == 2
    assert worked == 499500
    assert interrupts.signal == number


def test_a_signal_ends_a_wait_that_has_begun() -> None:
    interrupts = Interrupts()
    looks = Looks(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with interrupts.installed(), pytest.raises(KeyboardInterrupt):
        EngineWaiter(lambda: looks() or True, interrupts)(Future())


def test_a_second_signal_does_not_wait_for_a_good_moment() -> None:
    interrupts = Interrupts()

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with interrupts.installed(), pytest.raises(KeyboardInterrupt):
        twice()


def test_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts().installed():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_leaves_the_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def work() -> None:
        with Interrupts().installed():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


# --- threads -------------------------------------------------------------------------------------


def test_a_blocking_call_is_waited_for_as_a_future_is() -> None:
    assert EngineWaiter()(in_thread(lambda: 7)) == 7


def test_what_a_blocking_call_raises_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        EngineWaiter()(in_thread(lambda: 1 // 0))


def test_a_call_that_never_returns_keeps_nothing_alive() -> None:
    began, release = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def block() -> None:
        threads.append(threading.current_thread())
        began.set()
        release.wait()

    with pytest.raises(PtlError, match="the engine is gone"):
        EngineWaiter(Looks(3))(in_thread(block))
    began.wait()
    release.set()
    assert [thread.daemon for thread in threads] == [True]


class Moody(BaseHTTPRequestHandler):
    """Answers /healthz with the status that its server is in the mood for."""

    def do_GET(self) -> None:
        self.send_response(self.server.mood if self.path == "/api/v1/healthz" else 418)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(watching, "PING_S", 0.01)
    monkeypatch.setattr(watching, "LOST_S", 0.3)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Moody) as server:
        server.mood = 200  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_server_behind_a_gateway_that_finds_nobody_is_given_up(
    moody: ThreadingHTTPServer,
) -> None:
    told: list[str] = []
    url = f"http://127.0.0.1:{moody.server_port}"
    with watching.Watch(url, "tml-key") as watch:
        moody.mood = 503  # type: ignore[attr-defined]
        wait = EngineWaiter(
            lambda: watch.alive,
            explain_death=lambda: waiting.EngineLostError("lost", why=watch.trouble),
            trouble=lambda: watch.trouble,
            tell=told.append,
        )
        with pytest.raises(waiting.EngineLostError, match=f"{url} has not answered for .* 503"):
            wait(Future())
    assert len(told) == 1
    assert "is given up after 0 s" in told[0]


@pytest.mark.parametrize("mood", [200, 401, 404])
def test_any_answer_of_the_server_itself_is_a_sign_of_life(
    moody: ThreadingHTTPServer, mood: int
) -> None:
    moody.mood = mood  # type: ignore[attr-defined]
    watch = watching.Watch(f"http://127.0.0.1:{moody.server_port}", "tml-key")
    assert watch._ask() == ""
    assert watch.alive
    assert watch.trouble is None


def hear(status: int, url: str) -> None:
    logging.getLogger("httpx").info(
        'HTTP Request: %s %s "%s %d %s"', "POST", url, "HTTP/1.1", status, "Refused"
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the one element."""
    now = [100.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    return now


HOST = "https://tinker.example"


@pytest.mark.parametrize(("status", "why"), sorted(watching.PAUSES.items()))
def test_a_pause_is_told_with_its_reason_and_given_up_after_an_hour(
    clock: list[float], status: int, why: str
) -> None:
    with watching.Pauses(HOST) as pauses:
        hear(status, f"{HOST}/api/v1/asample")
        assert pauses.trouble is None, "a moment is worth no word"
        for _ in range(3):
            clock[0] += 5
            hear(status, f"{HOST}/api/v1/asample")
        assert pauses.alive
        assert pauses.trouble is not None
        assert pauses.trouble.endswith(why)
        assert HOST in pauses.trouble
        for _ in range(3600 // 60):
            clock[0] += 60
            hear(status, f"{HOST}/api/v1/asample")
        assert not pauses.alive
        clock[0] += watching.SILENT_S
        assert pauses.trouble is None
        assert pauses.alive, "it is over"


def test_what_the_sdk_says_in_its_log_is_a_reason(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    from tinker.lib.api_future_impl import QueueState
    from tinker.lib.queue_state_logger import QueueStateLogger

    with watching.Pauses(HOST) as pauses:
        told = QueueStateLogger("model-1", "Training")
        for _ in range(3):
            told.on_queue_state_change(QueueState.PAUSED_CAPACITY, None)
            clock[0] += 30
        told.on_queue_state_change(QueueState.PAUSED_CAPACITY, None)
        clock[0] += watching.BRIEF_S + 1
        assert pauses.trouble is not None
        assert "Training for model-1 is paused. Reason: Tinker backend is running short on" in (
            pauses.trouble
        )
    assert capsys.readouterr().err == "", "it goes into the run's own words, not past them"


def test_other_requests_and_hosts_are_no_pause(clock: list[float]) -> None:
    logger = logging.getLogger("httpx")
    before = logger.level, logger.propagate
    with watching.Pauses(HOST) as pauses:
        for _ in range(3):
            hear(200, f"{HOST}/api/v1/asample")
            hear(429, "https://judge.example/v1/chat/completions")
            logging.getLogger("tinker.lib.telemetry").warning("queue full")
            clock[0] += 20
        assert pauses.trouble is None
    assert (logger.level, logger.propagate) == before
    assert logger.handlers == []
