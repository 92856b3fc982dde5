"""Conversations as tokens with weights, and those as the engine's data."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal, TypeVar

from posttrain_recipes.errors import TooLongError, UsageError
from posttrain_recipes.plugin import Renderer, Streamed, WatchedReply
from posttrain_recipes.records import Message

if TYPE_CHECKING:
    import tinker

log = logging.getLogger(__name__)
_TOLD = 10
"""Records that are left out and named; the others are only counted."""

Source = TypeVar("Source")
Made = TypeVar("Made")


class NothingToLearn(UsageError):
    """A record of which no token that counts is within the length."""

    code = "nothing-to-learn"


@dataclass(frozen=True)
class Example:
    """Token ids (N,) and what each of them weighs in the loss (N,)."""

    tokens: list[int]
    """Token ids (N,) of the whole conversation."""
    weights: list[float]
    """What the loss of each token (N,) is multiplied by; 0 where nothing is learned."""

    @property
    def learned(self) -> float:
        """The sum of the weights; the first token is never predicted and does not count."""
        return sum(self.weights[1:])


Average = Literal["tokens", "turns", "examples"]
"""What counts the same in the loss of a batch."""


def averaged(batch: Sequence[Example], how: Average = "tokens") -> list[Example]:
    """The examples with weights that make a sum over the batch's tokens the mean that is asked.

    With u a token's own weight, it weighs u / sum u over the batch (`tokens`), u / sum u over its
    example / number of examples (`examples`), or its turn's weight / tokens of the turn / sum of
    the turns' weights (`turns`, a turn being tokens in a row that are learned). So what a token
    weighs is known before the batch is cut or packed, and does not depend on how it is.
    """
    shares = [_of_turns(one.weights[1:]) if how == "turns" else one.weights[1:] for one in batch]
    sums = [math.fsum(own) for own in shares]
    whole = math.fsum(sums)
    return [
        replace(
            one,
            weights=[
                one.weights[0],
                *(value / (own * len(batch) if how == "examples" else whole) for value in values),
            ],
        )
        for one, values, own in zip(batch, shares, sums, strict=True)
    ]


def _of_turns(weights: Sequence[float]) -> list[float]:
    shared: list[float] = []
    for _, run in groupby(weights, bool):
        own = list(run)
        shared += [weight / len(own) for weight in own]
    return shared


WATCHED = 2
"""Examples of a step that are shown to people."""


def watched_example(
    example: Example,
    logprobs: Sequence[float],
    reference: Sequence[float | None] = (),
    label: str = "",
) -> WatchedReply:
    """An example for people to look at, from its first token that is learned.

    Args:
        logprobs: log p of the tokens from the second on (N - 1,), in nats.
        reference: log p_ref of the same; empty where no reference was asked.
    """
    known = [0.0, *(float(value) for value in logprobs)]
    count = min(len(known), len(example.tokens))
    learned = [bool(weight) for weight in example.weights[:count]]
    first = next((place for place in range(1, count) if learned[place]), 0)
    own = range(first, count)
    numbers = {"logprob": [known[t] if learned[t] else None for t in own]}
    if reference:
        theirs = [None, *reference]
        pairs = ((known[t], theirs[t] if learned[t] else None) for t in own)
        numbers["log_ratio"] = [None if q is None else p - q for p, q in pairs]
    return WatchedReply(example.tokens[:first], example.tokens[first:count], numbers, label=label)


def tokenize(
    messages: Sequence[Message],
    renderer: Renderer,
    *,
    train_on: str = "last",
    max_length: int,
    truncate: bool = False,
    source: str = "",
) -> Example:
    """A conversation as an example, weights 1 on what the assistant said and where a message has
    one of its own, that.

    Raises:
        UsageError: longer than `max_length` and not to be truncated; the message names `source`.
        NothingToLearn: nothing is left to learn.
    """
    where = source or "a record"
    try:
        tokens, weights = renderer.supervised(messages, train_on)
    except UsageError as error:
        raise UsageError(
            f"{where}: {error.what}", why=error.why, hint=error.hint, code=error.code
        ) from None
    if len(tokens) > max_length:
        if not truncate:
            raise TooLongError(
                f"{where}: {len(tokens)} tokens are more than max_length={max_length}",
                hint="raise 'max_length', set 'truncate: true', or remove the record",
            )
        tokens, weights = tokens[:max_length], weights[:max_length]
    context = getattr(renderer, "context", None)
    if context is not None and len(tokens) > context:
        raise TooLongError(
            f"{where}: {len(tokens)} tokens are more than the model's context of {context}",
            hint=f"set 'max_length: {context}' and 'truncate: true', or remove the record",
        )
    if not any(weights[1:]):
        raise NothingToLearn(
            f"{where}: nothing that the assistant said is within max_length={max_length}",
            hint="raise 'max_length', or remove the record",
        )
    return Example(tokens, weights)


def with_answers(messages: Sequence[Message], weight: float) -> Sequence[Message]:
    """A conversation of which each answer of a tool that has no weight yet has this one; as it is
    where that is 0."""
    if not weight:
        return messages
    return [
        replace(one, weight=weight) if one.role == "tool" and one.weight is None else one
        for one in messages
    ]


def learned_whole(prompt: Sequence[Message], reply: Sequence[Message]) -> Sequence[Message]:
    """A prompt and a reply of one or several messages, of which all that the assistant says in the
    reply is learned, and nothing of the prompt."""
    if sum(message.role == "assistant" for message in reply) < 2:
        return (*prompt, *reply)

    def weighted(messages: Sequence[Message], weight: float) -> Iterator[Message]:
        for message in messages:
            spoken = message.role == "assistant"
            yield replace(message, weight=weight) if spoken else message

    return (*weighted(prompt, 0.0), *weighted(reply, 1.0))


def usable(
    make: Callable[[Source], Made], records: Iterable[Source], *, truncate: bool
) -> Sequence[Made]:
    """What `make` makes of each record; with `truncate`, those with nothing left are left out.

    Of a `Streamed` another one, whose items are made when they are asked for.

    Raises:
        UsageError: a record cannot be used, or none is left.
    """
    if isinstance(records, Streamed):
        left_out = records.leaving_out(lambda e: truncate and isinstance(e, NothingToLearn))
        return left_out.map(make)
    made: list[Made] = []
    last: NothingToLearn | None = None
    without = 0
    for record in records:
        try:
            made.append(make(record))
        except NothingToLearn as error:
            if not truncate:
                raise
            last = error
            without += 1
            if without <= _TOLD:
                log.warning("%s; it is left out", error.what)
    if last is not None and not made:
        raise last
    if without > _TOLD:
        log.warning("%d records in all have nothing left and are left out", without)
    return made


def datum(example: Example) -> tinker.Datum:
    """The example as the engine's cross-entropy takes it: N - 1 inputs, targets and weights."""
    return _datum(example, weights=example.weights[1:])


def expected_datum(example: Example) -> tinker.Datum:
    """The example as the engine's `importance_sampling` takes it, -sum_t A_t p_t / q_t, with the
    weights for A and q = 1: its gradient is that of -sum_t w_t p_t, the expected share of tokens
    that the model gets right."""
    weights = example.weights[1:]
    return _datum(example, advantages=weights, logprobs=[0.0] * len(weights))


def _datum(example: Example, **columns: list[float]) -> tinker.Datum:
    import tinker

    shape = [len(example.tokens) - 1]
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(example.tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=example.tokens[1:], dtype="int64", shape=shape),
            **{
                name: tinker.TensorData(data=values, dtype="float32", shape=shape)
                for name, values in columns.items()
            },
        },
    )
