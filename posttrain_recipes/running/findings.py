"""The result of a preflight check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain_recipes.errors import PtlError

Verdict = Literal["ok", "skipped", "warning", "failed"]


@dataclass(frozen=True)
class PreflightFinding:
    """The result of one preflight check."""

    check: str
    verdict: Verdict
    message: str
    hint: str | None = None

    @classmethod
    def of(
        cls, check: str, error: PtlError, before: str = "", verdict: Verdict = "failed"
    ) -> PreflightFinding:
        """What an error tells, with its cause, after the words `before`."""
        why = f": {error.why}" if error.why else ""
        return cls(check, verdict, before + error.what + why, error.hint)
