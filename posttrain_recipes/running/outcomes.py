"""How a run ended, as programs are told: the end of `--events`, and what `on_end:` gets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from posttrain_recipes import exits
from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning import gates
from posttrain_recipes.reporting import report
from posttrain_recipes.running.ending import first_line
from posttrain_recipes.shown import redact_all
from posttrain_recipes.store import RunRecord, StageRecord

VERSION = 1
"""Of what is written here; another one where something is taken away or means another thing."""


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    status: str
    """A word of `exits.EXITS`; `stopped` where `--until` ended it."""
    exit_code: int
    code: str | None = None
    """The kind of the error; None where there is none."""
    error: str | None = None
    """What failed and why, in one line."""


def of_error(error: BaseException) -> RunOutcome:
    """The outcome of a run that raised this."""
    if isinstance(error, PtlError):
        end = exits.by_code(error.exit_code)
        return RunOutcome(end.status, end.number, error.code, first_line(error))
    if isinstance(error, KeyboardInterrupt):
        return RunOutcome(exits.INTERRUPTED.status, exits.INTERRUPTED.number)
    told = first_line(error) if isinstance(error, Exception) else type(error).__name__
    return RunOutcome(exits.FAILED.status, exits.FAILED.number, "failed", told)


def of_record(record: RunRecord) -> RunOutcome:
    """The outcome of a run that raised nothing."""
    if record.status != "finished":
        return RunOutcome(record.status, exits.FINISHED.number)
    missed = [str(gate) for gate in gates.check(record) if not gate.passed]
    if missed:
        end = exits.GATE_FAILED
        return RunOutcome(end.status, end.number, end.status, "; ".join(missed))
    return RunOutcome(exits.FINISHED.status, exits.FINISHED.number)


def told(outcome: RunOutcome, record: RunRecord | None) -> dict[str, Any]:
    """The outcome with what the run found, as JSON has it, without secrets."""
    name = record.id if record else "nothing was run"
    data: dict[str, Any] = {
        "v": VERSION,
        "text": f"{name}: {outcome.status}" + (f", {outcome.error}" if outcome.error else ""),
        **asdict(outcome),
        "run": record.id if record else None,
    }
    if record is not None:
        found = report.rows(record)
        data |= {
            **{key: getattr(record, key) for key in ("recipe", "path", "preset", "model")},
            **{key: getattr(record, key) for key in ("engine", "created", "finished", "seconds")},
            "stages": [
                {
                    "name": stage.name,
                    "status": stage.status,
                    "error": stage.error,
                    "step": _steps(stage),
                    "total": stage.total_steps,
                    "warnings": stage.warnings,
                }
                for stage in record.stages
            ],
            "results": [
                {
                    "stage": row.stage,
                    "eval": row.eval,
                    "metric": row.metric,
                    "count": row.count,
                    "before": row.before and asdict(row.before),
                    "after": row.after and asdict(row.after),
                    "change": row.change,
                    "p": row.p,
                    "verdict": row.verdict,
                }
                for row in found
            ],
            "gates": [{**asdict(gate), "text": str(gate)} for gate in gates.check(record)],
        }
    known: dict[str, Any] = redact_all(report.known(data))
    return known


def _steps(stage: StageRecord) -> int:
    """Steps that it keeps."""
    if stage.done:
        return stage.total_steps
    return stage.resume.step if stage.resume else 0
