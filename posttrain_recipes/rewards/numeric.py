"""Whether the number in a reply equals the reference."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from pydantic import Field

from posttrain_recipes.plugin import PluginConfig, Reward, Sample
from posttrain_recipes.training.text import answer_extraction

_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")


def number(text: str) -> float | None:
    """A number as people write it: `1,000`, `$3.50`, `12%`, `1/2`, `\\frac{1}{2}`; else None."""
    plain = _FRACTION.sub(r"\1/\2", text)
    plain = re.sub(r"[,\s$€£\\%]|\.$", "", plain)
    try:
        return float(Fraction(plain))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


class Numeric(Reward):
    """1 where the number that the reply comes to is the reference, within a tolerance; else 0.

    The number is the last one in a box (`\\boxed{}`), else what stands after `####`, else the last
    number of the reply.
    """

    name = "numeric"

    class Config(PluginConfig):
        """Options of the reward."""

        extract: Literal["auto", "number", "hashes", "boxed", "whole"] = "auto"
        """Where the number stands: auto (boxed, else hashes, else the last one), or that alone."""
        relative: float = Field(default=1e-6, ge=0)
        """How far it may be off, as a share of the reference."""
        absolute: float = Field(default=0.0, ge=0)
        """How far it may be off, in its own unit."""

    config: Config

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """A sample whose reference is not a number abstains."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float | None:
        wanted = self._find(sample.answer or "")
        if wanted is None:
            return None
        found = self._find(sample.completion)
        if found is None:
            return 0.0
        config = self.config
        return float(math.isclose(found, wanted, rel_tol=config.relative, abs_tol=config.absolute))

    def _find(self, text: str) -> float | None:
        how = self.config.extract
        ways: tuple[answer_extraction.Extract, ...] = (
            ("boxed", "hashes", "number") if how == "auto" else (how,)
        )
        for way in ways:
            part = answer_extraction.extract(text, way)
            if part is not None:
                return number(part)
        # A reference is often the bare number, however the reply is asked to say it.
        return number(text)
