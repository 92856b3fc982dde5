"""Sampling a teacher: it answers prompts, and its answers are what later stages imitate.

The data of sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947) where the teacher is
another model; with a `reward` the data of rejection sampling, where of several answers to a prompt
only the good ones are kept. Nothing is trained: the stage leaves Conversation records, which
`dataset: {use: collected, stage: ...}` reads, and its checkpoint is where it started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, cast

from pydantic import Field, model_validator

from posttrain_recipes.plugin import (
    Conversation,
    CountTokens,
    DataMethod,
    Message,
    ModelRef,
    Prompt,
    Record,
    Rendered,
    Renderer,
    StageContext,
    UsageError,
    Workload,
)
from posttrain_recipes.training.loops import token_counts
from posttrain_recipes.training.sampling import datagen
from posttrain_recipes.training.text import rendered
from posttrain_recipes.training.text.instructions import instructed


class TeacherSamples(DataMethod):
    """Makes conversations of prompts and a teacher's answers, all of them or the rewarded ones.

    When: a stronger model, or the model itself under instructions, can answer what the student
    should; the answers are made once and can be read and kept. When not: the student should learn
    from its own mistakes (distill_on_policy), or there are answers already.
    """

    name = "teacher_samples"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    makes: ClassVar[tuple[type[Record], ...]] = (Conversation,)
    takes_reward: ClassVar[bool] = True
    needs_reward: ClassVar[bool] = False
    needs = ("sample:group",)
    loss = "none: it samples y ~ q(. | x), for a later stage's -log p(y | x)"
    paper = "Kim and Rush 2016, Sequence-level knowledge distillation, arXiv 1606.07947"

    class Config(datagen.MakingConfig):
        """Options of sampling a teacher."""

        teacher: ModelRef | None = None
        """Who answers; the stage's own start where not given."""
        system: str | None = None
        """Instructions that the teacher reads as a system message; they are left out of what it
        leaves."""
        samples: int = Field(default=1, ge=1)
        """Answers to each prompt."""
        best: int | None = Field(default=None, ge=1)
        """Keep this many answers to each prompt, those with the highest reward."""
        min_reward: float | None = None
        """Keep only answers whose reward is at least this."""

        @model_validator(mode="after")
        def _best_of_how_many(self) -> TeacherSamples.Config:
            if self.best is not None and self.best > self.samples:
                raise ValueError(f"'best: {self.best}' of {self.samples} samples; raise 'samples'")
            return self

    config: Config

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """`samples` answers to every prompt, with the instructions that the teacher reads."""
        system = self.config.system
        asked = [cast(Prompt, record).messages for record in sample]
        lengths = [tokens(instructed(m, system) if system else m) for m in asked]
        return token_counts.made(self.config, lengths, count, self.config.samples)

    def rendered(
        self, record: Record, renderers: Callable[[ModelRef | None], Renderer]
    ) -> Sequence[Rendered]:
        """The prompt as the teacher reads it, with its instructions."""
        config, messages = self.config, cast(Prompt, record).messages
        asked = instructed(messages, config.system) if config.system else messages
        return [rendered.prompt(asked, renderers(config.teacher), "the teacher reads")]

    def make(self, stage: StageContext, skip: int) -> Iterator[Sequence[Conversation]]:
        """A batch of prompts at a time."""
        config = self.config
        if not stage.rewards and (config.best is not None or config.min_reward is not None):
            raise UsageError(
                f"stage '{stage.name}' is to choose by reward and has no 'reward:'",
                hint="add one, or remove 'best' and 'min_reward'",
                code="missing-key",
            )
        teacher = datagen.served(stage, config.teacher)
        groups = datagen.batches(cast(Sequence[Prompt], stage.train), config.batch_size)
        asked = [
            [instructed(p.messages, config.system) if config.system else p.messages for p in group]
            for group in groups
        ]
        stage.sink.begin(len(groups))
        datagen.open_rewards(stage)
        replies = datagen.ahead(
            teacher, asked, skip, stage.wait, count=config.samples, config=config, seed=stage.seed
        )
        for number, answers in replies:
            pairs = list(zip(groups[number - 1], answers, strict=True))
            usable = [(prompt, [a for a in said if a.usable]) for prompt, said in pairs]
            kept = self._chosen(stage, usable) if stage.rewards else usable
            records = [
                Conversation(messages=(*prompt.messages, Message("assistant", one.text)))
                for prompt, chosen in kept
                for one in chosen
            ]
            every = [reply for said in answers for reply in said]
            stage.sink.log(
                {
                    "data/kept": len(records),
                    "data/truncated": datagen.cut_share(every),
                    "data/kept_share": len(records) / len(every),
                },
                number,
            )
            yield records

    def _chosen(
        self, stage: StageContext, answers: Sequence[tuple[Prompt, list[datagen.Completion]]]
    ) -> list[tuple[Prompt, list[datagen.Completion]]]:
        """The answers that the rewards, weighted and summed, leave; one that abstains drops it."""
        samples = [one.sample(prompt) for prompt, usable in answers for one in usable]
        scores = iter(datagen.totals(stage.rewards, samples))
        kept = []
        for prompt, usable in answers:
            scored = [(score, one) for one in usable if (score := next(scores)) is not None]
            if self.config.min_reward is not None:
                scored = [one for one in scored if one[0] >= self.config.min_reward]
            if self.config.best is not None:
                scored = sorted(scored, key=lambda one: -one[0])[: self.config.best]
            kept.append((prompt, [one for _, one in scored]))
        return kept
