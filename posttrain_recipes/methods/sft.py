"""Supervised fine-tuning: imitate the assistant's messages.

    nll:  - sum_t w_t log p(x_t | x_<t) / sum_t w_t
    dft:  - sum_t w_t sg(p_t) log p_t / sum_t w_t,   sg(p) the probability without its gradient

over a batch, with w = 1 on the tokens of the assistant's last message (or of all of them) and on
the token that ends it, `tool_weight` on what tools answered, and in the place of either what the
data say of a message. The mean is over the tokens of the batch, so long answers weigh more than
short ones, as in TRL; `average` has turns or examples weigh the same.

Dynamic fine-tuning (Wu et al. 2025, arXiv 2508.05629) takes off the 1/p by which the
gradient of log p is larger the less likely a token is: what is left is the gradient of the expected
share of right tokens, -sum_t w_t p_t. That is the policy gradient of the engine's own
`importance_sampling`, -sum A p/q, with A = w and q = 1, so that it takes the one pass of nll and no
reading before. Its value is reckoned from the log-probabilities that the pass sends back.

Learning what tools answered is the supervised half of ECHO (Shrivastava et al. 2026, arXiv
2605.24517): a model that predicts them has learned what its calls do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field

from posttrain_recipes.plugin import (
    Checkpoint,
    Conversation,
    CountTokens,
    Message,
    Method,
    Record,
    StageContext,
    Streamed,
    Usage,
    WatchedReply,
    Workload,
)
from posttrain_recipes.training.loops import supervised, token_counts
from posttrain_recipes.training.text.examples import (
    WATCHED,
    Average,
    Example,
    averaged,
    datum,
    expected_datum,
    tokenize,
    usable,
    watched_example,
    with_answers,
)

if TYPE_CHECKING:
    import tinker

log = logging.getLogger(__name__)
ENGINE_LOSS = {"nll": "cross_entropy", "dft": "importance_sampling"}
"""The engine's loss that each is made of."""


class SFT(Method):
    """Supervised fine-tuning: imitate what the assistant said in example conversations.

    When: first of all, to teach a format, a style or a skill of which there are good examples.
    When not: to teach which of two plausible answers is better (dpo), or beyond the quality of
    the examples: it copies their mistakes too.
    """

    name = "sft"
    takes: ClassVar[tuple[type[Record], ...]] = (Conversation,)
    streams = True
    loss = "-sum(w * log p) / sum(w), over the tokens that the assistant said; dft: w times p"
    paper = "Ouyang et al. 2022, Training language models to follow instructions, arXiv 2203.02155"

    class Config(supervised.GradientConfig):
        """Options of supervised fine-tuning."""

        loss: Literal["nll", "dft"] = "nll"
        """nll: -log p; dft: -p log p with no gradient through p, which heeds an unlikely token less
        the less likely it is, as noise mostly is (dynamic fine-tuning, arXiv 2508.05629). Both take
        one pass."""
        average: Average = "tokens"
        """What counts the same in a batch: tokens (a long answer more than a short one, as in TRL),
        turns that are learned, or whole examples, however they are packed or cut."""
        tool_weight: float = Field(default=0.0, ge=0, le=1000, allow_inf_nan=False)
        """What a token that a tool answered weighs beside one of the assistant's: 0.1, say, learns
        to foresee what calls do (as ECHO, arXiv 2605.24517). Only answers before what is learned
        last; a message's own `weight` in the data goes before."""
        train_on: Literal["last", "all"] = "last"
        """Learn a conversation's last assistant message, or all of them."""

    config: Config

    @property
    def needs(self) -> Sequence[str]:
        """The engine's cross-entropy, or the policy gradient that is DFT's."""
        return (f"loss:{ENGINE_LOSS[self.config.loss]}",)

    def workload(self, sample: Sequence[Record], count: int, tokens: CountTokens) -> Workload:
        """Every example goes through the model once an epoch."""
        lengths = [tokens(cast(Conversation, record).messages) for record in sample]
        return token_counts.imitation(self.config, lengths, count)

    def train(self, stage: StageContext) -> Checkpoint:
        """Train on the stage's conversations."""
        told = "train_on" in self.config.model_fields_set
        answers = 0

        def example(record: Record) -> Example:
            nonlocal told, answers
            messages = cast(Conversation, record).messages
            answers += any(message.role == "tool" for message in messages)
            if not told and _has_earlier_replies(messages):
                told = True
                log.warning(
                    "%s: has replies before the last one; here and in others like it they are not "
                    "learned: 'train_on: all' learns them, 'train_on: last' says it is meant",
                    record.source or "a record",
                )
            return tokenize(
                with_answers(messages, self.config.tool_weight),
                stage.renderer,
                train_on=self.config.train_on,
                max_length=self.config.max_length,
                truncate=self.config.truncate,
                source=record.source,
            )

        examples = usable(example, stage.train, truncate=self.config.truncate)
        if self.config.tool_weight and not answers and not isinstance(examples, Streamed):
            log.warning(
                "stage '%s': 'tool_weight' changes nothing: no tool answers in any of its records",
                stage.name,
            )
        objective = Likelihood(self.config.loss, self.config.average)
        return supervised.train(stage, self.config, examples, objective)


def _has_earlier_replies(messages: Sequence[Message]) -> bool:
    """Whether the assistant speaks before its last message, and nothing says if that counts."""
    spoken = [message for message in messages if message.role == "assistant"]
    return any(message.weight is None for message in spoken[:-1])


class Likelihood:
    """The likelihood of examples as an objective of the gradient loop, by the loss `nll` or `dft`
    of this module and the mean that `average` says."""

    def __init__(self, loss: Literal["nll", "dft"] = "nll", average: Average = "tokens") -> None:
        self.loss = loss
        self.average: Average = average

    def prepare(self, batch: Sequence[Example]) -> None:
        pass

    def submit(
        self, client: tinker.TrainingClient, batch: Sequence[Example]
    ) -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
        make = datum if self.loss == "nll" else expected_datum
        # The engine sums over tokens; these weights make it the mean.
        data = [make(example) for example in averaged(batch, self.average)]
        return client.forward_backward(data, ENGINE_LOSS[self.loss])

    def metrics(
        self, batch: Sequence[Example], output: tinker.ForwardBackwardOutput
    ) -> Mapping[str, float]:
        if self.loss == "nll":
            return {"train/loss": output.metrics["loss:sum"]}
        terms = [
            (weight, float(logprob))
            for example, found in zip(
                averaged(batch, self.average), output.loss_fn_outputs, strict=True
            )
            for weight, logprob in zip(example.weights[1:], found["logprobs"].data, strict=True)
            if weight
        ]
        return {
            "train/loss": -math.fsum(w * math.exp(logp) * logp for w, logp in terms),
            "train/nll": -math.fsum(w * logp for w, logp in terms),
        }

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
