"""Whether the length of a reply lies within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from posttrain_recipes.plugin import PluginConfig, Reward, Sample


class Length(Reward):
    """1 where the length of the reply is within bounds, falling to 0 outside of them."""

    name = "length"

    class Config(PluginConfig):
        """Options of the reward."""

        unit: Literal["words", "characters"] = "words"
        """What is counted."""
        least: int = Field(default=0, ge=0)
        """The shortest reply that scores 1."""
        most: int | None = Field(default=None, ge=0)
        """The longest reply that scores 1; by default there is none."""
        slack: int = Field(default=0, ge=0)
        """How far outside of the bounds the score has fallen to 0, in a straight line."""

        @model_validator(mode="after")
        def _bounds(self) -> Length.Config:
            if self.most is not None and self.most < self.least:
                raise ValueError("'most' is less than 'least'")
            return self

    config: Config

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """Every reply has a score."""
        return [self._score(sample.completion) for sample in samples]

    def _score(self, text: str) -> float:
        config = self.config
        length = len(text.split()) if config.unit == "words" else len(text)
        over = 0 if config.most is None else length - config.most
        off = max(config.least - length, over, 0)
        return max(0.0, 1.0 - off / (config.slack + 1))
