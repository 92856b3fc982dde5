"""The reward of a task's own rule."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain_recipes.plugin import PluginConfig, Reward, Sample
from ptl_reasoning_gym import forms, guard, library
from ptl_reasoning_gym.datasets import item_of

log = logging.getLogger(__name__)
_told: set[str] = set()
SOLVED = 0.999
"""From this score on an answer is right: some scores are computed."""


@dataclass(frozen=True)
class Judged:
    """What a reply is worth."""

    score: float
    """What `score_answer` said, between 0 and 1; 0 where the reply has no answer in it."""
    answered: bool
    """Whether an answer stands where it should."""

    @property
    def solved(self) -> bool:
        """Whether it is right."""
        return self.score >= SOLVED


def judge(sample: Sample) -> Judged | None:
    """Read the answer in a reply and have its task score it; None for prompts of other data sets.

    An answer on which `score_answer` fails, or that it would run as a program, is worth nothing.
    """
    found = item_of(sample.metadata)
    if found is None:
        return None
    item, form = found
    answer = forms.read(sample.completion, form)
    if answer is None:
        return Judged(0.0, answered=False)
    if not guard.harmless(item.task, answer):
        return Judged(0.0, answered=True)
    try:
        return Judged(item.score(answer), answered=True)
    except Exception as error:
        if item.task not in _told:
            _told.add(item.task)
            log.warning(
                "reasoning-gym: score_answer of '%s' fails on some answers, which are worth 0; "
                "the first: %.80r (%s)",
                item.task,
                answer,
                error,
            )
        return Judged(0.0, answered=True)


class ReasoningGymReward(Reward):
    """What a task's own `score_answer` says of the answer that stands in a reply.

    For prompts of the dataset `reasoning_gym`, which say in which form a reply has its answer; a
    reply without one is worth 0. Other prompts are abstained on.
    """

    name = "reasoning_gym"

    class Config(PluginConfig):
        """Options of the reward."""

        partial: bool = True
        """What the task gives to answers that are partly right counts; false: they are worth 0."""

    config: Config

    def digest(self) -> str:
        """The version of the library, whose rules these are."""
        return f"reasoning-gym {library.version()}"

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """The scores, between 0 and 1."""
        judged = [judge(sample) for sample in samples]
        if self.config.partial:
            return [None if one is None else one.score for one in judged]
        return [None if one is None else float(one.solved) for one in judged]
