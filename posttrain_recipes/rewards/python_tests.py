"""Whether the program in a reply passes tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import Field

from posttrain_recipes.plugin import PluginConfig, Reward, Sample
from posttrain_recipes.training import sandbox
from posttrain_recipes.training.answers import fenced

# Tests run in the reply's own module, and what they say is read off the last line alone.
_RUNNER = """
def _ptl_run(tests, word):
    import sys
    scope = {{"__name__": "reply"}}
    passed = 0
    try:
        exec(compile({reply!r}, "reply.py", "exec"), scope)
    except BaseException as error:
        print(type(error).__name__, error)
    else:
        for test in tests:
            try:
                exec(compile(test, "test.py", "exec"), dict(scope))
                passed += 1
            except BaseException as error:
                print(type(error).__name__, error)
    sys.stdout.flush()
    sys.__stdout__.write(f"\\n{{word}} {{passed}}\\n")
    sys.__stdout__.flush()

_ptl_run({tests!r}, {word!r})
"""


class PythonTests(Reward):
    """1 where the Python code of the reply passes the prompt's tests; else 0.

    The code is that of the reply's fenced block, or all of it. It runs in a sandbox without
    network, files, or other processes; a machine that has none is refused at validation.
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
        reason = sandbox.why_not()
        if reason is not None:
            yield "use", f"this machine has no sandbox to run code in: {reason}; {sandbox.HINT}"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """A sample without tests abstains."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(self._score, samples))

    def _score(self, sample: Sample) -> float | None:
        given: Any = sample.metadata.get(self.config.tests)
        tests = [given] if isinstance(given, str) else list(given or ())
        if not tests:
            return None
        # A program that leaves before the tests are over does not know the word.
        word = secrets.token_hex(16)
        reply = fenced(sample.completion)
        program = _RUNNER.format(reply=reply, tests=[str(test) for test in tests], word=word)
        limits = sandbox.Limits(self.config.seconds, self.config.memory_mb << 20)
        outcome = sandbox.run(program, limits)
        last = outcome.output.rstrip().rsplit("\n", 1)[-1].split()
        if not outcome.passed or len(last) != 2 or last[0] != word:
            return 0.0
        share = int(last[1]) / len(tests)
        return share if self.config.score == "share" else float(share == 1)
