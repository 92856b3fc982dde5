"""Whether Python programs that a model wrote pass their tests, found in the sandbox.

What a program is asked is answered there, and judged here: see `split_tests`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain_recipes.training.sandbox import child_main, runner, split_tests

_CHILD_MAIN = Path(child_main.__file__).read_text(encoding="utf-8")


def refusal() -> str | None:
    """Why this machine cannot run programs and what to do about it; None where it can."""
    reason = runner.why_not()
    if reason is None:
        return None
    return f"this machine has no sandbox to run code in: {reason}; {runner.HINT}"


@dataclass(frozen=True)
class Tested:
    """What a program did with its tests."""

    passed: list[bool]
    """Of each test whether the program passes it."""
    failure: str | None
    """The first test that it does not pass, with what happened, for whoever wrote it; the end of
    the program where it came to none in time. None where it passes all."""


def run(program: str, tests: Sequence[str], seconds: float, memory_mb: int) -> Tested:
    """Run a program and its tests; it passes none where it does not come to its end in time.

    Args:
        seconds: how long the program and its tests may run together.
        memory_mb: address space in MiB that they may use.

    Raises:
        UsageError: this machine has no sandbox.
    """
    apart = [split_tests.take_apart(test) for test in tests]
    # A program that leaves before its tests are over does not know the word, unless it looked.
    word = secrets.token_hex(16)
    asked = program, [test.steps for test in apart], word
    limits = runner.SandboxLimits(seconds, memory_mb << 20, output=1 << 20)
    outcome = runner.run(f"{_CHILD_MAIN}\n\nmain(*{asked!r})\n", limits)
    answers = _answers(outcome, word, len(tests))
    found = [test.passed(answer) for test, answer in zip(apart, answers, strict=True)]
    if all(found):
        return Tested(found, None)
    first = found.index(False)
    if outcome.passed:
        happened = apart[first].happened(answers[first])
    else:
        happened = f"it took more than {seconds:g} s" if outcome.late else "the program was ended"
    return Tested(found, f"This test failed:\n\n{tests[first].strip()}\n\n{happened}")


def passed(program: str, tests: Sequence[str], seconds: float, memory_mb: int) -> list[bool]:
    """Of each test whether the program passes it; see `run`."""
    return run(program, tests, seconds, memory_mb).passed


def _answers(outcome: runner.SandboxResult, word: str, count: int) -> list[object]:
    """What the last line of output says to each test; None, which passes none, where it cannot."""
    nothing: list[object] = [None] * count
    if not outcome.passed:
        return nothing
    try:
        said = json.loads(outcome.output.rstrip().rsplit("\n", 1)[-1])
    except (ValueError, RecursionError):
        return nothing
    if not isinstance(said, dict) or said.get("word") != word:
        return nothing
    answers = said.get("answers")
    return answers if isinstance(answers, list) and len(answers) == count else nothing
