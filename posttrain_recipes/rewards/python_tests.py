"""Whether the Python program in a reply passes its tests.

What the program is asked is answered in the sandbox, and judged here: see
`training.sandbox.split_tests`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from posttrain_recipes.plugin import PluginConfig, Reward, Sample
from posttrain_recipes.training.sandbox import child_main, runner, split_tests
from posttrain_recipes.training.text.answer_extraction import fenced


class PythonTests(Reward):
    """1 where the Python code of the reply passes the prompt's tests; else 0.

    The code is that of the reply's fenced block, or all of it. It runs in a sandbox without
    network, files, or other processes; a machine that has none is refused at validation. What a
    test expects stays outside of it, where the test is made of plain asserts.
    """

    name = "python_tests"

    class Config(PluginConfig):
        """Options of the reward."""

        tests: str = "tests"
        """The prompt's field with the tests: Python code as `assert f(1) == 2`, or a list of it."""
        score: Literal["all", "share"] = "all"
        """1 where all tests pass, or the share that does."""
        seconds: float = Field(default=5.0, gt=0, le=600)
        """How long a reply's code and its tests may run."""
        memory_mb: int = Field(default=256, ge=64)
        """Address space in MiB that they may use."""

    config: Config

    def problems(self) -> Iterable[tuple[str, str]]:
        """A machine that has no sandbox."""
        reason = runner.why_not()
        if reason is not None:
            yield "use", f"this machine has no sandbox to run code in: {reason}; {runner.HINT}"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """A sample without tests abstains."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(self._score, samples))

    def _score(self, sample: Sample) -> float | None:
        given: Any = sample.metadata.get(self.config.tests)
        tests = [given] if isinstance(given, str) else list(given or ())
        if not tests:
            return None
        apart = [split_tests.take_apart(str(test)) for test in tests]
        # A program that leaves before its tests are over does not know the word, unless it looked.
        word = secrets.token_hex(16)
        asked = fenced(sample.completion), [test.steps for test in apart], word
        limits = runner.SandboxLimits(
            self.config.seconds, self.config.memory_mb << 20, output=1 << 20
        )
        outcome = runner.run(f"{_CHILD_MAIN}\n\nmain(*{asked!r})\n", limits)
        answers = _answers(outcome, word, len(tests))
        share = sum(map(split_tests.Test.passed, apart, answers)) / len(tests)
        return share if self.config.score == "share" else float(share == 1)


_CHILD_MAIN = Path(child_main.__file__).read_text(encoding="utf-8")


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
