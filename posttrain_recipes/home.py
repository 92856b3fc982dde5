"""The directory that runs, checkpoints and tracking are kept in, and whether it will do."""

from __future__ import annotations

import os
from pathlib import Path

from posttrain_recipes.errors import UsageError


def default_home(given: str | Path | None = None) -> Path:
    """The directory that was given; else `$PTL_HOME`, or `.ptl` in the current directory.

    Raises:
        UsageError: no runs can be kept there: no directory, or one of a name that an address of
            MLflow's store cannot hold.
    """
    named = "--home" if given else "PTL_HOME" if os.environ.get("PTL_HOME") else "the home"
    text = str(given or os.environ.get("PTL_HOME") or ".ptl")
    shown = text.encode(errors="backslashreplace").decode()
    shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
    hint = "name another directory with --home or PTL_HOME"
    if "://" in text or not text.strip():
        kind = "an address" if text.strip() else "empty"
        what = f"{named} is {kind}, and runs are kept in a directory"
        raise UsageError(
            what,
            hint=f"{hint}; MLFLOW_TRACKING_URI names a server that shows them",
            code="not-writable",
        )
    try:
        home = Path(text).expanduser().resolve()
        home.stat()
    except FileNotFoundError:
        try:
            Path.cwd()
        except OSError:
            raise UsageError(
                "the current directory is not there any more", hint="cd", code="not-writable"
            ) from None
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"{named} {shown!r} is no directory for runs: {why}", hint=hint, code="not-writable"
        ) from None
    if why := _unfit(home):
        raise UsageError(
            f"{named} {shown!r} is no directory for runs: {why}", hint=hint, code="not-writable"
        )
    return home


LONGEST_HOME = 400
"""Bytes: SQLite opens no path of more than 512."""


def _unfit(home: Path) -> str:
    if home.exists() and not home.is_dir():
        return "it is a file"
    raw = os.fsencode(home)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "its path is not UTF-8"
    if len(raw) > LONGEST_HOME:
        return f"its path has more than {LONGEST_HOME} bytes"
    # In an address '%' begins an escape, '?' options and '#' a fragment: it would lie elsewhere.
    bad = next((c for c in text if c in "%?#" or not c.isprintable()), None)
    return f"its path has a {bad!r}, which an address of MLflow's store cannot hold" if bad else ""
