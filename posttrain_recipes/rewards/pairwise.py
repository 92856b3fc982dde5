"""A judge model's preference between two replies, as a reward of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from posttrain_recipes.plugin import RewardContext, Sample
from posttrain_recipes.rewards.judge import probability
from posttrain_recipes.training.judges import backends, judge


class Pairwise(backends.GradedReward):
    """Share of comparisons that a reply wins by a judge, against its group or the reference.

    Every pair is judged in both orders, so that a liking for the first place cancels. With
    `score: logits` a comparison counts the probability of winning, with `score: text` 1, 1/2 (the
    two verdicts contradict each other) or 0. A reply without any verdict abstains.
    """

    name = "pairwise"

    class Config(backends.GradingConfig):
        """Options of the reward."""

        question: str = (
            "Request: {prompt}\nReply A: {a}\nReply B: {b}\nWhich reply is better, A or B?"
        )
        """What the judge is asked, with {prompt}, {a} and {b}; it answers A or B."""
        against: Literal["group", "answer"] = "group"
        """Compare with the other replies to the prompt, or with the prompt's answer."""

    config: Config

    def open(self, context: RewardContext) -> None:
        """Resolve the judge."""
        self.judge = backends.open_judge(self.config, context)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """From 0 to 1; equal replies share the win without being judged."""
        pairs = list(self._pairs(samples))
        differ = [pair for pair in pairs if pair[1] != pair[3]]
        found = iter(
            judge.margins(
                self.judge,
                [(samples[i].prompt, x, y) for i, x, _, y in differ],
                self.config.question,
                self.config.score,
                self.config.retries,
            )
        )
        wins: list[list[float]] = [[] for _ in samples]
        for i, x, j, y in pairs:
            won = 0.5 if x == y else probability(next(found), self.config.score)
            if won is not None:
                wins[i].append(won)
                if j is not None:
                    wins[j].append(1 - won)
        return [sum(won) / len(won) if won else None for won in wins]

    def _pairs(self, samples: Sequence[Sample]) -> list[tuple[int, str, int | None, str]]:
        """(place, reply, place of the other or None, other) of every comparison."""
        if self.config.against == "answer":
            return [
                (i, sample.completion, None, sample.answer)
                for i, sample in enumerate(samples)
                if sample.answer is not None
            ]
        return [
            (i, samples[i].completion, j, samples[j].completion)
            for i in range(len(samples))
            for j in range(i + 1, len(samples))
            if samples[i].prompt == samples[j].prompt
        ]
