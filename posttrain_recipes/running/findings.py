"""The result of a preflight check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PreflightFinding:
    """The result of one preflight check."""

    check: str
    verdict: Literal["ok", "warning", "failed"]
    message: str
    hint: str | None = None
