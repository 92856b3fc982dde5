"""Whether the Python program in a reply passes its tests.

What the program is asked is answered in the sandbox, and judged here: see
`training.sandbox.split_tests`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field

from posttrain_recipes.plugin import PluginConfig, Reward, Sample
from posttrain_recipes.training.sandbox import tested
from posttrain_recipes.training.text.answer_extraction import python_code


class PythonTests(Reward):
    """1 where the Python code of the reply passes the prompt's tests; else 0.

    The code is that of the reply's last fenced block that defines something, else its last one, or
    all of the reply. It runs in a sandbox without network, files, or other processes; a machine
    that has none is refused at validation. What a test expects stays outside of it, where the test
    is made of plain asserts.
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
        if reason := tested.refusal():
            yield "use", reason

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """A sample without tests abstains."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(self._score, samples))

    def feedback(self, samples: Sequence[Sample]) -> list[str | None]:
        """The first test that failed and what the program did with it, as the program tells it."""
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(self._tested, samples))
        return [one.failure if one else None for one in found]

    def _score(self, sample: Sample) -> float | None:
        found = self._tested(sample)
        if found is None:
            return None
        share = sum(found.passed) / len(found.passed)
        return share if self.config.score == "share" else float(share == 1)

    def _tested(self, sample: Sample) -> tested.Tested | None:
        given: Any = sample.metadata.get(self.config.tests)
        tests = tuple(str(test) for test in ([given] if isinstance(given, str) else given or ()))
        if not tests:
            return None
        code, config = python_code(sample.completion), self.config
        return _run(code, tests, config.seconds, config.memory_mb)


@lru_cache(maxsize=256)
def _run(code: str, tests: tuple[str, ...], seconds: float, memory_mb: int) -> tested.Tested:
    """Once for the score of a reply and what is said of it."""
    return tested.run(code, tests, seconds, memory_mb)
