"""Prompt distillation: answer under a long prompt, learn to answer so without it.

    loss = - sum_t sum_{k in S_t} q(k | s, x, y_<t) log p(k | x, y_<t) / T,   y ~ q(. | s, x)

Snell, Klein and Zhong 2022, Learning by distilling context, arXiv 2209.15189: the teacher q reads
the instructions s before the prompt x and answers y; the student p sees x alone and learns, at
each of the T tokens, the teacher's `top_k` likeliest tokens S_t with their probabilities
renormalized. With `top_k: 0` it learns the answer itself, q(y_t) = 1, as sft would.

The teacher is the stage's own start unless another is named: the model learns by heart what it
could do with the instructions in sight, and the tokens of s need not be paid for any more. The
teacher is fixed, and the seed of an answer comes from the stage's seed, the step and the place in
the batch, so that a resumed stage sees the same answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    AskedOf,
    Checkpoint,
    CountTokens,
    FromData,
    Method,
    ModelRef,
    Prompt,
    Record,
    Rendered,
    Renderer,
    StageContext,
    Usage,
    UsageError,
    Workload,
)
from posttrain_recipes.records import Messages
from posttrain_recipes.training.distill import teachers
from posttrain_recipes.training.distill.on_policy import StudentPrompt, prompt_tokens
from posttrain_recipes.training.loops import supervised, token_counts
from posttrain_recipes.training.requests import derive_seed, sample
from posttrain_recipes.training.text import rendered
from posttrain_recipes.training.text.instructions import instructed, without_instructions

if TYPE_CHECKING:
    import tinker


class PromptDistill(Method):
    """Prompt distillation: learn to answer without a prompt as one answers with it.

    When: long instructions make the model do what it should, and every request has to carry them.
    When not: the model does not follow the instructions when it sees them, or they change from
    day to day.
    """

    name = "prompt_distill"
    takes: ClassVar[tuple[type[Record], ...]] = (Prompt,)
    same_tokenizer: ClassVar[tuple[str, ...]] = ("teacher",)
    needs = ("targets:several", "sample:top_logprobs")
    loss = "-sum(q * log p) / T over answers of q, which reads the instructions; p does not"
    paper = "Snell et al. 2022, Learning by distilling context, arXiv 2209.15189"

    class Config(supervised.GradientConfig):
        """Options of prompt distillation."""

        system: str | None = Field(default=None, min_length=1)
        """The instructions that the teacher reads as a system message and the student does not. By
        default each prompt's own system message, as those that `gepa` leaves have."""
        teacher: ModelRef | None = None
        """Who answers under the instructions; the stage's own start where not given."""
        top_k: Annotated[int, AskedOf.LIKELIEST] = Field(default=20, ge=0, le=100)
        """How many of the teacher's likeliest tokens are learned at each position; 0 learns the
        answer itself."""
        max_tokens: Annotated[int, FromData.REPLY_TOKENS] = Field(default=256, ge=1)
        """Longest answer in tokens; one that is cut there is learned as far as it goes.
        By default it follows from the answers in the data; 256 where those do not tell."""
        temperature: float = Field(default=1.0, ge=0)
        """Of the teacher's answers; 0 takes the likeliest token each time."""

    config: Config

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """The teacher's replies to longer prompts, learned under shorter ones."""
        read = [self._read(cast(Prompt, record).messages) for record in sample]
        return token_counts.answers(
            self.config,
            [tokens(student) for student, _ in read],
            count,
            max_tokens=self.config.max_tokens,
            asked=[tokens(teacher) for _, teacher in read],
        )

    def rendered(
        self, record: Record, renderers: Callable[[ModelRef | None], Renderer]
    ) -> Sequence[Rendered]:
        """The prompt as the student reads it, and as the teacher does, with the instructions."""
        renderer = renderers(None)
        student, teacher = self._read(cast(Prompt, record).messages)
        return [
            rendered.prompt(student, renderer, "the student reads"),
            rendered.prompt(teacher, renderer, "the teacher reads"),
        ]

    def check(self, records: Sequence[Record]) -> None:
        """Prompts without instructions have nothing to be learned by heart."""
        for record in cast(Sequence[Prompt], records):
            student, teacher = self._read(record.messages)
            if student == teacher:
                raise UsageError(
                    f"{record.source or 'a record'}: has no system message to learn by heart",
                    hint="set 'system' to the instructions, or give prompts that have them",
                    code="wrong-data",
                )

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on answers to the stage's prompts."""
        config = self.config
        self.check(stage.train)
        items = []
        for record in cast(Sequence[Prompt], stage.train):
            student, teacher = (
                prompt_tokens(messages, stage.renderer, config, record.source)
                for messages in self._read(record.messages)
            )
            items.append(_InstructedPrompt(student, teacher))
        return supervised.train(stage, config, items, _Instructed(stage, config))

    def _read(self, messages: Messages) -> tuple[Messages, Messages]:
        """What the student reads, and what the teacher does."""
        if self.config.system is None:
            return without_instructions(messages), messages
        return messages, instructed(messages, self.config.system)


class _InstructedPrompt(StudentPrompt):
    def __init__(self, prompt: list[int], instructed: list[int]) -> None:
        self.prompt = prompt
        self.instructed = instructed
        """Token ids with the instructions, for the teacher."""


class _Instructed:
    """The objective: answers are asked for a step ahead, as the teacher does not change."""

    def __init__(self, stage: StageContext, config: PromptDistill.Config) -> None:
        self.stage = stage
        self.config = config
        self.teacher = (
            stage.resolve(config.teacher).sampler
            if config.teacher
            else stage.sampling_client(stage.start)
        )
        self.step = stage.resume.step if stage.resume else 0
        """The step that is prepared next."""
        self.asked: deque[list[tinker.APIFuture[tinker.SampleResponse]]] = deque()
        self.shown: deque[tuple[teachers.Shown, dict[str, float]]] = deque()
        self.submitted = Usage()
        """Of the batch that was submitted last."""

    def prepare(self, batch: Sequence[_InstructedPrompt]) -> None:
        self.asked.append(
            [
                sample(
                    self.teacher,
                    item.instructed,
                    1,
                    max_tokens=self.config.max_tokens,
                    temperature=self.config.temperature,
                    seed=derive_seed(self.stage.seed, self.step, place),
                    stop=self.stage.renderer.stop,
                    top_k=self.config.top_k,
                )
                for place, item in enumerate(batch)
            ]
        )
        self.step += 1

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[_InstructedPrompt]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        answers = [self.stage.wait(future).sequences[0] for future in self.asked.popleft()]
        replies = [
            teachers.TokenizedReply(
                item.prompt, list(answer.tokens), answer.stop_reason == "length"
            )
            for item, answer in zip(batch, answers, strict=True)
        ]
        length = sum(len(reply.tokens) for reply in replies)
        targets = []
        if self.config.top_k:
            for answer in answers:
                top = answer.topk_logprobs_np
                assert top is not None, "top-k was asked for"
                targets.append(teachers.soft_targets(top.token_ids, top.logprobs))
            data = [
                teachers.soft_datum(reply, target, 1 / length)
                for reply, target in zip(replies, targets, strict=True)
            ]
        else:
            data = [teachers.hard_datum(reply, 1 / length) for reply in replies]
        completions = {
            "completions/mean_length": length / len(replies),
            "completions/clipped_ratio": sum(r.truncated for r in replies) / len(replies),
        }
        prompts = sum(len(reply.prompt) for reply in replies)
        self.submitted = Usage(train=prompts + length, sample=length)
        self.shown.append((teachers.shown(targets), completions))
        return client.forward_backward(data, "cross_entropy")

    def metrics(
        self, batch: Sequence[_InstructedPrompt], output: tinker.ForwardBackwardOutput
    ) -> Mapping[str, float]:
        shown, completions = self.shown.popleft()
        loss = output.metrics["loss:sum"]
        return {**completions, **(shown.metrics(loss) if shown.mass else {"train/loss": loss})}

    def usage(self, batch: Sequence[_InstructedPrompt]) -> Usage:
        return self.submitted
