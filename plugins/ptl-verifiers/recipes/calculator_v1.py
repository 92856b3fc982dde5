"""A taskset of verifiers with a tool: products too large to work out, and a calculator."""

import random
import re
from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["CalculatorTaskset"]

PRODUCT = re.compile(r"\s*(\d{1,6})\s*\*\s*(\d{1,6})\s*")


class CalculatorState(vf.State):
    """What the tool knows of an episode."""

    calls: int = 0


class Calculator(vf.Toolset[vf.ToolsetConfig, CalculatorState]):
    """The tool server."""

    TOOL_PREFIX = None

    @vf.tool
    async def calculate(self, product: str) -> str:
        """A product of two whole numbers, as 12 * 34."""
        self.state.calls += 1
        found = PRODUCT.fullmatch(product)
        if found is None:
            raise ValueError("write it as 12 * 34")
        return str(int(found[1]) * int(found[2]))


class CalculatorData(vf.TaskData):
    """A product with its answer."""

    answer: str


class CalculatorTask(vf.Task[CalculatorData, CalculatorState]):
    """A product to be asked for."""

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return float((trace.last_reply or "").strip() == self.data.answer)

    @vf.metric
    async def calls(self, trace: vf.Trace) -> float:
        return float(trace.state.calls)

    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[vf.Toolset]:
        return [Calculator(vf.ToolsetConfig())]


class CalculatorConfig(vf.TasksetConfig):
    """Options of the taskset."""

    digits: int = 3
    """Of each number, at most."""


class CalculatorTaskset(vf.Taskset[CalculatorTask, CalculatorConfig]):
    """Products without end."""

    INFINITE = True

    def load(self) -> Iterator[CalculatorTask]:
        draw, most = random.Random(0), 10**self.config.digits - 1
        while True:
            a, b = draw.randint(12, most), draw.randint(2, most)
            data = CalculatorData(prompt=f"What is {a} * {b}?", answer=str(a * b))
            yield CalculatorTask(data, self.config.task)


if __name__ == "__main__":
    Calculator.run()
