"""Learning from what the student itself writes: sample, have a teacher read it, take a step.

An `OnPolicy` objective runs in the gradient loop, which owns order, learning rate, checkpoints and
resume. Submitting a step takes a snapshot of the weights after the step before it and samples from
that, so that the data are of exactly the weights that they train. The seed of a sample comes from
the stage's seed, the step and the place in the batch: a resumed stage samples the same replies.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Generic, Protocol, TypeVar

from pydantic import Field

from posttrain_recipes.errors import TooLongError, UsageError
from posttrain_recipes.plugin import FromData, Message, Renderer, StageContext, Usage, WatchedReply
from posttrain_recipes.records import Messages
from posttrain_recipes.training.distill.teachers import TokenizedReply
from posttrain_recipes.training.loops.supervised import GradientConfig
from posttrain_recipes.training.requests import derive_seed, sample

if TYPE_CHECKING:
    import tinker


class OnPolicyConfig(GradientConfig):
    """Options of methods in which the student writes what it learns from."""

    batch_size: int = Field(default=32, ge=1)
    """Prompts in one optimizer step."""
    group_size: int = Field(default=1, ge=1)
    """Replies that the student writes to each prompt."""
    max_tokens: Annotated[int, FromData.REPLY_TOKENS] = Field(default=256, ge=1)
    """Longest reply in tokens; a reply that is cut there is learned from as far as it goes.
    By default it follows from the answers in the data; 256 where those do not tell."""


@dataclass(frozen=True)
class Attempt(TokenizedReply):
    """A reply that is learned from, with the student's log-probabilities (T,) when it wrote it."""

    logprobs: tuple[float, ...] = ()
    """None where somebody else wrote it."""
    given: bool = False
    """Whether it is of the data, and nobody wrote it for this step."""


class StudentPrompt(ABC):
    """What a method makes of a record: an object of its own even where two records are equal."""

    prompt: list[int]
    """Token ids (P,) that the student is shown."""


WATCHED = 4
"""Attempts of a step that are shown to people."""
Numbers = Mapping[str, Sequence[float | None]]
PromptT = TypeVar("PromptT", bound=StudentPrompt)


class OnPolicy(ABC, Generic[PromptT]):
    """An objective of the gradient loop over replies that the student writes. See `Objective`."""

    def __init__(self, stage: StageContext, config: OnPolicyConfig) -> None:
        self.stage = stage
        self.config = config
        self._step = stage.resume.step if stage.resume else 0
        self._waiting: deque[dict[str, float]] = deque()
        """The metrics of each submitted step that was not logged yet."""
        self._usage = Usage()
        """Of the step that was submitted last."""

    @abstractmethod
    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[PromptT]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        """Sample, have a teacher read, and submit forward and backward; `showed` tells of it."""

    def attempts(
        self, client: tinker.TrainingClient, batch: Sequence[PromptT]
    ) -> Iterator[tuple[PromptT, Attempt]]:
        """y ~ p(. | x): replies of the student as it is now, in order, as they come."""
        yield from self.written(self.snapshot(client), batch)

    def snapshot(self, client: tinker.TrainingClient) -> tinker.SamplingClient:
        """The student as it is now, to sample from."""
        return self.stage.wait(client.save_weights_and_get_sampling_client())

    def written(
        self, sampler: tinker.SamplingClient, batch: Sequence[PromptT], *stream: str
    ) -> Iterator[tuple[PromptT, Attempt]]:
        """Replies of any weights to the prompts of a batch, in order, as they come; `stream` tells
        the seeds of one writer in a step from those of another."""
        stage, config = self.stage, self.config
        futures = [
            sample(
                sampler,
                item.prompt,
                config.group_size,
                max_tokens=config.max_tokens,
                temperature=1.0,
                seed=derive_seed(stage.seed, self._step, place, *stream),
                stop=stage.renderer.stop,
            )
            for place, item in enumerate(batch)
        ]
        for item, future in zip(batch, futures, strict=True):
            for sequence in stage.wait(future).sequences:
                yield (
                    item,
                    Attempt(
                        item.prompt,
                        list(sequence.tokens),
                        sequence.stop_reason == "length",
                        tuple(sequence.logprobs or ()),
                    ),
                )

    def watch(self, attempts: Sequence[Attempt], numbers: Sequence[Numbers]) -> None:
        """Have the first attempts of the step looked at, with `numbers` of their tokens (T,) by
        name; said before `showed`."""
        self.stage.watch(
            self._step + 1,
            [
                WatchedReply(
                    attempt.prompt,
                    attempt.tokens,
                    {**known, "logprob": attempt.logprobs} if attempt.logprobs else known,
                    ended="max_tokens" if attempt.truncated else "" if attempt.given else "stop",
                )
                for attempt, known in zip(attempts, numbers, strict=False)
            ],
        )

    def showed(self, attempts: Sequence[Attempt], metrics: Mapping[str, float]) -> None:
        """Keep what the step's attempts showed, for the log."""
        written = [attempt for attempt in attempts if not attempt.given]
        lengths, count = sum(len(a.tokens) for a in written), len(written)
        completions = {
            "completions/mean_length": lengths / max(1, count),
            "completions/clipped_ratio": sum(a.truncated for a in written) / max(1, count),
        }
        self._waiting.append({**metrics, **(completions if written else {})})
        learned = sum(len(a.prompt) + len(a.tokens) for a in attempts)
        self._usage = Usage(train=learned, sample=lengths)
        self._step += 1

    def loss(self, loss_sum: float, shown: Mapping[str, float]) -> dict[str, float]:
        """Metrics that need the engine's sum of the loss."""
        return {"train/loss": loss_sum}

    def prepare(self, batch: Sequence[PromptT]) -> None:
        """Nothing can be done before the step that comes first is taken."""

    def metrics(
        self, batch: Sequence[PromptT], output: tinker.ForwardBackwardOutput
    ) -> Mapping[str, float]:
        shown = self._waiting.popleft()
        return {**shown, **self.loss(output.metrics["loss:sum"], shown)}

    def usage(self, batch: Sequence[PromptT]) -> Usage:
        return self._usage


_PLACES = re.compile(r"\{(\w+)\}")


def retold(messages: Messages, template: str, source: str, **said: str) -> Messages:
    """A prompt whose last message is `template`, with the message's own text for {question} and
    `said` for the others; what is told has no places of its own.

    Raises:
        UsageError: the last message is no user's; the message names `source`.
    """
    *before, last = messages
    if last.role != "user":
        raise UsageError(
            f"{source}: its last reply does not answer a user's message", code="wrong-data"
        )
    told = {"question": last.content, **said}
    text = _PLACES.sub(lambda place: told.get(place[1], place[0]), template)
    return (*before, Message("user", text))


class Room(Protocol):
    """Options that bound prompts and replies, in tokens."""

    max_tokens: int
    """Of a reply."""
    max_length: int
    """Of a prompt and its reply."""


def prompt_tokens(
    messages: Sequence[Message], renderer: Renderer, room: Room, source: str
) -> list[int]:
    """A prompt (P,) that leaves room for a reply.

    Raises:
        TooLongError: it does not; the message names `source`.
    """
    tokens = renderer.prompt(messages)
    if len(tokens) + room.max_tokens > room.max_length:
        raise TooLongError(
            f"{source or 'a record'}: {len(tokens)} tokens and a reply of "
            f"max_tokens={room.max_tokens} are more than max_length={room.max_length}",
            hint="raise 'max_length', lower 'max_tokens', or remove the record",
        )
    return tokens
