"""Whether a reply matches a pattern."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import field_validator

from posttrain_recipes.plugin import PluginConfig, Reward, Sample


class Regex(Reward):
    """1 where the reply matches a regular expression; else 0."""

    name = "regex"

    class Config(PluginConfig):
        """Options of the reward."""

        pattern: str
        """The expression, in Python's syntax; a dot matches line ends too."""
        match: Literal["anywhere", "whole"] = "whole"
        """Whether it has to match the whole reply, or some part of it."""
        reads: Literal["text", "raw"] = "text"
        """`text`: the reply without special tokens and the white space around it; `raw`: as the
        model wrote it, up to the token that ends it."""
        ignore_case: bool = False
        """Whether capital letters do not matter."""

        @field_validator("pattern")
        @classmethod
        def _compiles(cls, pattern: str) -> str:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from None
            return pattern

    config: Config

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """Every reply has a score."""
        flags = re.DOTALL | (re.IGNORECASE if self.config.ignore_case else 0)
        expression = re.compile(self.config.pattern, flags)
        test = expression.search if self.config.match == "anywhere" else expression.fullmatch
        raw = self.config.reads == "raw"
        texts = [(sample.raw if raw else "") or sample.completion for sample in samples]
        return [float(test(text) is not None) for text in texts]
