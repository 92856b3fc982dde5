"""What can go wrong, told to a person: what, where, why, and what to do next.

Every failure a user can cause is a `PtlError`; the command line prints it without a traceback and
exits with its `exit_code` (2: the recipe or its data is at fault, 1: a run failed; `exits` has
those of causes that scripts ask for).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from posttrain_recipes import exits


class PtlError(Exception):
    """A run that failed, or an environment that cannot run it.

    Args:
        what: one sentence that says what happened.
        why: the cause, where it is not plain from `what`.
        hint: what the reader should do next.
        code: its kind, by which `ptl explain CODE` tells more; by default that of the class. The
            kinds are the sections of `troubleshooting.md`.
    """

    exit_code = 1
    code = "failed"

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        hint: str | None = None,
        code: str | None = None,
    ) -> None:
        if code is not None:
            self.code = code
        self.exit_code = exits.code_for(self.code, self.exit_code)
        self.what = what
        self.why = why
        self.hint = hint
        super().__init__(what)

    @property
    def codes(self) -> Sequence[str]:
        """Its kind; the kinds of its faults where it has several."""
        return [self.code]

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.hint:
            lines.append(f"  next: {self.hint}")
        return "\n".join(lines)


def said_by(error: BaseException) -> str:
    """What an error of somebody else's code says; "" where it cannot even say that."""
    try:
        return str(error).strip()
    except Exception:  # its __str__ is somebody else's too
        return ""


class PtlWarning(UserWarning):
    """Something that should be known and stops nothing; the command line prints it as a line."""


class UsageError(PtlError):
    """The command was given something it cannot work on (exit 2)."""

    exit_code = 2
    code = "wrong-use"


class TooLongError(UsageError):
    """A record of more tokens than a method or the model takes."""

    code = "too-long"


class MissingExtraError(PtlError):
    """A feature needs a package that is not installed; `hint` is the command that installs it."""

    code = "missing-package"


SYSTEMS = ("fcntl", "resource", "pwd", "termios")
"""Modules of Python that Windows does not have."""


def not_installed(module: str) -> PtlError:
    """What to tell of a module that cannot be found."""
    if module in SYSTEMS:
        return PtlError(
            "ptl runs on Linux and macOS",
            why=f"this system's Python has no '{module}'",
            hint="on Windows, use WSL2: 'wsl --install', and install ptl inside it",
            code="wrong-system",
        )
    top = module.partition(".")[0]
    return PtlError(
        f"the package '{top}' is not installed here, and ptl needs it",
        hint=f"pip install {top}",
        code="missing-package",
    )


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a disk, or of a user's share of it, that has no space left."""

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""The errors of a place that this user may not write."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write at or below `path`. Raises `PtlError` with the place, and what to do, where the system
    does not let us: its own errors often do not say where."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> PtlError:
    """What to tell of a file or directory that cannot be written."""
    hint, code = None, "not-writable"
    if error.errno in DISK_FULL:
        code = "out-of-disk"
        hint = (
            "free some space there: 'ptl gc' deletes checkpoints that no run names any more. Or "
            "keep runs elsewhere, with --home or PTL_HOME"
        )
    elif error.errno in READ_ONLY:
        hint = "name a place where this user may write; runs are kept in --home or PTL_HOME"
    return PtlError(
        f"{display_path(path)} cannot be written",
        why=error.strerror or str(error),
        hint=hint,
        code=code,
    )


@dataclass(frozen=True, order=True)
class Location:
    """A place in a text file; `line` and `column` count from 1, and 0 means unknown."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        parts = [self.file]
        if self.line:
            parts.append(str(self.line))
            if self.column:
                parts.append(str(self.column))
        return ":".join(parts)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong at one place."""

    location: Location
    key: str
    """The path of the key, as `stages.sft.method.learning_rate`; empty for the whole file."""
    message: str
    code: str = field(default="wrong-value", compare=False)
    """Its kind, as that of a `PtlError`."""

    def __str__(self) -> str:
        # A key may be any text: told on one line.
        head = f"{self.location}  {self.key}".strip().replace("\n", "\\n")
        return f"{head}\n  {self.message}"

    def as_dict(self) -> dict[str, object]:
        """The fault as `ptl validate --json` prints it."""
        return {
            "file": self.location.file,
            "line": self.location.line,
            "column": self.location.column,
            "key": self.key,
            "message": self.message,
            "code": self.code,
        }


class RecipeError(PtlError):
    """Everything that is wrong with a recipe or a data file, at once (exit 2)."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = sorted(faults, key=lambda fault: (fault.location, fault.key))
        first = self.faults[0].code if self.faults else None
        super().__init__("\n".join(str(fault) for fault in self.faults), code=first)

    @property
    def codes(self) -> Sequence[str]:
        """The kinds of its faults, each once."""
        return list(dict.fromkeys(fault.code for fault in self.faults))


def display_path(path: Path) -> str:
    """`path` as a person would type it: relative where it lies below the current directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError, RuntimeError):  # elsewhere, or a link in a circle
        return str(path)
