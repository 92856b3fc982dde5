"""Best of n: of several replies to a prompt, keep those that the reward likes best.

    y* = argmax r(x, y_i),   y_1 .. y_n ~ p(. | x)

Imitated by sft, the best replies are rejection-sampling fine-tuning (RAFT: Dong et al. 2023, arXiv
2304.06767, algorithm 1, one round of it); the best beside the worst is a pair for dpo and its kin.
Nothing is trained here. Departs from the paper where replies tie: the first one is the best, the
same text is kept once, and a prompt whose replies are all worth the same makes no pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from pydantic import Field, model_validator

from posttrain_recipes.methods.ai_preferences import preference
from posttrain_recipes.plugin import (
    Conversation,
    CountTokens,
    DataMethod,
    Message,
    ModelRef,
    Preference,
    Prompt,
    Record,
    Rendered,
    Renderer,
    StageContext,
    Workload,
)
from posttrain_recipes.training.loops import token_counts
from posttrain_recipes.training.sampling import datagen
from posttrain_recipes.training.text import rendered


class BestOfN(DataMethod):
    """Makes conversations of the best of n replies to each prompt, and pairs of best and worst.

    When: a reward can be computed and the model is right now and then: sft on its own best replies
    is the simplest way to follow a reward, and dpo on the pairs the next one. When not: it is never
    right (teach it first, sft), or the reward can be fooled: n replies search for its mistakes.
    """

    name = "best_of_n"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    makes: ClassVar[tuple[type[Record], ...]] = (Conversation, Preference)
    takes_reward: ClassVar[bool] = True
    needs = ("sample:group",)
    loss = "none: it keeps argmax r(x, y) of n replies y ~ p(. | x), for a later -log p(y | x)"
    paper = "Dong et al. 2023, RAFT: reward ranked fine-tuning, arXiv 2304.06767"

    class Config(datagen.MakingConfig):
        """Options of choosing by reward."""

        model: ModelRef | None = None
        """Who replies; the stage's own start where not given."""
        n: int = Field(default=8, ge=2)
        """Replies to each prompt."""
        keep: int = Field(default=1, ge=1)
        """Keep this many different replies to each prompt, those with the highest reward."""
        min_reward: float | None = None
        """Keep only replies whose reward is at least this; a pair's better reply has to reach it
        too. Where not given, a reply passes (`pass_at_n`) with a reward above 0."""

        @model_validator(mode="after")
        def _keeps_some(self) -> BestOfN.Config:
            if self.keep >= self.n:
                raise ValueError(f"'keep: {self.keep}' of n={self.n} replies chooses nothing")
            return self

    config: Config

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """`n` replies to every prompt."""
        lengths = [tokens(cast(Prompt, record).messages) for record in sample]
        return token_counts.made(self.config, lengths, count, self.config.n)

    def rendered(
        self, record: Record, renderers: Callable[[ModelRef | None], Renderer]
    ) -> Sequence[Rendered]:
        """The prompt, as whoever replies to it reads it."""
        return [rendered.prompt(cast(Prompt, record).messages, renderers(self.config.model))]

    def make(self, stage: StageContext, skip: int) -> Iterator[Sequence[Record]]:
        """A batch of prompts at a time."""
        config = self.config
        replies = datagen.rewarded_replies(stage, config, config.model, config.n, skip)
        for number, group, answers in replies:
            scored = self._scored(stage, group, answers)
            best = [self._best(one) for one in scored]
            conversations = [
                Conversation(messages=(*one.prompt.messages, Message("assistant", text)))
                for one, kept in zip(scored, best, strict=True)
                for text in kept
            ]
            pairs = [
                preference(one.prompt.messages, kept[0], one.ranked[-1][1])
                for one, kept in zip(scored, best, strict=True)
                if kept and one.ranked[0][0] > one.ranked[-1][0]
            ]
            written = [reply for said in answers for reply in said]
            stage.sink.log(
                {
                    **self._measured(scored),
                    "data/kept": len(conversations),
                    "data/kept_share": len(conversations) / len(written),
                    "data/pairs": len(pairs),
                    "data/truncated": datagen.cut_share(written),
                },
                number,
            )
            yield [*conversations, *pairs]

    def _scored(
        self,
        stage: StageContext,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[datagen.Completion]],
    ) -> list[_Scored]:
        """Whole replies with their rewards, the best first; those without a reward are left out."""
        samples = [
            [a.sample(p) for a in said if a.usable]
            for p, said in zip(prompts, answers, strict=True)
        ]
        totals = iter(datagen.totals(stage.rewards, [one for group in samples for one in group]))
        return [
            _Scored(
                prompt,
                sorted(
                    [(r, s.completion) for s in group if (r := next(totals)) is not None],
                    key=lambda one: -one[0],
                ),
            )
            for prompt, group in zip(prompts, samples, strict=True)
        ]

    def _best(self, one: _Scored) -> list[str]:
        bar = self.config.min_reward
        good = [text for reward, text in one.ranked if bar is None or reward >= bar]
        return list(dict.fromkeys(good))[: self.config.keep]

    def _measured(self, scored: Sequence[_Scored]) -> dict[str, float]:
        """How good the replies are: all of them, and the best of each prompt."""
        groups = [[reward for reward, _ in one.ranked] for one in scored if one.ranked]
        if not groups:
            return {}
        every = [reward for group in groups for reward in group]
        best = [group[0] for group in groups]
        return {
            "reward/mean": sum(every) / len(every),
            "reward/best": sum(best) / len(best),
            "reward/pass_at_1": sum(map(self._passes, every)) / len(every),
            "reward/pass_at_n": sum(map(self._passes, best)) / len(best),
        }

    def _passes(self, reward: float) -> bool:
        bar = self.config.min_reward
        return reward > 0 if bar is None else reward >= bar


@dataclass(frozen=True)
class _Scored:
    """The replies to one prompt, with their rewards, the best first."""

    prompt: Prompt
    ranked: list[tuple[float, str]]
