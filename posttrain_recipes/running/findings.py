"""The result of a preflight check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain_recipes.errors import PtlError


@dataclass(frozen=True)
class PreflightFinding:
    """The result of one preflight check."""

    check: str
    verdict: Literal["ok", "warning", "failed"]
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, check: str, error: PtlError) -> PreflightFinding:
        """The failure that an error tells, with its cause."""
        why = f": {error.why}" if error.why else ""
        return cls(check, "failed", error.what + why, error.hint)
