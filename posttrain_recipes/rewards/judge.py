"""A judge model's answer to one yes-or-no question about a reply."""

from __future__ import annotations

import math
from collections.abc import Sequence

from posttrain_recipes.plugin import RewardContext, Sample
from posttrain_recipes.records import Messages
from posttrain_recipes.training.judges import backends, judge


class JudgeReward(backends.GradedReward):
    """A judge model's yes to a question about the reply: its probability, or 1 and 0 from text.

    With `score: logits` the reward is p(yes) / (p(yes) + p(no)), with `score: text` it is 1 or 0;
    a judge without a verdict abstains. A judge can be fooled: keep an eval by the true rule.
    """

    name = "judge"

    class Config(backends.GradingConfig):
        """Options of the reward."""

        question: str = "Request: {prompt}\nReply: {reply}\nIs this a good reply, yes or no?"
        """What the judge is asked, with {prompt}, {reply} and {answer}; it says yes or no."""

    config: Config

    def open(self, context: RewardContext) -> None:
        """Resolve the judge."""
        self.judge = backends.open_judge(self.config, context)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """From 0 to 1; None where the judge gave no verdict."""
        questions = [asked(self.config.question, sample) for sample in samples]
        chosen = judge.choices(
            self.judge, questions, "yes", "no", self.config.score, self.config.retries
        )
        return [probability(value, self.config.score) for value in chosen]

    @property
    def gives_feedback(self) -> bool:
        """Only a judge that is asked to write has reasons."""
        return self.config.score == "text"

    def feedback(self, samples: Sequence[Sample]) -> list[str | None]:
        """Why the judge said no, where it was asked to write (`score: text`); it is asked once
        more. From log-odds there is no reason to be had."""
        if self.config.score != "text":
            return [None] * len(samples)
        questions = [asked(self.config.question, sample) for sample in samples]
        return judge.reasons(self.judge, questions, "yes", "no")


def asked(template: str, sample: Sample, **values: str) -> Messages:
    """A question about one reply."""
    return judge.question(
        template,
        prompt=judge.transcript(sample.prompt),
        reply=sample.completion,
        answer=sample.answer or "",
        **values,
    )


def probability(chosen: float | None, how: judge.How) -> float | None:
    """Log-odds, or +1 and -1 from text, as a number from 0 to 1."""
    if chosen is None:
        return None
    return 1 / (1 + math.exp(-max(-60.0, chosen))) if how == "logits" else (chosen + 1) / 2
