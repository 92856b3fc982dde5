"""The log-odds of two verdict tokens, which a language model gives as a real-valued reward.

The conversation, reply included, is followed by one more question of the user, and

    r = log p(yes | conversation, QUESTION) - log p(no | conversation, QUESTION)

is the reward of the reply, in nats: 0 where the model finds both as likely. Tinker has no scalar
head to put on a model; this needs none, starts from what the model already knows of yes and no, and
comes from one prefill, and one more for each of the two words that is not among the likeliest 20
tokens, as it often is not before a reward model was trained. The method `reward_model` trains it,
the reward `reward_model` and the eval `reward_accuracy` read it, all through this module, so that
they ask the same question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from posttrain_recipes.context import untold
from posttrain_recipes.plugin import Renderer, Waiter
from posttrain_recipes.records import Message
from posttrain_recipes.training.requests import awaited, sample
from posttrain_recipes.training.sampling.generation import IN_FLIGHT

if TYPE_CHECKING:
    import tinker

QUESTION = "Is this a good reply, yes or no?"
YES, NO = "yes", "no"
NEEDS = ("sample:top_logprobs", "prompt_logprobs")
"""What an engine must be able to do for it."""
_TOP = 20
"""How many of the likeliest tokens are asked for; the verdicts are nearly always among them."""


@dataclass(frozen=True)
class Judgement:
    """Token ids (P,) that end where the verdict is said, and the two tokens that may begin it."""

    prompt: list[int]
    yes: int
    no: int


def judgement(conversation: Sequence[Message], renderer: Renderer) -> Judgement:
    """The question about a conversation's last message, the reply that is judged."""
    return choice(question(conversation), renderer, YES, NO)


def question(conversation: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation with the question about its last message."""
    return (*conversation, Message("user", QUESTION))


def choice(asked: Sequence[Message], renderer: Renderer, first: str, second: str) -> Judgement:
    """A question whose answer is one of two words."""
    yes, no = (
        renderer.supervised((*asked, Message("assistant", verdict)))[0]
        for verdict in (first, second)
    )
    place = next(i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b)
    return Judgement(yes[:place], yes[place], no[place])


def score(
    sampler: tinker.SamplingClient,
    renderer: Renderer,
    wait: Waiter,
    conversations: Sequence[Sequence[Message]],
    progress: Callable[[int, int, str], None] = untold,
) -> list[float]:
    """The reward of each conversation's last message, in nats, by the weights behind `sampler`.

    For a `Sample` the conversation is `(*sample.prompt, Message("assistant", sample.completion))`.
    """
    asked = [question(conversation) for conversation in conversations]
    return log_odds(sampler, renderer, wait, asked, YES, NO, progress)


def log_odds(
    sampler: tinker.SamplingClient,
    renderer: Renderer,
    wait: Waiter,
    questions: Sequence[Sequence[Message]],
    first: str,
    second: str,
    progress: Callable[[int, int, str], None] = untold,
) -> list[float]:
    """log p(first) - log p(second) as the answer to each question, in nats.

    All are submitted before the first is awaited, `IN_FLIGHT` at a time.
    """

    def tell(before: int, there: int) -> None:
        progress(before + there, len(questions), "verdicts")

    found: list[float] = []
    for begin in range(0, len(questions), IN_FLIGHT):
        block = questions[begin : begin + IN_FLIGHT]
        asked = [choice(question, renderer, first, second) for question in block]
        futures = [
            sample(sampler, one.prompt, 1, max_tokens=1, temperature=1.0, seed=0, top_k=_TOP)
            for one in asked
        ]
        answers = awaited(futures, wait, partial(tell, begin))
        pairs: list[list[float | Future[list[float | None]]]] = []
        for one, answer in zip(asked, answers, strict=True):
            top = dict((answer.sequences[0].topk_logprobs or [None])[0] or ())
            pairs.append(
                [
                    top[token] if token in top else _submit(sampler, one.prompt, token)
                    for token in (one.yes, one.no)
                ]
            )
        for pair in pairs:
            yes, no = (one if isinstance(one, int | float) else _last(wait(one)) for one in pair)
            found.append(yes - no)
    return found


def _submit(
    sampler: tinker.SamplingClient, prompt: Sequence[int], token: int
) -> Future[list[float | None]]:
    """Ask for log p of a token after the prompt, where it is not among the likeliest."""
    import tinker

    return sampler.compute_logprobs(tinker.ModelInput.from_ints([*prompt, token]))


def _last(logprobs: Sequence[float | None]) -> float:
    value = logprobs[-1]
    assert value is not None
    return value
