"""Whether the number in a reply equals the reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field

from posttrain_recipes.plugin import PluginConfig, Reward, Sample
from posttrain_recipes.training.text import answer_extraction


class Numeric(Reward):
    """1 where the number that the reply comes to is the reference, within a tolerance; else 0.

    The number is the last one in a box (`\\boxed{}`), else what stands after `####`, else after the
    last "answer is" or "answer:", else the last number of the reply; where the reply has `<answer>`
    tags, of what stands in the last of them. Numbers are read as people write them and compared by
    value: `1,000`, `1{,}000`, `.5`, `1e-3`, `2 x 10^4`, `1/2`, `\\frac{1}{2}`, `2 1/2`, `50%`,
    `$3.50`, `12 km` (units are not compared, and a percent sign may be left out). A reference is
    read whole.
    """

    name = "numeric"

    class Config(PluginConfig):
        """Options of the reward."""

        extract: answer_extraction.NumberIn = "auto"
        """Where the number stands: auto (see above), or that alone."""
        parser: Literal["builtin", "math_verify"] = "builtin"
        """What reads the numbers: builtin, or Hugging Face's Math-Verify, which reads expressions
        (`\\sqrt{2}/2`) and knows no tolerance; it comes with `posttrain-recipes[math]`."""
        relative: float = Field(default=1e-6, ge=0)
        """How far it may be off, as a share of the reference."""
        absolute: float = Field(default=0.0, ge=0)
        """How far it may be off, in its own unit."""

    config: Config

    def problems(self) -> Iterable[tuple[str, str]]:
        """A parser that is not installed."""
        if self.config.parser == "math_verify" and find_spec("math_verify") is None:
            yield "parser", "needs the package math-verify: pip install 'posttrain-recipes[math]'"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """A sample whose reference is not a number abstains."""
        judge = self._by_value if self.config.parser == "builtin" else _by_algebra
        return [judge(sample) for sample in samples]

    def digest(self) -> str:
        """What reads the numbers: a result by another reader is not taken for one of this."""
        return answer_extraction.READER

    def _by_value(self, sample: Sample) -> float | None:
        config = self.config
        wanted = answer_extraction.reference_number(sample.answer or "", config.extract)
        if wanted is None:
            return None
        found = answer_extraction.final_number(sample.completion, config.extract)
        if found is None:
            return 0.0
        return float(found.equals(wanted, config.relative, config.absolute))


def _by_algebra(sample: Sample) -> float | None:
    """By Hugging Face's Math-Verify, which reads expressions too."""
    from math_verify import parse, verify

    # Its time limits are signals, which only a main thread can have.
    unlimited: dict[str, Any] = {"parsing_timeout": None}
    wanted = parse(sample.answer or "", **unlimited)
    if not wanted:
        return None
    found = parse(sample.completion, **unlimited)
    return float(bool(found) and verify(wanted, found, timeout_seconds=None))
