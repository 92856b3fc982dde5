"""Replies that are programs: run in the sandbox, against the tests of a problem."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import comb
from typing import cast

from pydantic import Field

from posttrain_recipes.evals.suites.options import SampledConfig
from posttrain_recipes.evals.suites.suite import Suite
from posttrain_recipes.plugin import (
    CountTokens,
    EvalContext,
    EvalResult,
    PerRecord,
    Prompt,
    Sample,
    Workload,
)
from posttrain_recipes.training.intervals import summary
from posttrain_recipes.training.sampling import generation
from posttrain_recipes.training.sandbox import tested

KS = (1, 10, 100)
"""The k of pass@k that are told, as far as there are so many samples."""


class ProgramsConfig(SampledConfig):
    """How programs are sampled and run."""

    samples: int = Field(default=1, ge=1)
    """Programs for each problem; with 10 or 100 of them there is pass@10 or pass@100 too."""
    seconds: float = Field(default=5.0, gt=0, le=600)
    """How long a program and its tests may run."""
    memory_mb: int = Field(default=256, ge=64)
    """Address space in MiB that they may use."""


class Programs(Suite):
    """An eval whose replies are programs."""

    config: ProgramsConfig

    def problems(self) -> Iterable[tuple[str, str]]:
        """A machine that has no sandbox, and samples that would all be the same."""
        yield from super().problems()
        if reason := tested.refusal():
            yield "use", reason
        if self.config.samples > 1 and not self.config.temperature:
            yield "samples", "are all the same at temperature 0; set 'temperature: 0.8', say"

    @abstractmethod
    def program(self, prompt: Prompt, sample: Sample) -> str:
        """The program of a reply."""

    @abstractmethod
    def tests(self, prompt: Prompt) -> Sequence[str]:
        """What it has to pass."""

    def measures(self) -> Sequence[str]:
        return [f"pass_at_{k}" for k in KS if k <= self.config.samples]

    def work(self, asked: Sequence[Prompt], count: int, tokens: CountTokens) -> Workload:
        """Every prompt is read once, and a reply may end before its limit."""
        config = self.config
        return generation.workload(asked, count, tokens, config.max_tokens, config.samples)

    def evaluate(self, context: EvalContext) -> EvalResult:
        """pass@k of each problem by the unbiased estimator of Chen et al. 2021, equation 1."""
        config, prompts = self.config, self.asked(context)
        each = config.samples
        samples = generation.generate(
            context,
            prompts,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            count=each,
        )
        with ThreadPoolExecutor(4) as pool:
            solved = [cast(Prompt, record) for record in context.records for _ in range(each)]
            right = list(pool.map(self._passes, solved, samples))
        passing = [sum(right[begin : begin + each]) for begin in range(0, len(right), each)]
        values = {
            name: tuple(pass_at_k(each, count, k) for count in passing)
            for name, k in zip(self.measures(), KS, strict=False)
        }
        scored = [
            replace(sample, scores={"pass_at_1": float(passed)})
            for sample, passed in zip(samples, right, strict=True)
        ]
        return EvalResult(
            {name: summary(found) for name, found in values.items()},
            tuple(scored),
            higher_is_better=dict.fromkeys(values, True),
            scores={name: PerRecord(found) for name, found in values.items()},
        )

    def _passes(self, prompt: Prompt, sample: Sample) -> bool:
        program, tests = self.program(prompt, sample), self.tests(prompt)
        return all(tested.passed(program, tests, self.config.seconds, self.config.memory_mb))


def pass_at_k(samples: int, passing: int, k: int) -> float:
    """The chance that of `k` of so many samples one passes: 1 - C(n - c, k) / C(n, k)."""
    return 1 - comb(samples - passing, k) / comb(samples, k)
