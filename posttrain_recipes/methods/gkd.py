"""Generalized knowledge distillation (Agarwal et al. 2023, arXiv 2306.13649, algorithm 1).

    loss = sum_t JSD_beta(q(. | x, y_<t), p(. | x, y_<t)) / T
    JSD_beta(q, p) = beta KL(q || m) + (1 - beta) KL(p || m),   m = beta q + (1 - beta) p

with p the student and q the teacher. The reply y is the student's own with probability lambda
(`student_share`), and otherwise that of the data or one that the teacher writes (`others`). beta
goes from the forward KL (0), which covers all that the teacher might say, to the reverse KL (1),
which keeps to what it would say most; no gradient flows through the sampling of y.

The divergence is taken over the teacher's `top_k` likeliest tokens and one outcome more, any other
token: `training.distill.divergence`. Departs from the paper: it is not over the whole vocabulary;
there is no temperature but 1, as logits are not to be had; and who writes is drawn for each prompt,
not for each batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    AskedOf,
    Checkpoint,
    Conversation,
    CountTokens,
    Method,
    ModelRef,
    Prompt,
    Record,
    StageContext,
    Usage,
    UsageError,
    Workload,
)
from posttrain_recipes.records import Messages
from posttrain_recipes.training.distill import divergence, teachers
from posttrain_recipes.training.distill.on_policy import (
    WATCHED,
    Attempt,
    OnPolicy,
    OnPolicyConfig,
    StudentPrompt,
    prompt_tokens,
)
from posttrain_recipes.training.loops import supervised, token_counts
from posttrain_recipes.training.requests import derive_seed
from posttrain_recipes.training.text.examples import tokenize, usable

if TYPE_CHECKING:
    import tinker


class GKD(Method):
    """Generalized knowledge distillation: any divergence, on the student's replies and on others.

    When: the student's own replies are often too poor to be worth marking, so that good ones have
    to be among them; or the whole distribution of the teacher is wanted and not its word on one
    token. When not: the teacher has another tokenizer (distill_on_policy), or the student writes
    well enough (distill_on_policy, at half the passes).
    """

    name = "gkd"
    takes: ClassVar[tuple[type[Record], ...]] = (Conversation, Prompt)
    same_tokenizer: ClassVar[tuple[str, ...]] = ("teacher",)
    needs = ("custom_loss", "targets:several", "sample:trained", "prompt_logprobs:top_k")
    loss = (
        "sum(beta * q * (log q - log m) + (1 - beta) * p * (log p - log m)) / T, "
        "m = beta * q + (1 - beta) * p, q the teacher's"
    )
    paper = "Agarwal et al. 2023, On-policy distillation of language models, arXiv 2306.13649"

    class Config(OnPolicyConfig):
        """Options of generalized knowledge distillation."""

        teacher: ModelRef
        """Whose probabilities are learned."""
        student_share: float = Field(default=0.5, ge=0, le=1)
        """Share of the prompts that the student answers itself, drawn anew at each: lambda."""
        others: Literal["data", "teacher"] = "data"
        """Whose replies there are to the other prompts: the data's own, of conversations, or such
        as the teacher writes at that step."""
        beta: float = Field(default=0.5, ge=0, le=1)
        """Which divergence: 0 is the forward KL, 1 the reverse KL, in between a Jensen-Shannon."""
        top_k: Annotated[int, AskedOf.LIKELIEST] = Field(default=20, ge=1, le=100)
        """How many of the teacher's likeliest tokens are told apart at each position; all others
        count as one."""

        @property
        def reads_replies(self) -> bool:
            """Whether the data's own replies are learned."""
            return self.others == "data" and self.student_share < 1

    config: Config

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Replies that are written or given, read by the teacher, and passed through twice."""
        config = self.config
        lengths = [tokens(_prompt(record)) for record in sample]
        work = token_counts.answers(
            config,
            lengths,
            count,
            max_tokens=config.max_tokens,
            group_size=config.group_size,
            read=[lengths],
        )
        if config.reads_replies:
            whole = [tokens(cast(Conversation, record).messages) for record in sample]
            given = token_counts.imitation(config, whole, count, taught=True).usage
            share = config.student_share
            work = replace(work, usage=work.usage.scaled(share) + given.scaled(1 - share))
        again = Usage(prefill=work.usage.train, forward=work.usage.train)
        return replace(work, usage=work.usage + again, about=True)

    def check(self, records: Sequence[Record]) -> None:
        """Prompts alone have no replies of the data's."""
        without = (one for one in records if not isinstance(one, Conversation))
        if self.config.reads_replies and (record := next(without, None)) is not None:
            raise UsageError(
                f"{record.source or 'a record'}: it is a prompt without a reply to learn from",
                hint="set 'others: teacher' or 'student_share: 1', or give conversations",
                code="wrong-data",
            )

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the stage's prompts, and on replies of its conversations."""
        config = self.config
        self.check(stage.train)

        def prompt(record: Record) -> _MixedPrompt:
            tokens = prompt_tokens(_prompt(record), stage.renderer, config, record.source)
            if not config.reads_replies:
                return _MixedPrompt(tokens)
            example = tokenize(
                cast(Conversation, record).messages,
                stage.renderer,
                max_length=config.max_length,
                truncate=config.truncate,
                source=record.source,
            )
            begin = next(t for t, weight in enumerate(example.weights) if weight)
            if set(example.weights[begin:]) != {1.0}:
                raise UsageError(
                    f"{record.source}: its last reply is not all learned alike",
                    why="a teacher's probabilities are learned of whole replies",
                    hint="take the 'weight' off its message, or set 'others: teacher'",
                    code="wrong-data",
                )
            given = Attempt(example.tokens[:begin], example.tokens[begin:], given=True)
            return _MixedPrompt(tokens, given)

        items = usable(prompt, stage.train, truncate=config.truncate)
        return supervised.train(stage, config, items, _Mixture(stage, config))


def _prompt(record: Record) -> Messages:
    """What is to be answered."""
    if isinstance(record, Conversation):
        return record.messages[:-1]
    return cast(Prompt, record).messages


class _MixedPrompt(StudentPrompt):
    def __init__(self, prompt: list[int], given: Attempt | None = None) -> None:
        self.prompt = prompt
        self.given = given
        """The data's own reply."""


class _Mixture(OnPolicy[_MixedPrompt]):
    config: GKD.Config

    def __init__(self, stage: StageContext, config: GKD.Config) -> None:
        super().__init__(stage, config)
        self.teacher = stage.resolve(config.teacher).sampler

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[_MixedPrompt]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        config = self.config
        drawn = random.Random(derive_seed(self.stage.seed, self._step, "who writes"))
        own = [drawn.random() < config.student_share for _ in batch]
        mine = [item for item, student in zip(batch, own, strict=True) if student]
        theirs = [item for item, student in zip(batch, own, strict=True) if not student]
        asked = [
            (y, teachers.ask_top_k(self.teacher, y.prompt, y.tokens, config.top_k))
            for y in (*self._by_student(client, mine), *self._by_others(theirs))
        ]
        learned = [(y, teachers.likeliest(self.stage.wait(q), len(y.tokens))) for y, q in asked]
        written = [(y, q) for y, q in learned if y.logprobs][:WATCHED]
        self.watch(
            [y for y, _ in written],
            [{"reverse_kl": q.ratios(y.tokens, y.logprobs)} for y, q in written],
        )
        T = sum(len(y.tokens) for y, _ in learned)
        mass = sum(teachers.soft_targets(q.ids, q.logprobs).mass for _, q in learned)
        shown = {"teacher/mass": mass / T, "completions/student_share": len(mine) / len(batch)}
        self.showed([y for y, _ in learned], shown)
        return client.forward_backward_custom(
            [teachers.several_targets(y, q.ids) for y, q in learned],
            divergence.of_replies([q for _, q in learned], config.beta, 1 / T),
        )

    def _by_student(
        self, client: tinker.TrainingClient, items: Sequence[_MixedPrompt]
    ) -> Iterator[Attempt]:
        """y ~ p(. | x)."""
        if items:
            yield from (y for _, y in self.attempts(client, items))

    def _by_others(self, items: Sequence[_MixedPrompt]) -> Iterator[Attempt]:
        """The data's own, or y ~ q(. | x)."""
        if not self.config.reads_replies:
            written = self.written(self.teacher, items, "teacher")
            yield from (replace(y, logprobs=()) for _, y in written)
        for item in items:
            if item.given is not None:
                yield item.given
