"""Constitutional AI (Bai et al. 2022, arXiv 2212.08073): answer, criticise by a principle, revise.

The policy answers a prompt. A principle of the constitution is drawn, the critic says in words what
about the answer goes against it, and then rewrites the answer; with `rounds` more than one the
rewritten answer is criticised again, by another principle. What it leaves, for each prompt:

    a Conversation    the prompt and the last revision         (their supervised stage: sft)
    a Preference      the last revision over the first answer  (for dpo and its kin)

No human label is read: of a prompt's record only its messages are. Departs from the paper: the
pairs come from the revisions, where the paper has a model choose between two new samples; that is
the method ai_preferences.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from pydantic import Field

from posttrain_recipes.methods.ai_preferences import preference
from posttrain_recipes.plugin import (
    Conversation,
    DataMethod,
    Message,
    ModelRef,
    Preference,
    Prompt,
    Record,
    ServedModel,
    StageContext,
)
from posttrain_recipes.records import Messages
from posttrain_recipes.training.judges import judge
from posttrain_recipes.training.sampling import datagen


class Constitutional(DataMethod):
    """Makes conversations and pairs: the policy answers, and revises by a written principle.

    When: what is wanted can be put in a few sentences, and the model can tell and mend what goes
    against them. When not: it cannot, as its revisions then teach nothing (look at some of them),
    or there are people's preferences.
    """

    name = "constitutional"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    makes: ClassVar[tuple[type[Record], ...]] = (Conversation, Preference)
    needs = ("sample:group",)
    loss = "none: it samples answers, critiques and revisions, for -log p(revision) or a pair loss"
    paper = "Bai et al. 2022, Constitutional AI: harmlessness from AI feedback, arXiv 2212.08073"

    class Config(datagen.MakingConfig):
        """Options of revision by principles."""

        principles: list[str] = Field(
            default=["The reply should be helpful, honest and harmless."], min_length=1
        )
        """The constitution; one of them is drawn for each prompt and round."""
        critic: ModelRef | None = None
        """Who criticises and revises; the stage's own start where not given."""
        samples: int = Field(default=1, ge=1)
        """Answers to each prompt, each of which is revised."""
        rounds: int = Field(default=1, ge=1)
        """How often an answer is criticised and revised."""
        critique: str = (
            "Request: {prompt}\nReply: {reply}\nPrinciple: {principle}\nCritique the reply."
        )
        """What the critic is asked first, with {prompt}, {reply} and {principle}."""
        revise: str = "Rewrite the reply."
        """What it is asked then, in the same conversation."""

    config: Config

    def make(self, stage: StageContext, skip: int) -> Iterator[Sequence[Record]]:
        """A batch of prompts at a time."""
        config = self.config
        critic = datagen.served(stage, config.critic)
        groups = datagen.batches(cast(Sequence[Prompt], stage.train), config.batch_size)
        stage.sink.begin(len(groups))
        replies = datagen.ahead(
            datagen.served(stage, None),
            [[prompt.messages for prompt in group] for group in groups],
            skip,
            stage.wait,
            count=config.samples,
            config=config,
            seed=stage.seed,
        )
        for number, answers in replies:
            drafts = [
                _Draft(prompt.messages, answer.text)
                for prompt, written in zip(groups[number - 1], answers, strict=True)
                for answer in written
                if answer.usable
            ]
            critiques: list[datagen.Completion] = []
            revisions: list[datagen.Completion] = []
            for turn in range(config.rounds):
                said = self._revise(stage, critic, drafts, f"{stage.seed}:{number}:{turn}")
                critiques += said[0]
                revisions += said[1]
            whole = [draft for draft in drafts if draft.revision]
            records: list[Record] = []
            for draft in whole:
                revised = Message("assistant", draft.revision)
                records.append(Conversation(messages=(*draft.prompt, revised)))
                if draft.revision != draft.answer:
                    records.append(preference(draft.prompt, draft.revision, draft.answer))
            changed = sum(draft.revision != draft.answer for draft in whole)
            stage.sink.log(
                {
                    "data/kept": len(records),
                    "data/revised": changed / max(1, len(whole)),
                    "data/unusable": len(groups[number - 1]) * config.samples - len(whole),
                    "data/truncated": datagen.cut_share([a for said in answers for a in said]),
                    "critic/truncated_critiques": datagen.cut_share(critiques),
                    "critic/truncated_revisions": datagen.cut_share(revisions),
                },
                number,
            )
            yield records

    def _revise(
        self, stage: StageContext, critic: ServedModel, drafts: Sequence[_Draft], seed: str
    ) -> tuple[list[datagen.Completion], list[datagen.Completion]]:
        """One round: a critique of every draft's last version, and a new one; returns both.

        A draft whose critique or revision is empty or cut off keeps the version that it had.
        """
        config = self.config
        principles = random.Random(seed).choices(config.principles, k=len(drafts))
        asked: list[Messages] = [
            judge.question(
                config.critique,
                prompt=judge.transcript(draft.prompt),
                reply=draft.revision or draft.answer,
                principle=principle,
            )
            for draft, principle in zip(drafts, principles, strict=True)
        ]
        critiques = self._said(stage, critic, asked, f"{seed}:critique")
        told: list[Messages] = [
            (*ask, Message("assistant", _whole(critique) or "-"), Message("user", config.revise))
            for ask, critique in zip(asked, critiques, strict=True)
        ]
        revisions = self._said(stage, critic, told, f"{seed}:revision")
        for draft, critique, revision in zip(drafts, critiques, revisions, strict=True):
            if critique.usable and revision.usable:
                draft.revision = revision.text
        return critiques, revisions

    def _said(
        self, stage: StageContext, critic: ServedModel, asked: Sequence[Messages], seed: str
    ) -> list[datagen.Completion]:
        """A reply to each."""
        config = self.config
        futures = datagen.ask(
            critic,
            asked,
            count=1,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=seed,
        )
        return [reply for (reply,) in datagen.written(futures, critic.renderer, stage.wait)]


def _whole(reply: datagen.Completion) -> str:
    """A reply that is whole; empty where it was cut."""
    return reply.text if reply.usable else ""


@dataclass
class _Draft:
    """An answer on its way through the rounds."""

    prompt: Messages
    answer: str
    revision: str = ""
