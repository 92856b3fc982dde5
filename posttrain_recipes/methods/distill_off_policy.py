"""Off-policy distillation: learn a teacher's words, or all that it might have said instead.

    hard:  - sum_t log p(x_t | x_<t) / T
    soft:  - sum_t sum_{k in S_t} q_t(k) log p(k | x_<t) / T

over the T tokens of the replies of a batch. x is text that the teacher wrote (sequence-level
distillation, Kim and Rush 2016, arXiv 1606.07947), or any text; q_t is the teacher's distribution
at each position of it (Hinton, Vinyals and Dean 2015, arXiv 1503.02531), and S_t its `top_k`
likeliest tokens. q_t is renormalized over S_t, so that every position weighs the same; what S_t
leaves out is logged as `teacher/mass`. There is no temperature: Tinker's cross-entropy has the
student at temperature 1.

The teacher is asked along the way, one batch ahead, in the tokens of the student. It is fixed, so
that a resumed stage sees the same targets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

from pydantic import Field

from posttrain_recipes.methods.sft import Likelihood
from posttrain_recipes.plugin import (
    AskedOf,
    Checkpoint,
    Conversation,
    CountTokens,
    Method,
    ModelRef,
    Record,
    StageContext,
    Usage,
    UsageError,
    Workload,
)
from posttrain_recipes.training.distill import teachers
from posttrain_recipes.training.distill.teachers import TokenizedReply
from posttrain_recipes.training.loops import supervised, token_counts
from posttrain_recipes.training.text.examples import Example, tokenize, usable

if TYPE_CHECKING:
    import tinker


class DistillOffPolicy(Method):
    """Off-policy distillation: learn text of a teacher, or its distribution over each next token.

    When: a stronger model's answers are at hand, or its probabilities too, which tell far more
    of a token than which one it was; to make a smaller model of a large one. When not: the
    student's own mistakes matter, since it learns on text that it would not write itself
    (distill_on_policy); the teacher has another tokenizer (sft on its text).
    """

    name = "distill_off_policy"
    takes: ClassVar[tuple[type[Record], ...]] = (Conversation,)
    same_tokenizer: ClassVar[tuple[str, ...]] = ("teacher",)
    needs = ("targets:several", "prompt_logprobs:top_k")
    loss = "-sum(q * log p) / T, with q the teacher's top-k probabilities (or 1 for the token said)"
    streams = True
    paper = "Hinton et al. 2015, Distilling the knowledge in a neural network, arXiv 1503.02531"

    class Config(supervised.GradientConfig):
        """Options of off-policy distillation."""

        teacher: ModelRef | None = None
        """Whose probabilities are learned; without one the text itself is, token by token."""
        top_k: Annotated[int, AskedOf.LIKELIEST] = Field(default=20, ge=1, le=100)
        """How many of the teacher's likeliest tokens are learned at each position."""

    config: Config

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """As imitation; a teacher reads what is learned."""
        lengths = [tokens(cast(Conversation, record).messages) for record in sample]
        taught = self.config.teacher is not None
        return token_counts.imitation(self.config, lengths, count, taught=taught)

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the last replies of the stage's conversations."""

        def example(record: Record) -> Example:
            return tokenize(
                cast(Conversation, record).messages,
                stage.renderer,
                max_length=self.config.max_length,
                truncate=self.config.truncate,
                source=record.source,
            )

        examples = usable(example, stage.train, truncate=self.config.truncate)
        if self.config.teacher is None:
            return supervised.train(stage, self.config, examples, Likelihood())

        def reply(one: Example) -> TokenizedReply:
            begin = next(t for t, weight in enumerate(one.weights) if weight)
            if set(one.weights[begin:]) != {1.0}:
                raise UsageError(
                    "a teacher's probabilities are learned of one reply, whole, and a conversation "
                    "has other weights",
                    hint="remove 'weight' and 'train' from its messages, or learn its text ('sft')",
                )
            return TokenizedReply(one.tokens[:begin], one.tokens[begin:])

        replies = usable(reply, examples, truncate=False)
        return supervised.train(stage, self.config, replies, _Soft(stage, self.config))


class _Soft:
    def __init__(self, stage: StageContext, config: DistillOffPolicy.Config) -> None:
        assert config.teacher is not None
        self.wait = stage.wait
        self.top_k = config.top_k
        self.teacher = stage.resolve(config.teacher).sampler
        self.asked: deque[list[tinker.APIFuture[tinker.SampleResponse]]] = deque()
        self.shown: deque[teachers.Shown] = deque()

    def prepare(self, batch: Sequence[TokenizedReply]) -> None:
        self.asked.append(
            [teachers.ask_top_k(self.teacher, r.prompt, r.tokens, self.top_k) for r in batch]
        )

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[TokenizedReply]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        targets = [
            teachers.top_k(self.wait(future), len(reply.tokens))
            for reply, future in zip(batch, self.asked.popleft(), strict=True)
        ]
        scale = 1 / sum(len(reply.tokens) for reply in batch)
        self.shown.append(teachers.shown(targets))
        return client.forward_backward(
            [teachers.soft_datum(r, t, scale) for r, t in zip(batch, targets, strict=True)],
            "cross_entropy",
        )

    def metrics(
        self, batch: Sequence[TokenizedReply], output: tinker.ForwardBackwardOutput
    ) -> Mapping[str, float]:
        return self.shown.popleft().metrics(output.metrics["loss:sum"])

    def usage(self, batch: Sequence[TokenizedReply]) -> Usage:
        return Usage(train=sum(len(reply.prompt) + len(reply.tokens) for reply in batch))
