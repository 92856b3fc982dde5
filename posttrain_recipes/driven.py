"""Environments that drive themselves, as those of other frameworks do.

An `Episode` is told one reply after another. A `DrivenTask` is handed the policy instead and plays
the whole episode: it renders what it likes, asks for replies in tokens as often as it likes, and
gives back the tokens themselves with their log-probabilities. They are trained on as they stand.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Protocol

from posttrain_recipes.context import Renderer
from posttrain_recipes.errors import PtlError
from posttrain_recipes.records import Episode, Messages, Task


@dataclass(frozen=True)
class Reply:
    """What the policy wrote to a prompt."""

    tokens: Sequence[int]
    """Token ids (N,), the one that ends the reply included."""
    logprobs: Sequence[float]
    """Their log-probabilities (N,), in nats."""


class Policy(Protocol):
    """Whoever plays an episode: the weights that are trained, or evaluated."""

    @property
    def renderer(self) -> Renderer:
        """The model's chat template."""

    @property
    def max_turns(self) -> int:
        """Replies that an episode may ask for; the environment ends it there."""

    @property
    def max_tokens(self) -> int:
        """Longest reply in tokens."""

    def sample(self, prompt: Sequence[int], max_tokens: int | None = None) -> Future[Reply]:
        """Ask for a reply to a prompt (P,), without waiting; from any thread.

        The same prompt asked again in an episode has another reply. Replies depend on what was
        asked and not on when.

        Args:
            max_tokens: a shorter bound than the policy's own.

        Raises:
            PtlError: it was asked for more than `max_turns` replies, or the episode is over.
        """


@dataclass(frozen=True)
class Branch:
    """Tokens that went through the model as one sequence: a conversation, or one line of it."""

    tokens: Sequence[int]
    """Token ids (N,)."""
    sampled: Sequence[bool]
    """Which of them the policy wrote (N,): those are learned. The first never is."""
    logprobs: Sequence[float]
    """Their log-probabilities as they were sampled, in nats (N,); of the others nothing is read."""
    messages: Messages
    """The same as messages, for people; it ends with what the policy wrote."""

    def __post_init__(self) -> None:
        lengths = len(self.tokens), len(self.sampled), len(self.logprobs)
        if len(set(lengths)) > 1:
            raise ValueError(f"a branch has {lengths} tokens, flags and log-probabilities")
        for token in self.tokens:
            if isinstance(token, bool) or not isinstance(token, Integral) or token < 0:
                raise ValueError(f"a branch has {token!r} among its tokens, which is no token id")
        own = [one for one, said in zip(self.logprobs, self.sampled, strict=True) if said]
        if not own or self.sampled[0]:
            raise ValueError("a branch has a prompt and something that the policy wrote to it")
        if not all(isinstance(one, Real) and math.isfinite(one) and one <= 0 for one in own):
            raise ValueError("a branch has log-probabilities that are none")
        if not any(message.role == "assistant" for message in self.messages):
            raise ValueError("a branch has no message of the assistant")


@dataclass(frozen=True)
class Played:
    """An episode that is over."""

    branches: Sequence[Branch]
    """All that the policy wrote and is to learn from."""
    reward: float | None
    """What the episode is worth; None abstains."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What is worth knowing of it beside its reward, as finite numbers: `success`. None is left
    out."""
    shown: str = ""
    """The episode for a person to look at, as Markdown, where its messages do not tell all."""
    truncated: bool = False
    """Whether it was cut, by a bound on turns or tokens, before it came to its end."""


@dataclass(frozen=True, kw_only=True)
class DrivenTask(Task):
    """A beginning of an environment that drives itself. It has one seat.

    `concurrent` says whether several episodes of one group may be played at the same time.
    """

    @abstractmethod
    def play(self, policy: Policy) -> Played:
        """Play an episode from its beginning to its end, in a thread of its own.

        What it raises has the episode begun again, and prompts that are asked again then have the
        replies that they had; see `retries` and `on_reward_error` of the method.
        """

    def start(self) -> Episode:
        """It cannot be told replies one by one."""
        raise PtlError(
            f"{self.source or type(self).__name__} drives its own episodes",
            hint="use a method that plays them, as grpo does, or the eval 'episodes'",
            code="wrong-data",
        )
