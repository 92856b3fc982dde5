"""Running checks against a server that may hang, answer nonsense or fall over."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from posttrain_recipes.errors import PtlError
from posttrain_recipes.probe import checkpoints, sampling, training
from posttrain_recipes.probe.bench import (
    RANK,
    Bench,
    Check,
    FullError,
    Outcome,
    UnsupportedError,
)
from posttrain_recipes.waiting import in_thread

if TYPE_CHECKING:
    import tinker

CHECKS: dict[str, Check] = {**training.check, **sampling.check, **checkpoints.check}
"""Every check by its name, in the order in which they run: one's requirements come before it."""
CHECK_S = 60.0
"""How long one check may take."""
FIRST = ("train", "sample")
"""The first check of each kind, for which a server may have to get ready."""
SILENT = "no answer"
DETAIL = 200
"""Characters of an error that are told."""


def with_requirements(names: Iterable[str]) -> list[str]:
    """These checks and those that they stand on, in the order in which they run.

    Raises:
        PtlError: no check has such a name.
    """
    wanted: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in CHECKS:
            raise PtlError(
                f"there is no capability '{name}'",
                hint="'ptl engines check --help' lists them",
                code="unknown-name",
            )
        wanted.add(name)
        todo += [one for one in CHECKS[name].requires if one not in wanted]
    return [name for name in CHECKS if name in wanted]


def probe(
    service: tinker.ServiceClient,
    rest: tinker.RestClient,
    model: str,
    names: Collection[str] | None = None,
    *,
    check_s: float = CHECK_S,
    within_s: float = float("inf"),
    startup_s: float = 0.0,
    rank: int = RANK,
) -> Iterator[Outcome]:
    """Run checks, all of them by default, and yield what each found.

    A check that passes `check_s`, or starts after `within_s` seconds, has not been answered. After
    two such in a row the rest is left untried: the server is gone, or stuck.

    Args:
        model: a base model that the server trains and samples.
        names: which checks; those that they require run too.
        startup_s: what the first check of training, and the first of sampling, may take where that
            is more: a server may load or compile a model for it. That is not of `within_s`.
        rank: of the adapters; some servers keep to that of the first.
    """
    bench = Bench(service, rest, model, check_s, rank)
    passed: set[str] = set()
    unanswered = 0
    end = time.monotonic() + within_s
    try:
        for name in with_requirements(CHECKS if names is None else names):
            check = CHECKS[name]
            lacking = [one for one in check.requires if one not in passed]
            if lacking:
                yield Outcome(name, check.summary, "untried", f"needs {lacking[0]}")
                continue
            if unanswered >= 2 or time.monotonic() > end:
                yield Outcome(name, check.summary, "untried", "the server stopped answering")
                continue
            limit = min(check_s, end - time.monotonic())
            if name in FIRST and startup_s > limit:
                limit = startup_s
            outcome = _run(check, bench, limit)
            if name in FIRST:
                end += outcome.seconds
            unanswered = unanswered + 1 if outcome.detail.startswith(SILENT) else 0
            if outcome.verdict == "yes":
                passed.add(name)
            yield outcome
    finally:
        cleaning = in_thread(bench.clean_up)
        with contextlib.suppress(Exception):  # a server that cannot delete is told of above
            cleaning.result(timeout=CHECK_S / 2)
        bench.give_up()


def _run(check: Check, bench: Bench, limit_s: float) -> Outcome:
    start = time.monotonic()

    def outcome(verdict: str, detail: str | None) -> Outcome:
        told = " ".join((detail or "").split())[:DETAIL]
        return Outcome(check.name, check.summary, verdict, told, time.monotonic() - start)  # type: ignore[arg-type]

    bench.wait_s = limit_s
    future = in_thread(bench.as_check(lambda: check.run(bench)))
    try:
        return outcome("yes", future.result(timeout=limit_s))
    except TimeoutError:
        bench.abandon()
        return outcome("no", f"{SILENT} within {limit_s:.0f} s")
    except UnsupportedError as error:
        return outcome("no", str(error))
    except FullError as error:
        told = outcome("untried", f"the server has no free slot for an adapter: {_words(error)}")
        return replace(told, full=True)
    except Exception as error:  # whatever the server did to the SDK: that is the finding
        return outcome("no", _words(error))
    finally:
        bench.give_up()
        bench.release()


def _words(error: Exception) -> str:
    """What the server said, without what the SDK wraps around it."""
    body = getattr(error, "body", None)
    if isinstance(body, dict) and isinstance(
        told := body.get("message") or body.get("detail"), str
    ):
        return told
    text = re.sub(r" for self\.request_id=.*", "", str(error), flags=re.DOTALL)
    text = text.removeprefix("Request failed: ")
    named = isinstance(error, FullError) or type(error).__name__ == "RequestFailedError"
    return text if named else f"{type(error).__name__}: {text}"
