"""Whether a reply is the reference answer."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain_recipes.plugin import PluginConfig, Reward, Sample
from posttrain_recipes.training.text import answer_extraction


class ExactMatchReward(Reward):
    """1 where the reply, or the answer extracted from it, equals the reference; else 0."""

    name = "exact_match"

    class Config(PluginConfig):
        """Options of the reward."""

        extract: answer_extraction.Extract = "whole"
        """What of the reply is compared: whole, the last number, after hashes (####), boxed."""
        ignore_case: bool = False
        """Whether capital letters do not matter."""

    config: Config

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """A sample without a reference answer abstains."""
        return [
            None
            if sample.answer is None
            else float(
                answer_extraction.equal(
                    answer_extraction.extract(sample.completion, self.config.extract),
                    sample.answer,
                    ignore_case=self.config.ignore_case,
                )
            )
            for sample in samples
        ]
