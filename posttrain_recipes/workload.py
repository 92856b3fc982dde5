"""Estimated work: optimizer steps, and tokens by what an engine does with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from posttrain_recipes.records import Message


class CountTokens(Protocol):
    """Counts the tokens of a conversation as the model sees it."""

    def __call__(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, or of a conversation through what the assistant said last."""


@dataclass(frozen=True)
class Usage:
    """Tokens, as hosted engines bill them."""

    train: int = 0
    """Tokens that went through forward and backward."""
    prefill: int = 0
    """Tokens that were read: prompts, and what is only scored."""
    sample: int = 0
    """Tokens that were written."""
    forward: int = 0
    """Of `prefill`, what a training client read, as a loss of one's own does before its backward
    pass: whether that is billed as prefill or as training, no words of the service say."""

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.train + self.prefill + self.sample

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.train + other.train,
            self.prefill + other.prefill,
            self.sample + other.sample,
            self.forward + other.forward,
        )

    def scaled(self, factor: float) -> Usage:
        """So many times of it."""
        counts = (self.train, self.prefill, self.sample, self.forward)
        return Usage(*(round(count * factor) for count in counts))


@dataclass(frozen=True)
class Billed:
    """What a service says that it billed for a run, when it was asked."""

    asked: str
    """When."""
    usd: float = 0.0
    """Before credits, of what has a price by then."""
    train: int = 0
    prefill: int = 0
    sample: int = 0
    unpriced: int = 0
    """Tokens of these that have no price yet."""
    why: str = ""
    """Why nothing is known; empty where it answered."""


@dataclass(frozen=True)
class Workload:
    """What a method or an eval is going to do."""

    usage: Usage
    steps: int = 0
    """Optimizer steps."""
    about: bool = False
    """Whether it depends on which records are drawn, so that nobody knows it exactly."""
    at_most: bool = False
    """Whether less may be enough: a reply can end before its limit."""

    def __add__(self, other: Workload) -> Workload:
        return replace(
            self,
            usage=self.usage + other.usage,
            steps=self.steps + other.steps,
            about=self.about or other.about,
            at_most=self.at_most or other.at_most,
        )


def trained(counts: Sequence[int], limit: int) -> float:
    """The mean of what examples with these token counts take: the last token is only predicted."""
    return mean(counts, limit) - 1


def mean(counts: Sequence[int], limit: int | None = None) -> float:
    """The mean of token counts, each cut at `limit`."""
    cut = [count if limit is None else min(count, limit) for count in counts]
    return sum(cut) / max(1, len(cut))
