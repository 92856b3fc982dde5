"""What hosted Tinker says that it billed for a run, by the sessions in which the run asked it.

Usage is told by the hour, and priced as the service's books are closed: what is asked as a run ends
may lack its last hour, and `ptl show RUN --billing` asks again. Storage is of no session, so that
it is not in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import TimeoutError
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes import private, registry
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.plugin import Connection
from posttrain_recipes.shown import redact
from posttrain_recipes.store import RunRecord, Store
from posttrain_recipes.waiting import explain
from posttrain_recipes.workload import Billed

if TYPE_CHECKING:
    import tinker

ANSWER_S = 20.0
WINDOW = timedelta(days=14)
"""The longest that is asked for at a time."""
HOUR = timedelta(hours=1)
KINDS = {"training": "train", "sampling_prefill": "prefill", "sampling_sample": "sample"}
"""By what the service calls kinds of tokens, what they are called here."""


def note_session(run: RunRecord, connection: Connection) -> None:
    """Keep what the service calls the session of this connection, once it has one."""
    session = connection.service.get_console_url().partition("/sessions/")[2]
    if session and session not in run.sessions:
        run.sessions.append(session)


def sessions(run: RunRecord) -> set[str]:
    """The sessions of a run: those that it noted, and those that its checkpoints are named by."""
    found = set(run.sessions)
    for stage in run.stages:
        if stage.reused_from:
            continue
        for made in (stage.checkpoint, stage.resume, stage.best):
            path = (made.state_uri or "") if made else ""
            session, trained, _ = path.removeprefix("tinker://").partition(":train:")
            found |= {session} if trained else set()
    return found


def ask(rest: tinker.RestClient, run: RunRecord, now: datetime | None = None) -> Billed:
    """What was billed for a run by now, as far as the service tells. Raises nothing: what it does
    not tell is no fault of the run."""
    now = now or datetime.now(UTC)
    asked, mine = now.isoformat(timespec="seconds"), sessions(run)
    totals: dict[str, Any] = {"usd": 0.0, "unpriced": 0, **dict.fromkeys(KINDS.values(), 0)}
    try:
        for begin, end in _windows(run, now):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # it moves to another client
                answer = rest.get_billing_usage(begin, end).result(timeout=ANSWER_S)
            for event in answer.data:
                if event.session_id in mine:
                    _add(totals, event)
    except TimeoutError:
        return Billed(asked, why=f"no answer within {ANSWER_S:.0f} s")
    except Exception as error:
        told = explain(error)
        what = ": ".join(filter(None, (told.what, told.why))) if isinstance(told, PtlError) else ""
        return Billed(asked, why=redact(what or str(error) or type(error).__name__).split("\n")[0])
    return Billed(asked, **totals)


def refresh(home: Path, run: RunRecord) -> Billed:
    """Ask the service of a run that is over, and keep what it says.

    Raises:
        UsageError: the run's engine bills nothing.
        PtlError: it cannot be reached, or somebody works on the run.
    """
    engine = registry.load().engine(run.resolved.get("engine", run.engine))
    if not engine.billed:
        raise UsageError(
            f"run {run.id} is of engine '{run.engine}', which bills nothing",
            hint="leave --billing out",
        )
    with (
        Store(home).open(run) as directory,
        private.files(),
        engine.connect({}, home / "engine", directory.path / "engine.log") as connection,
    ):
        run.billed = ask(connection.rest, run)
        directory.save()
    return run.billed


def _windows(run: RunRecord, now: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Spans of whole hours that cover the run."""
    begin = _hour(datetime.fromisoformat(run.created))
    end = datetime.fromisoformat(run.finished) if run.finished else now
    last = _hour(end) + HOUR
    while begin < last:
        yield begin, min(begin + WINDOW, last)
        begin += WINDOW


def _hour(when: datetime) -> datetime:
    return when.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _add(totals: dict[str, Any], event: Any) -> None:
    count, usd = getattr(event.event_info, "token_count", 0), event.estimated_cost_usd
    kind = KINDS.get(event.event_info.type)
    if kind is not None:
        totals[kind] += count
    if usd is not None:
        totals["usd"] += usd
    elif kind is not None:
        totals["unpriced"] += count
