"""How a command ends: its exit code by cause, for scripts and for what starts runs again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exit:
    """One way to end."""

    number: int
    """The exit code."""
    status: str
    """The word for it: in `--events`, and for `on_end:`."""
    meaning: str
    again: str
    """Whether the same command is worth another try."""


EXITS = (
    Exit(0, "finished", "done, and all gates hold", "nothing is left to do"),
    Exit(1, "failed", "failed for a cause that has no code of its own", "by the cause"),
    Exit(2, "refused", "the recipe, its data or the command is at fault", "no, mend it first"),
    Exit(3, "gate-failed", "the run is whole, and a gate ('expect:') does not hold", "no"),
    Exit(4, "limit-reached", "stopped at a bound of 'limits:'", "no, raise the bound first"),
    Exit(5, "engine-lost", "the engine ended, or cannot be reached", "yes, it goes on"),
    Exit(130, "interrupted", "Ctrl-C or SIGTERM; what was trained is saved", "yes, it goes on"),
)
"""Every way, by its number. What Python itself says of a crash, or the shell of a signal that
cannot be caught (137: SIGKILL), stands beside these."""

FINISHED, FAILED, REFUSED, GATE_FAILED, LIMIT_REACHED, ENGINE_LOST, INTERRUPTED = EXITS

_BY_KIND = {
    "gate-failed": GATE_FAILED,
    "limit-reached": LIMIT_REACHED,
    "engine-gone": ENGINE_LOST,
    "engine-unreachable": ENGINE_LOST,
    "bad-key": FAILED,  # the engine is there, and refuses all: another try finds the same
}


def code_for(kind: str, otherwise: int) -> int:
    """The exit code of a kind of error (`PtlError.code`)."""
    found = _BY_KIND.get(kind)
    return found.number if found else otherwise


def by_code(number: int) -> Exit:
    """The way with that exit code; `failed` for one that has none."""
    return next((one for one in EXITS if one.number == number), FAILED)


def as_help() -> str:
    """All of them as lines for `--help`."""
    return "\n".join(f"{one.number:>5}  {one.meaning}" for one in EXITS)
