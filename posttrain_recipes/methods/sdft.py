"""Self-distillation fine-tuning (Shenfeld et al. 2026, arXiv 2601.19897).

    loss = - sum_t sum_{k in S_t} q(k | x, d, y_<t) log p(k | x, y_<t) / T,   y ~ p(. | x)

The student p answers the prompt x of an example by itself. The teacher q is the model that the
stage starts from, shown the example's own answer d as a demonstration; at each of the T tokens of
the student's answer the student learns the teacher's `top_k` likeliest next tokens S_t, with
their probabilities renormalized. That is the forward KL to the teacher along the student's own
replies, as close as `top_k` comes to the vocabulary.

What the model cannot do with a demonstration in sight it does not learn; what it would say anyway
is left as it is, so that less is forgotten than by imitating d itself.

The teacher is the stage's own start also where that is another stage's checkpoint, and also after
a resume. Departs from the paper: no moving average of the student as the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

from pydantic import Field, field_validator

from posttrain_recipes.plugin import (
    AskedOf,
    Checkpoint,
    Conversation,
    CountTokens,
    Method,
    ModelRef,
    Record,
    Rendered,
    Renderer,
    StageContext,
    Workload,
)
from posttrain_recipes.records import Messages
from posttrain_recipes.training.distill import teachers
from posttrain_recipes.training.distill.on_policy import (
    WATCHED,
    Attempt,
    Numbers,
    OnPolicy,
    OnPolicyConfig,
    StudentPrompt,
    prompt_tokens,
    retold,
)
from posttrain_recipes.training.loops import supervised, token_counts
from posttrain_recipes.training.text import rendered

if TYPE_CHECKING:
    import tinker

TEMPLATE = """\
{question}

This is an example for a response to the question:
{answer}

Now answer with a response of your own, including the thinking process:"""


class SDFT(Method):
    """Self-distillation: learn what the model itself says when it is shown a demonstration.

    When: there are demonstrations, as for sft, and what the model already can must not be lost.
    When not: the model is too weak to make use of an example in its prompt (sft).
    """

    name = "sdft"
    takes: ClassVar[tuple[type[Record], ...]] = (Conversation,)
    needs = ("targets:several", "sample:trained", "prompt_logprobs:top_k")
    loss = "-sum(q * log p) / T along the student's replies, q the start shown the demonstration"
    paper = "Shenfeld et al. 2026, Self-distillation enables continual learning, arXiv 2601.19897"

    class Config(OnPolicyConfig):
        """Options of self-distillation."""

        top_k: Annotated[int, AskedOf.LIKELIEST] = Field(default=20, ge=1, le=100)
        """How many of the teacher's likeliest tokens are learned at each position."""
        skip_tokens: int = Field(default=0, ge=0)
        """First tokens of a reply that are not learned, where the teacher mentions the example."""
        template: str = TEMPLATE
        """How the teacher is shown the demonstration, with {question} and {answer}."""

        @field_validator("template")
        @classmethod
        def _has_both(cls, template: str) -> str:
            if "{question}" not in template or "{answer}" not in template:
                raise ValueError("'template' has to have {question} and {answer} in it")
            return template

    config: Config

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """The student's replies, read by the start with the demonstration in sight."""
        records = [cast(Conversation, record) for record in sample]
        return token_counts.answers(
            self.config,
            [tokens(record.messages[:-1]) for record in records],
            count,
            max_tokens=self.config.max_tokens,
            group_size=self.config.group_size,
            read=[[tokens(self._shown(record)) for record in records]],
        )

    def rendered(
        self, record: Record, renderers: Callable[[ModelRef | None], Renderer]
    ) -> Sequence[Rendered]:
        """The prompt as the student reads it, and as the teacher does, with the demonstration."""
        example, renderer = cast(Conversation, record), renderers(None)
        return [
            rendered.prompt(example.messages[:-1], renderer, "the student reads"),
            rendered.prompt(self._shown(example), renderer, "the teacher reads"),
        ]

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the prompts of the stage's conversations, with their last replies shown."""
        config = self.config
        items = []
        for record in cast(Sequence[Conversation], stage.train):
            question, shown = record.messages[:-1], self._shown(record)
            student, teacher = (
                prompt_tokens(messages, stage.renderer, config, record.source)
                for messages in (question, shown)
            )
            items.append(_Demonstration(student, teacher))
        return supervised.train(stage, config, items, _Demonstrated(stage, config))

    def _shown(self, record: Conversation) -> Messages:
        """The prompt with the demonstration in its last message."""
        *prompt, demonstration = record.messages
        template, answer = self.config.template, demonstration.content
        return retold(tuple(prompt), template, record.source, answer=answer)


class _Demonstration(StudentPrompt):
    def __init__(self, prompt: list[int], shown: list[int]) -> None:
        self.prompt = prompt
        self.shown = shown
        """Token ids of the prompt with the demonstration, for the teacher."""


class _Demonstrated(OnPolicy[_Demonstration]):
    config: SDFT.Config

    def __init__(self, stage: StageContext, config: SDFT.Config) -> None:
        super().__init__(stage, config)
        self.teacher = stage.sampling_client(stage.start)

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[_Demonstration]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        skip, top_k = self.config.skip_tokens, self.config.top_k
        asked = [
            (y, teachers.ask_top_k(self.teacher, item.shown, y.tokens, top_k))
            if len(y.tokens) > skip
            else (y, None)
            for item, y in self.attempts(client, batch)  # y ~ p(. | x)
        ]
        attempts = [y for y, _ in asked]
        learned = [
            (y, teachers.top_k(self.stage.wait(future), len(y.tokens) - skip))  # q(k | x, d, y_<t)
            for y, future in asked
            if future is not None
        ]
        self.watch(*_watched(learned[:WATCHED]))
        shown = teachers.shown([q for _, q in learned])
        self.showed(attempts, shown.metrics(0.0))
        if not learned:  # a step that changes nothing, so that the count of steps holds
            nothing = [teachers.hard_datum(y, 0.0) for y in attempts]
            return client.forward_backward(nothing, "cross_entropy")
        T = sum(len(q.ids) for _, q in learned)
        data = [teachers.soft_datum(y, q, 1 / T) for y, q in learned]
        return client.forward_backward(data, "cross_entropy")  # - sum_t sum_k q log p / T

    def loss(self, loss_sum: float, shown: Mapping[str, float]) -> dict[str, float]:
        return {"train/loss": loss_sum, "kl": loss_sum - shown["teacher/entropy"]}


def _watched(
    learned: Sequence[tuple[Attempt, teachers.SoftTargets]],
) -> tuple[list[Attempt], list[Numbers]]:
    """log p/q of each token that the student wrote, where it is one of the teacher's likeliest."""
    numbers: list[Numbers] = []
    for y, q in learned:
        found: list[float | None] = [None] * (len(y.tokens) - len(q.ids))
        own = zip(y.tokens[-len(q.ids) :], y.logprobs[-len(q.ids) :], q.ids, q.weights, strict=True)
        for token, log_p, ids, weights in own:
            weight = float(weights[ids == token].sum())
            found.append(log_p - math.log(weight) if weight > 0 else None)
        numbers.append({"reverse_kl": found})
    return [y for y, _ in learned], numbers
