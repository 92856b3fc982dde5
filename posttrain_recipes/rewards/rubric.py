"""A judge model's scores of a reply by several weighted criteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError

from posttrain_recipes.plugin import PluginConfig, RewardContext, Sample, UsageError
from posttrain_recipes.rewards.judge import asked, probability
from posttrain_recipes.training.judges import backends, judge


class Criterion(PluginConfig):
    """One thing that a reply should, or should not, be."""

    text: str = Field(min_length=1)
    """A sentence that is true of a good reply, as 'The reply is polite'."""
    weight: float = 1.0
    """What it counts for; below 0 for what should not be so."""


class Rubric(backends.GradedReward):
    """A weighted sum of a judge's answers to several criteria, over the sum of positive weights.

    Each criterion is one question. Where the judge gives no verdict on one of them, also when asked
    again, the reply has no reward: a sum without a part cannot be compared with a whole one.
    """

    name = "rubric"

    class Config(backends.GradingConfig):
        """Options of the reward."""

        criteria: list[Criterion | str] = Field(default_factory=list)
        """What is asked of every reply: sentences, or {text, weight}."""
        field: str | None = None
        """A field of the prompts with criteria of their own, beside these."""
        question: str = "Rule: {criterion}.\nReply: {reply}\nYes or no?"
        """What the judge is asked, with {criterion}, {prompt}, {reply} and {answer}."""

    config: Config

    def open(self, context: RewardContext) -> None:
        """Resolve the judge.

        Raises:
            UsageError: there is nothing to judge by.
        """
        if not self.config.criteria and not self.config.field:
            raise UsageError(
                "the reward 'rubric' has no criteria",
                hint="list some under 'criteria:', or name the field of the prompts that has them",
                code="missing-key",
            )
        self.judge = backends.open_judge(self.config, context)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """At most 1; below 0 only where a criterion has a negative weight.

        Raises:
            UsageError: a prompt whose criteria cannot be read.
        """
        scores: list[float | None] = []
        for criteria, found in self._verdicts(samples):
            whole = sum(max(0.0, one.weight) for one in criteria) or 1.0
            parts = [
                one.weight * value
                for one, value in zip(criteria, found, strict=True)
                if value is not None
            ]
            scores.append(sum(parts) / whole if criteria and len(parts) == len(criteria) else None)
        return scores

    def feedback(self, samples: Sequence[Sample]) -> list[str | None]:
        """The criteria that the judge finds broken; it is asked of them once more."""
        said: list[str | None] = []
        for criteria, found in self._verdicts(samples):
            broken = [
                f"It should {'not ' * (one.weight < 0)}be so: {one.text.rstrip('.')}."
                for one, value in zip(criteria, found, strict=True)
                if value is not None and (value < 0.5) == (one.weight > 0)
            ]
            said.append("\n".join(broken) or None)
        return said

    def _verdicts(
        self, samples: Sequence[Sample]
    ) -> list[tuple[list[Criterion], list[float | None]]]:
        """The criteria of each sample, and how far the judge finds each of them kept, from 0 to 1;
        None where it gave no verdict."""
        wanted = [self._criteria(sample) for sample in samples]
        questions = [
            asked(self.config.question, sample, criterion=one.text.rstrip("."))
            for sample, criteria in zip(samples, wanted, strict=True)
            for one in criteria
        ]
        score = self.config.score
        chosen = judge.choices(self.judge, questions, "yes", "no", score, self.config.retries)
        each = iter([probability(value, score) for value in chosen])
        return [(criteria, [next(each) for _ in criteria]) for criteria in wanted]

    def _criteria(self, sample: Sample) -> list[Criterion]:
        own: Any = sample.metadata.get(self.config.field, []) if self.config.field else []
        try:
            listed = own if isinstance(own, list) else [own]
            return [_criterion(one) for one in (*self.config.criteria, *listed)]
        except ValidationError:
            raise UsageError(
                f"the field '{self.config.field}' of a prompt is no list of criteria: {own!r}",
                hint="write sentences, or objects with 'text' and 'weight'",
                code="wrong-data",
            ) from None


def _criterion(value: Criterion | str | Mapping[str, Any]) -> Criterion:
    if isinstance(value, Criterion):
        return value
    return Criterion.model_validate({"text": value} if isinstance(value, str) else value)
