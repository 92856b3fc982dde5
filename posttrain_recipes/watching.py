"""Whether a remote engine is reachable, and why the SDK is holding requests back."""

from __future__ import annotations

import logging
import threading
import time
from typing import Self
from urllib.parse import urlsplit

from posttrain_recipes import sdk
from posttrain_recipes.shown import redact

PING_S = 5.0
"""Seconds between two questions to a server whether it is there."""
ANSWER_S = 10.0
"""How long it may take over an answer."""
LOST_S = 60.0
"""A server that has not answered for so long is given up: what was saved there can be gone on
from, and the SDK would go on trying for ever."""
BRIEF_S = 10.0
"""Seconds; a shorter pause is not reported: the SDK works up to every rate limit."""
SILENT_S = 90.0
"""A pause that the SDK has not spoken of for so long is over; it speaks every minute."""
PAUSED_S = 3600.0
"""An engine that has held everything back for so long is given up."""
PAUSES = {402: "there is a problem with the account's billing", 429: "a rate limit is reached"}
"""What the SDK waits out, by HTTP status."""


class Watch:
    """Polls a server on a thread of its own, for as long as the context lasts, for being reachable.

    Any answer counts, except for those of a gateway without a server behind it (5xx).
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = redact(base_url)
        self._asked = f"{base_url}/api/v1/healthz"
        self._headers = {"X-API-Key": api_key}
        self._answered = time.monotonic()
        self._why = ""
        self._over = threading.Event()

    def __enter__(self) -> Watch:
        threading.Thread(target=self._run, name="engine-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(PING_S):
            self._why = self._ask()
            if not self._why:
                self._answered = time.monotonic()

    def _ask(self) -> str:
        """Why there was no answer; empty where there was one."""
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.request import Request, urlopen

        try:
            request = Request(self._asked, headers=self._headers)
            urlopen(request, timeout=ANSWER_S).close()
        except HTTPError as error:
            return f"it answers {error.code} {error.reason}" if error.code >= 500 else ""
        except OSError as error:
            return redact(str(getattr(error, "reason", error)))
        except (ValueError, HTTPException) as error:  # no address, or no answer of HTTP
            return redact(str(error) or type(error).__name__)
        return ""

    @property
    def alive(self) -> bool:
        """False once it is given up."""
        return not self._why or time.monotonic() - self._answered < LOST_S

    @property
    def trouble(self) -> str | None:
        """That it does not answer, for how long, and why; None while it does."""
        why, silent = self._why, time.monotonic() - self._answered
        if not why:
            return None
        return (
            f"{self.base_url} has not answered for {silent:.0f} s and is given up after "
            f"{LOST_S:.0f} s: {why}"
        )


class Pauses(logging.Handler):
    """A log handler that notes why the SDK holds requests back: capacity, rate limits, billing, a
    lost session.

    The SDK reports it only in its log, and refused requests only in that of httpx. Both stay off
    the terminal for as long as the context lasts.
    """

    def __init__(self, base_url: str) -> None:
        super().__init__(logging.INFO)
        self.base_url = redact(base_url)
        self._host = urlsplit(base_url).netloc
        self._why = ""
        self._began = self._heard = -float("inf")

    def __enter__(self) -> Self:
        # A quarter of an hour is too long for a person who wonders why nothing happens.
        self._soon = sdk.pauses_told_after(BRIEF_S)
        self._soon.__enter__()
        self._before = []
        for name, level in (("tinker", logging.WARNING), ("httpx", logging.INFO)):
            logger = logging.getLogger(name)
            self._before.append((logger, logger.level, logger.propagate))
            logger.setLevel(level)
            logger.propagate = False
            logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._soon.__exit__(None, None, None)
        for logger, level, propagate in self._before:
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a pause; whatever the SDK logs as an error it raises as well."""
        if record.name == "httpx":
            # method, URL, version, status, reason
            args = record.args if isinstance(record.args, tuple) else ()
            if len(args) == 5 and urlsplit(str(args[1])).netloc == self._host:
                why = PAUSES.get(args[3]) if isinstance(args[3], int) else None
                if why:
                    self._note(why)
        elif record.levelno == logging.WARNING and not record.name.endswith("telemetry"):
            self._note(record.getMessage().split("\n")[0])

    def _note(self, why: str) -> None:
        now = time.monotonic()
        if now - self._heard > SILENT_S:
            self._began = now
        self._why, self._heard = why, now

    @property
    def _seconds(self) -> float:
        """How long the pause has lasted; 0 where there is none."""
        now = time.monotonic()
        return now - self._began if now - self._heard < SILENT_S else 0.0

    @property
    def alive(self) -> bool:
        """False once it is given up."""
        return self._seconds < PAUSED_S

    @property
    def trouble(self) -> str | None:
        """That requests are held back, and why; None while they are not, or only for a moment."""
        if self._seconds <= BRIEF_S:
            return None
        return (
            f"{self.base_url} holds requests back, which is waited for up to "
            f"{PAUSED_S / 60:.0f} min: {self._why}"
        )
