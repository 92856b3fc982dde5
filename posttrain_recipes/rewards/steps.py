"""Another reward of each step of a reply, as a process reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from posttrain_recipes.plugin import (
    PluginConfig,
    Reward,
    RewardContext,
    RewardRef,
    Sample,
    StepMark,
    UsageError,
)


class Steps(Reward):
    """The mean over a reply's steps of another reward, which is asked of the reply up to each.

    In `grpo` a token is credited with the steps that end after it, so that a good reply's wrong
    step is told from its right ones (process supervision: Shao et al. 2024, arXiv 2402.03300,
    section 4.1.3; Lightman et al. 2023, arXiv 2305.20050). Elsewhere it is the mean. Where any step
    abstains, so does the reply.
    """

    name = "steps"

    class Config(PluginConfig):
        """Options of the reward."""

        of: RewardRef
        """The reward that marks a step, from all that was said up to its end."""
        ends_with: str = Field(default="\n", min_length=1)
        """What ends a step; what follows the last one is a step too."""

    config: Config

    @property
    def asks_model(self) -> bool:
        """Where the other reward does."""
        return self.rewards["of"].asks_model

    @property
    def needs(self) -> Sequence[str]:
        """What the other reward needs."""
        return self.rewards["of"].needs if "of" in self.rewards else ()

    def open(self, context: RewardContext) -> None:
        """Have the other reward get ready."""
        self.rewards["of"].open(context)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """The mean of the marks of each reply."""
        marked = self.steps(samples)
        return [sum(m.reward for m in marks) / len(marks) if marks else None for marks in marked]

    def steps(self, samples: Sequence[Sample]) -> list[list[StepMark] | None]:
        """A mark for each step that says something."""
        ends = [self._ends(sample.completion) for sample in samples]
        parts = [
            replace(sample, completion=sample.completion[:end], truncated=False)
            for sample, places in zip(samples, ends, strict=True)
            for end in places
        ]
        reward = self.rewards["of"]
        with reward.lock:
            scores = iter(reward.score(parts) if parts else ())
        found: list[list[StepMark] | None] = []
        for places in ends:
            marks = [(end, next(scores)) for end in places]
            known = [StepMark(end, mark) for end, mark in marks if mark is not None]
            found.append(known if len(known) == len(marks) else None)
        if next(scores, self) is not self:
            raise UsageError(
                "the reward of 'steps' gave more scores than it was asked for", code="reward-failed"
            )
        return found

    def _ends(self, text: str) -> list[int]:
        """Where each step ends, in characters; blank ones belong to the step before."""
        ends, begin = [], 0
        for line in text.split(self.config.ends_with):
            end = min(len(text), begin + len(line) + len(self.config.ends_with))
            if line.strip():
                ends.append(end)
            elif ends:
                ends[-1] = end
            begin = end
        return ends
