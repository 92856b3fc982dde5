"""What the service billed, beside what was estimated: asked, kept, shown; told where it is not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tinker.types.billing_usage_response import BillingUsageResponse

from posttrain_recipes.engines import Hosted
from posttrain_recipes.records import Checkpoint
from posttrain_recipes.reporting import billed
from posttrain_recipes.reporting.page import Pages
from posttrain_recipes.running import billing
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import Estimated, RunRecord, Store
from tests.conftest import Project, Ptl

RECIPE = """\
name: demo
model: Qwen/Qwen3-8B
engine: ENGINE
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, learning_rate: 1e-4}
"""
BEGAN = datetime(2026, 3, 1, 10, 20, tzinfo=UTC)
MINE, OTHER = "mine-1", "other-2"


def event(session: str | None, kind: str, usd: float | None, **info: Any) -> dict[str, Any]:
    return {
        "bucket_start": "2026-03-01T10:00:00Z",
        "bucket_end": "2026-03-01T11:00:00Z",
        "session_id": session,
        "estimated_cost_usd": usd,
        "event_info": {"type": kind, **info},
    }


EVENTS = [
    event(MINE, "training", 1.5, token_count=1000),
    event(MINE, "sampling_prefill", 0.25, token_count=300, cached=False),
    event(MINE, "sampling_prefill", None, token_count=40, cached=True),
    event(MINE, "sampling_sample", 0.5, token_count=200),
    event(MINE, "checkpoint", None, count=3),
    event(OTHER, "training", 99.0, token_count=9999),
    event(None, "storage", 7.0, gigabyte_hours=5.0),
]


class Rest:
    """Answers as the service does."""

    def __init__(self, *events: dict[str, Any], error: Exception | None = None) -> None:
        self.events, self.error = events, error
        self.asked: list[tuple[datetime, datetime]] = []

    def get_billing_usage(self, starting_on: datetime, ending_before: datetime) -> Future[Any]:
        self.asked.append((starting_on, ending_before))
        future: Future[Any] = Future()
        if self.error is not None:
            future.set_exception(self.error)
        else:
            future.set_result(BillingUsageResponse.model_validate({"data": list(self.events)}))
        return future


@pytest.fixture
def run(project: Project) -> RunRecord:
    made = new_record(project.plan(RECIPE.replace("ENGINE", "tinker")), "demo-1")
    made.created = BEGAN.isoformat()
    made.sessions = [MINE]
    return made


def ask(rest: Any, run: RunRecord, after: timedelta = timedelta(hours=1)) -> Any:
    return billing.ask(rest, run, BEGAN + after)


def test_what_its_sessions_used_is_added_up(run: RunRecord) -> None:
    rest = Rest(*EVENTS)
    found = ask(rest, run)
    assert (found.usd, found.train, found.prefill, found.sample) == (2.25, 1000, 340, 200)
    assert (found.unpriced, found.why) == (40, "")
    [window] = rest.asked
    assert window == tuple(datetime(2026, 3, 1, hour, tzinfo=UTC) for hour in (10, 12))


def test_a_long_run_is_asked_for_in_windows(run: RunRecord) -> None:
    rest = Rest(EVENTS[0])
    found = ask(rest, run, timedelta(days=30))
    assert len(rest.asked) == 3
    assert all(end - begin <= timedelta(days=14) for begin, end in rest.asked)
    assert [begin for begin, _ in rest.asked[1:]] == [end for _, end in rest.asked[:-1]]
    assert found.train == 3000


def test_sessions_are_known_by_checkpoints_too(run: RunRecord) -> None:
    run.sessions = []
    [stage] = run.stages
    stage.checkpoint = Checkpoint("m", f"tinker://{MINE}:train:0/weights/a", None)
    assert billing.sessions(run) == {MINE}
    stage.reused_from = "demo-0"
    assert billing.sessions(run) == set()


@pytest.mark.parametrize(
    ("url", "expected"),
    [("https://console/sessions/abc", ["abc"]), ("https://console/sessions", [])],
)
def test_a_session_is_noted_once_there_is_one(
    run: RunRecord, url: str, expected: list[str]
) -> None:
    run.sessions = []
    connection: Any = SimpleNamespace(service=SimpleNamespace(get_console_url=lambda: url))
    for _ in range(2):
        billing.note_session(run, connection)
    assert run.sessions == expected


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "no answer within 20 s"),
        (
            RuntimeError("403 no view of bills\nmore"),
            "no view of bills",
        ),
    ],
)
def test_what_is_refused_is_said(run: RunRecord, error: Exception, words: str) -> None:
    run.billed = ask(Rest(error=error), run)
    told = billed.told(run)
    assert told is not None
    assert told.startswith("not told by the service: ")
    assert words in told
    assert "\n" not in told


def test_what_is_empty_is_said(run: RunRecord) -> None:
    assert billed.told(run) is None
    run.billed = ask(Rest(EVENTS[5]), run)
    assert billed.told(run) == (
        "nothing by the service's account so far, which lags behind (asked 2026-03-01 11:20)"
    )


def test_it_stands_beside_the_estimate(run: RunRecord) -> None:
    run.stages[0].estimate = Estimated(1, 1400, usd=2.0)
    run.billed = ask(Rest(*EVENTS), run)
    assert billed.told(run) == (
        "$2.25 by the service's account, before credits and without storage ($2.00 expected): "
        "1,540 tokens, of which 40 have no price yet (asked 2026-03-01 11:20)"
    )
    run.stages[0].estimate = Estimated(1, 1400, unknown=["training"])
    assert "expected" not in str(billed.told(run))


Kept = Callable[[RunRecord], Path]


@pytest.fixture
def kept(project: Project) -> Kept:
    def keep(run: RunRecord) -> Path:
        home = project.path / ".ptl"
        run.status, run.finished = "finished", (BEGAN + timedelta(hours=2)).isoformat()
        with Store(home).open(run) as directory:
            directory.save()
        return home

    return keep


def test_show_asks_and_keeps_and_the_report_has_it(
    run: RunRecord, kept: Kept, ptl: Ptl, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, rest = kept(run), Rest(*EVENTS)

    @contextmanager
    def connect(self: Hosted, *args: Any) -> Any:
        yield SimpleNamespace(rest=rest)

    monkeypatch.setattr(Hosted, "connect", connect)
    assert "billed" not in ptl("show", "demo-1").out
    said = ptl("show", "demo-1", "--billing")
    assert (said.code, "  billed    $2.25 by the service's account" in said.out) == (0, True)
    assert rest.asked[-1][1] == datetime(2026, 3, 1, 13, tzinfo=UTC)
    assert "  billed    $2.25" in ptl("show", "demo-1").out
    [record] = Store(home).runs()
    assert record.billed is not None
    assert record.sessions == [MINE]
    page = Pages(home, record)
    assert "$2.25 by the service" in page.markdown().replace("\\", "")
    assert "$2.25 by the service" in page.html()


def test_an_engine_that_bills_nothing_is_not_asked(
    project: Project, run: RunRecord, kept: Kept, ptl: Ptl
) -> None:
    plan = project.plan(RECIPE.replace("ENGINE", "local").replace("Qwen/Qwen3-8B", "ptl/nano"))
    kept(replace(new_record(plan, "demo-2"), created=run.created))
    said = ptl("show", "demo-2", "--billing")
    assert (said.code, "which bills nothing" in said.err) == (2, True)
