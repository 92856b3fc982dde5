"""What a check before a run says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PreflightFinding:
    """What one check found."""

    check: str
    verdict: Literal["ok", "warning", "failed"]
    message: str
    hint: str | None = None
