"""Supervised fine-tuning: imitate the assistant's messages.

    loss = - sum_t w_t log p(x_t | x_<t) / sum_t w_t

over a batch, with w = 1 on the tokens of the assistant's last message (or of all of them) and on
the token that ends it. The mean is over the tokens of the batch, so long answers weigh more than
short ones, as in TRL.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from posttrain_recipes.plugin import (
    Checkpoint,
    Conversation,
    CountTokens,
    Message,
    Method,
    Record,
    StageContext,
    Usage,
    WatchedReply,
    Workload,
)
from posttrain_recipes.training.loops import supervised, token_counts
from posttrain_recipes.training.text.examples import (
    WATCHED,
    Example,
    datum,
    tokenize,
    usable,
    watched_example,
)

if TYPE_CHECKING:
    import tinker

log = logging.getLogger(__name__)


class SFT(Method):
    """Supervised fine-tuning: imitate what the assistant said in example conversations.

    When: first of all, to teach a format, a style or a skill of which there are good examples.
    When not: to teach which of two plausible answers is better (dpo), or beyond the quality of
    the examples: it copies their mistakes too.
    """

    name = "sft"
    takes: ClassVar[tuple[type[Record], ...]] = (Conversation,)
    needs = ("loss:cross_entropy",)
    streams = True
    loss = "-sum(w * log p) / sum(w), over the tokens that the assistant said"
    paper = "Ouyang et al. 2022, Training language models to follow instructions, arXiv 2203.02155"

    class Config(supervised.GradientConfig):
        """Options of supervised fine-tuning."""

        train_on: Literal["last", "all"] = "last"
        """Learn a conversation's last assistant message, or all of them."""

    config: Config

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Every example goes through the model once an epoch."""
        lengths = [tokens(cast(Conversation, record).messages) for record in sample]
        return token_counts.imitation(self.config, lengths, count)

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the stage's conversations."""
        told = "train_on" in self.config.model_fields_set

        def example(record: Record) -> Example:
            nonlocal told
            messages = cast(Conversation, record).messages
            if not told and _has_earlier_replies(messages):
                told = True
                log.warning(
                    "%s: has replies before the last one; here and in others like it they are not "
                    "learned: 'train_on: all' learns them, 'train_on: last' says it is meant",
                    record.source or "a record",
                )
            return tokenize(
                messages,
                stage.renderer,
                train_on=self.config.train_on,
                max_length=self.config.max_length,
                truncate=self.config.truncate,
                source=record.source,
            )

        examples = usable(example, stage.train, truncate=self.config.truncate)
        return supervised.train(stage, self.config, examples, Likelihood())


def _has_earlier_replies(messages: Sequence[Message]) -> bool:
    """Whether the assistant speaks before its last message, and nothing says if that counts."""
    spoken = [message for message in messages if message.role == "assistant"]
    return any(message.weight is None for message in spoken[:-1])


class Likelihood:
    """The negative log-likelihood of examples, as an objective of the gradient loop."""

    def prepare(self, batch: Sequence[Example]) -> None:
        pass

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[Example]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        # The engine sums over tokens; scaling the weights makes it the mean.
        scale = 1 / sum(example.learned for example in batch)
        return client.forward_backward([datum(e, scale) for e in batch], "cross_entropy")

    def metrics(
        self, batch: Sequence[Example], output: tinker.ForwardBackwardOutput
    ) -> Mapping[str, float]:
        return {"train/loss": output.metrics["loss:sum"]}

    def watched(
        self, batch: Sequence[Example], output: tinker.ForwardBackwardOutput
    ) -> list[WatchedReply]:
        """The first examples, with the log-probabilities of what they teach."""
        return [
            watched_example(example, found["logprobs"].data)
            for example, found in zip(batch[:WATCHED], output.loss_fn_outputs, strict=False)
            if "logprobs" in found
        ]

    def usage(self, batch: Sequence[Example]) -> Usage:
        return Usage(train=sum(len(example.tokens) for example in batch))
