"""Tells `on_end:` of a recipe how a try of its run ended. Whatever comes of it, the run stands.

What is told is that of `outcomes.told`. What fails is a warning, and `untold` in the run's record.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning.on_end import LOOPBACK, OnEnd, wrong_address
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.running import outcomes
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.shown import plain, redact
from posttrain_recipes.store import RunDirectory, RunRecord, Store
from posttrain_recipes.version import __version__

SAID_LINES = 3
"""Last lines of a command's output that are told where it fails."""


class UntoldError(Exception):
    """Why nobody was told. Its text holds no secret."""


def check(plan: Plan) -> None:
    """Refuse an `on_end:` that is known to fail, before anything is spent.

    Raises:
        UsageError: a variable is not set, or holds no address.
    """
    if plan.on_end is None:
        return
    whom = plan.on_end.expanded()
    if whom.webhook and (why := wrong_address(whom.webhook)):
        raise UsageError(
            f"on_end.webhook: {plan.on_end.webhook} {why}",
            hint="look at the variable that it is read from",
        )


def tell(
    plan: Plan, directory: RunDirectory, error: BaseException | None, reporter: Reporter
) -> None:
    """Tell whom the recipe names; keep that, or why it failed.

    Args:
        directory: of the run, whose end is in its record.
        error: what ended it; None where it came to its end.
    """
    if plan.on_end is None:
        return
    run = directory.record
    outcome = outcomes.of_error(error) if error is not None else outcomes.of_record(run)
    whom = plan.on_end
    try:
        reporter.doing(f"on_end: telling {whom.label} that it is {outcome.status}")
        _send(whom, outcomes.told(outcome, run), plan.path.parent, directory.path.parents[1])
        run.told, run.untold = outcome.status, None
    except Exception as failed:
        # What is not ours may have an address or a header in its words.
        why = str(failed) if isinstance(failed, UntoldError | UsageError) else type(failed).__name__
        run.untold = redact(f"{whom.label} was not told that the run is {outcome.status}: {why}")
        reporter.warning(f"on_end: {run.untold}; the run is as it was")
    directory.save()


def tell_late(plan: Plan, kept: Store, run: RunRecord, reporter: Reporter) -> None:
    """Tell of a run that had come to its end before, where nobody was told: it was killed just
    then, or that failed."""
    if plan.on_end is not None and run.told != outcomes.of_record(run).status:
        with kept.open(run) as directory:
            tell(plan, directory, None, reporter)


def _send(whom: OnEnd, told: dict[str, Any], folder: Path, home: Path) -> None:
    text = json.dumps(told)
    whom = whom.expanded()
    if whom.command:
        _run(whom, told, text, folder, home)
    else:
        _post(whom, text)


def _run(whom: OnEnd, told: dict[str, Any], text: str, folder: Path, home: Path) -> None:
    environment = {
        **os.environ,
        "PTL_HOME": str(home.resolve()),
        "PTL_RUN_ID": str(told["run"]),
        "PTL_STATUS": told["status"],
        "PTL_EXIT_CODE": str(told["exit_code"]),
    }
    try:
        process = subprocess.Popen(
            whom.command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the run; and its end takes all of it along
        )
    except (OSError, ValueError) as error:
        raise UntoldError(getattr(error, "strerror", None) or "it cannot be started") from None
    try:
        said, _ = process.communicate(text, whom.timeout)
    except subprocess.TimeoutExpired:
        raise UntoldError(f"it took more than {whom.timeout:g} s, and was ended") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        last = " | ".join(plain(line) for line in said.strip().split("\n")[-SAID_LINES:])
        ended = f"it ended with {process.returncode}"
        raise UntoldError(f"{ended} and said: {last}" if last else ended)


class _NoRedirects(HTTPRedirectHandler):
    """Takes another address for a refusal: headers are for the one that the recipe names."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _post(whom: OnEnd, text: str) -> None:
    if why := wrong_address(whom.webhook):
        raise UntoldError(why)
    sent = {"Content-Type": "application/json", "User-Agent": f"posttrain-recipes/{__version__}"}
    request = Request(whom.webhook, text.encode(), {**sent, **whom.headers}, method="POST")
    local = urlsplit(whom.webhook).hostname in LOOPBACK
    # A proxy is asked for what is elsewhere alone.
    opener = build_opener(_NoRedirects, *([ProxyHandler({})] if local else []))
    try:
        with opener.open(request, timeout=whom.timeout):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        moved = ", another address, which is not followed" if 300 <= error.code < 400 else ""
        raise UntoldError(f"it answered {error.code}{moved}") from None
    except TimeoutError:
        raise UntoldError(f"no answer within {whom.timeout:g} s") from None
    except urllib.error.URLError as error:
        reason = error.reason
        told = getattr(reason, "strerror", None) if isinstance(reason, OSError) else None
        raise UntoldError(f"it cannot be reached ({told or type(reason).__name__})") from None
