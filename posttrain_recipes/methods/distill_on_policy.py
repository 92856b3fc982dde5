"""On-policy distillation: the student writes, and the teacher scores each token that it wrote.

    loss = KL(p || q) per token = E_{x ~ p} [ mean_t ( log p(x_t | x_<t) - log q(x_t | x_<t) ) ]

with p the student and q the teacher: the reverse KL of Agarwal et al. 2023, arXiv 2306.13649
(their lambda = 1). Its gradient is a policy gradient whose reward is dense: token t of a sampled
reply has the advantage A_t = log q(x_t) - log p(x_t), and the loss that is submitted is importance
sampling, - sum_t rho_t A_t / T. No credit flows back from later tokens (a discount of 0), as the
reward of a token is all there; there is no baseline, and no sample from the teacher.

Several teachers are one whose log-probability is their weighted mean, so that the loss is the
weighted sum of the reverse KLs; `where` gives a teacher some of the prompts alone.

With `align: spans` a teacher may have another tokenizer: it reads the reply's text in tokens of its
own, and what is compared are the log-probabilities of the smallest spans of text that are whole
tokens of both (`training.distill.spans`). It is the on-policy part of GOLD, Patiño et al. 2025,
huggingface.co/spaces/HuggingFaceH4/general-on-policy-logit-distillation.

Departs from the paper: a token is scored by the sampled token's log-ratio instead of the KL over
the vocabulary, which the API does not hand out; both have the same expectation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field, field_validator

from posttrain_recipes.errors import TooLongError
from posttrain_recipes.plugin import (
    Checkpoint,
    CountTokens,
    Method,
    ModelRef,
    Prompt,
    PtlError,
    Record,
    StageContext,
    UsageError,
    Workload,
)
from posttrain_recipes.records import Messages
from posttrain_recipes.training.distill import spans, teachers
from posttrain_recipes.training.distill.on_policy import (
    WATCHED,
    Attempt,
    OnPolicy,
    OnPolicyConfig,
    StudentPrompt,
    prompt_tokens,
)
from posttrain_recipes.training.loops import supervised, token_counts

if TYPE_CHECKING:
    import tinker

log = logging.getLogger(__name__)
MUCH = 0.2
"""The share of a step's tokens without a teacher's word on them from which on people are told."""


class Teacher(ModelRef):
    """Weights that teach; among several, what they count for and which prompts are theirs."""

    weight: float = Field(default=1.0, gt=0)
    """What its opinion counts for, among the teachers of a prompt."""
    where: dict[str, str] = Field(default_factory=dict)
    """It teaches only prompts that have these values in these fields, as `{family: sorting}`."""


class DistillOnPolicy(Method):
    """On-policy distillation: score each token of the student's own replies by a teacher.

    When: a stronger model can be asked for log-probabilities; it corrects the mistakes that the
    student makes, in far fewer tokens than imitation. With another tokenizer: align: spans. When
    not: the student
    never writes anything near what is wanted (distill_off_policy or sft first), or there is only
    the teacher's text.
    """

    name = "distill_on_policy"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    same_tokenizer: ClassVar[tuple[str, ...]] = ("teacher",)
    needs = ("loss:importance_sampling", "sample:trained", "prompt_logprobs")
    loss = "E[mean_t(log p - log q)] over the student's own tokens, with q the teacher's"
    paper = "Agarwal et al. 2023, On-policy distillation of language models, arXiv 2306.13649"

    class Config(OnPolicyConfig):
        """Options of on-policy distillation."""

        teacher: Teacher | list[Teacher]
        """Whose log-probabilities score the replies: one model, or a list with `weight`s."""

        align: Literal["tokens", "spans"] = "tokens"
        """What is compared: the student's tokens, which a teacher of the same tokenizer reads as
        they are; or spans of text, which one of another tokenizer reads in its own."""

        @field_validator("teacher")
        @classmethod
        def _somebody(cls, teacher: Teacher | list[Teacher]) -> Teacher | list[Teacher]:
            if teacher == []:
                raise ValueError("the list of teachers is empty; name at least one")
            return teacher

        @property
        def teachers(self) -> list[Teacher]:
            """All of them."""
            return self.teacher if isinstance(self.teacher, list) else [self.teacher]

    config: Config
    other_tokenizer = "or set 'align: spans', which compares text"

    def reads_tokens(self) -> Sequence[str]:
        """No teacher does that reads text."""
        return () if self.config.align == "spans" else self.same_tokenizer

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """The student's replies, read by every teacher that may be theirs."""
        lengths = [tokens(cast(Prompt, record).messages) for record in sample]
        return token_counts.answers(
            self.config,
            lengths,
            count,
            max_tokens=self.config.max_tokens,
            group_size=self.config.group_size,
            read=[lengths] * len(self.config.teachers),
        )

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the stage's prompts."""
        config = self.config
        items = [
            _TaughtPrompt(
                record.source,
                record.messages,
                prompt_tokens(record.messages, stage.renderer, config, record.source),
                _teachers_of(record, config.teachers),
            )
            for record in cast(Sequence[Prompt], stage.train)
        ]
        return supervised.train(stage, config, items, _ReverseKL(stage, config))


class _TaughtPrompt(StudentPrompt):
    def __init__(
        self,
        source: str,
        messages: Messages,
        prompt: list[int],
        teachers: list[tuple[int, float]],
    ) -> None:
        self.source = source
        self.messages = messages
        self.prompt = prompt
        self.teachers = teachers
        """Numbers of its teachers, and the share that each of them has; the shares sum to 1."""


def _teachers_of(record: Prompt, all_teachers: Sequence[Teacher]) -> list[tuple[int, float]]:
    own = [
        (number, teacher.weight)
        for number, teacher in enumerate(all_teachers)
        if all(str(record.metadata.get(key)) == value for key, value in teacher.where.items())
    ]
    if not own:
        raise UsageError(
            f"{record.source}: none of the teachers has a 'where' that holds for this prompt",
            hint="add a teacher without 'where', or remove the record",
            code="wrong-data",
        )
    whole = sum(weight for _, weight in own)
    return [(number, weight / whole) for number, weight in own]


class _ReverseKL(OnPolicy[_TaughtPrompt]):
    def __init__(self, stage: StageContext, config: DistillOnPolicy.Config) -> None:
        super().__init__(stage, config)
        served = [stage.resolve(teacher) for teacher in config.teachers]
        self.names = [model.checkpoint.base_model for model in served]
        self.samplers = [model.sampler for model in served]
        self.readers = [spans.Reader(model, stage.renderer) for model in served]
        self.by_text = config.align == "spans"
        self.warned = False

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[_TaughtPrompt]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        asked = [
            (item, y, self._ask(item, y))
            for item, y in self.attempts(client, batch)  # y ~ p(. | x)
        ]
        attempts = [y for _, y, _ in asked]
        T = sum(len(y.tokens) for y in attempts)
        found = [self._compared(item, y, told) for item, y, told in asked]
        data = []
        for y, one in zip(attempts, found, strict=True):
            A = [(credit or 0.0) / T for credit in one.credits]
            data.append(teachers.policy_datum(y, y.logprobs, A))
        first = found[:WATCHED]
        self.watch(attempts, [{"reverse_kl": [c and -c for c in one.credits]} for one in first])
        self.showed(attempts, self._metrics(attempts, found, T))
        return client.forward_backward(data, "importance_sampling")  # - sum_t rho_t A_t

    def _ask(self, item: _TaughtPrompt, y: Attempt) -> list[spans.Asked]:
        """Ask its teachers for log q of a reply, without waiting."""
        import tinker

        if self.by_text:
            return [self.readers[number].ask(item.messages, y) for number, _ in item.teachers]
        whole, each = tinker.ModelInput.from_ints([*y.prompt, *y.tokens]), len(y.tokens)
        alike = [spans.SharedSpan(range(t, t + 1), range(t, t + 1)) for t in range(each)]
        return [
            spans.Asked(alike, self.samplers[number].compute_logprobs(whole), each)
            for number, _ in item.teachers
        ]

    def _compared(
        self, item: _TaughtPrompt, y: Attempt, told: Sequence[spans.Asked]
    ) -> spans.SpanCredits:
        """What its teachers found of a reply, as one."""
        found = []
        for (number, _), one in zip(item.teachers, told, strict=True):
            try:
                found.append(one.compared(y, self.stage.wait))
            except PtlError as error:
                if "context window" not in (error.why or ""):
                    raise
                raise TooLongError(
                    f"{item.source or 'a record'}: the prompt and a reply to it are too long for "
                    f"the teacher {self.names[number]}",
                    why=f"{error.why}; a teacher reads them in its own tokens, which "
                    "'max_length' does not count",
                    hint="lower 'max_length' and 'max_tokens', remove the record, or take a "
                    "teacher that reads more",
                ) from error
        return spans.mixed(found, [share for _, share in item.teachers])

    def _metrics(
        self, attempts: Sequence[Attempt], found: Sequence[spans.SpanCredits], T: int
    ) -> dict[str, float]:
        read = sum(one.read for one in found)
        gap = sum(one.gap for one in found)
        student = sum(sum(y.logprobs) for y in attempts)
        own = sum(
            logprob
            for y, one in zip(attempts, found, strict=True)
            for logprob, credit in zip(y.logprobs, one.credits, strict=True)
            if credit is not None
        )
        metrics = {
            "kl": -gap / max(1, read),
            "entropy": -student / T,
            "teacher/logp": (own + gap) / max(1, read),
        }
        if self.by_text:
            unread = metrics["align/unread_share"] = 1 - read / T
            if unread > MUCH and not self.warned:
                self.warned = True
                log.warning(
                    "%.0f%% of what the student wrote in step %d is not compared: its end, bytes "
                    "that are no character, or text that the teacher's tokenizer changes",
                    100 * unread,
                    self._step + 1,
                )
            metrics["align/tokens_per_span"] = read / max(1, sum(one.spans for one in found))
        return metrics
