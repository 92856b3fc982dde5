"""What rollouts are made of: the policy's own tokens with their log-probabilities, in groups.

Shapes: N tokens of a segment, of which those with a true `sampled` were written by the policy;
G rollouts of one prompt (or of episodes with one seed) are a group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from posttrain_recipes.records import Messages, Sample
from posttrain_recipes.training.rl.advantages import varies

if TYPE_CHECKING:
    import tinker

    from posttrain_recipes.plugin import WatchedReply

    Gradient: TypeAlias = tinker.APIFuture[tinker.ForwardBackwardOutput]


@dataclass(frozen=True)
class Segment:
    """Tokens that go through the model as one sequence (N,)."""

    tokens: list[int]
    sampled: list[bool]
    """Which of them the policy wrote; the first token never is."""
    logprobs: list[float]
    """Their log-probabilities when it did, in nats; 0 for the others."""

    @classmethod
    def reply(
        cls, prompt: Sequence[int], tokens: Sequence[int], logprobs: Sequence[float]
    ) -> Segment:
        """One reply to a prompt."""
        before = len(prompt)
        return cls(
            [*prompt, *tokens],
            [False] * before + [True] * len(tokens),
            [0.0] * before + list(logprobs),
        )

    def extended(self, more: Segment) -> Segment | None:
        """Both as one sequence, where `more` begins with the very tokens of this one; else None."""
        length = len(self.tokens)
        if more.tokens[:length] != self.tokens:
            return None
        return Segment(
            more.tokens,
            self.sampled + more.sampled[length:],
            self.logprobs + more.logprobs[length:],
        )

    def read(self, output: Mapping[str, tinker.TensorData]) -> list[float]:
        """log p of the policy's own tokens (T,), of what an engine's pass found (N - 1)."""
        return self.own([0.0, *(float(value) for value in output["logprobs"].data)])

    def own(self, values: Sequence[float | None]) -> list[float]:
        """Of `values` (N,), those of the tokens that the policy wrote."""
        pairs = zip(values, self.sampled, strict=True)
        return [value or 0.0 for value, sampled in pairs if sampled]


@dataclass(frozen=True)
class StepMarks:
    """What a reward says of the steps of a reply."""

    weight: float
    """Of the reward."""
    steps: list[tuple[int, float]]
    """(own tokens up to the end of the step, its reward) of each, in order."""

    @property
    def mean(self) -> float:
        """Of the steps' rewards; 0 of none."""
        return math.fsum(mark for _, mark in self.steps) / max(1, len(self.steps))


@dataclass
class Rollout:
    """One reply, or one episode of several, with what it came to."""

    segments: list[Segment]
    sample: Sample
    """For people and rewards."""
    conversations: Sequence[Messages]
    """What was read and written, each ending with what the policy wrote."""
    reward: float | None = None
    """Its reward less what its length costs; None leaves it out of its group."""
    parts: dict[str, float] = field(default_factory=dict)
    """What each reward gave it, before weights."""
    penalties: dict[str, float] = field(default_factory=dict)
    """What was taken off."""
    marks: list[StepMarks] = field(default_factory=list)
    """What its steps are worth, by each reward that marks steps."""
    reference: list[list[float]] = field(default_factory=list)
    """log p_ref of the policy's own tokens of each segment, where a reference was asked."""
    gaps: list[float] = field(default_factory=list)
    """Of the policy's own tokens, where they were read again: log q as it was told with the sample
    less what was read."""
    advantage: float = 0.0
    credits: list[list[float]] = field(default_factory=list)
    """What is added to its advantage at each own token of each segment; none: 0."""
    weight: float = 0.0
    """What one of its tokens weighs in the loss."""
    masked: bool = False
    """Whether its tokens are kept out of the loss."""
    by_reference: bool = False
    """Whether the reference wrote it, to be compared with what the policy did."""
    old: list[list[float]] = field(default_factory=list)
    """log p_old of the policy's own tokens of each segment, p_old the policy as the batch began,
    where it was asked."""
    entropies: list[list[float]] = field(default_factory=list)
    """What the sampling policy's entropy was at each of them, in nats, where it was asked."""
    factors: list[list[float]] = field(default_factory=list)
    """What the loss of each of them is multiplied by; none: 1."""
    surprise: float = 0.0
    """-log q of a token of its group, in the mean: what a bonus on entropy is less of."""

    @property
    def kl(self) -> float | None:
        """log q/p_ref summed over its tokens, in nats; None where no reference was asked."""
        if not self.reference:
            return None
        ours = [value for segment in self.segments for value in segment.own(segment.logprobs)]
        return math.fsum(ours) - math.fsum(value for own in self.reference for value in own)

    @property
    def outcome(self) -> float | None:
        """The reward without the mean of the marks of its steps, which are credited by token."""
        if self.reward is None:
            return None
        return self.reward - math.fsum(one.weight * one.mean for one in self.marks)

    @property
    def teaches(self) -> bool:
        """Whether its advantage is another than 0 somewhere."""
        return bool(self.advantage) or any(any(own) for own in self.credits)

    @property
    def length(self) -> int:
        """Tokens that the policy wrote."""
        return sum(sum(segment.sampled) for segment in self.segments)

    @property
    def longest(self) -> int:
        """Tokens of its longest reply."""
        longest = run = 0
        for segment in self.segments:
            run = 0
            for own in segment.sampled:
                run = run + 1 if own else 0
                longest = max(longest, run)
        return longest


@dataclass(frozen=True)
class RolloutSegment:
    """One sequence of a rollout that is learned from."""

    rollout: Rollout
    place: int
    """Which of its segments."""

    @property
    def segment(self) -> Segment:
        """Its tokens (N,)."""
        return self.rollout.segments[self.place]

    @property
    def sampled(self) -> list[float]:
        """log q of the policy's own tokens (T,)."""
        return self.segment.own(self.segment.logprobs)

    @property
    def old(self) -> list[float]:
        """log p of them that the ratio of the loss is to (T,): p_old where the policy read them as
        its batch began, else q."""
        return self.rollout.old[self.place] if self.rollout.old else self.sampled

    @property
    def reference(self) -> list[float]:
        """log p_ref of them (T,); empty where no reference was asked."""
        return self.rollout.reference[self.place] if self.rollout.reference else []

    @property
    def credits(self) -> list[float]:
        """What is added to the advantage at each of them (T,)."""
        credits = self.rollout.credits
        return credits[self.place] if credits else [0.0] * sum(self.segment.sampled)

    @property
    def worth(self) -> list[float]:
        """Of each of them (T,), the advantage with what it is credited for."""
        return [self.rollout.advantage + credit for credit in self.credits]

    @property
    def weights(self) -> list[float]:
        """What the loss of each of them weighs (T,)."""
        weight, factors = self.rollout.weight, self.rollout.factors
        each = factors[self.place] if factors else [1.0] * sum(self.segment.sampled)
        return [weight * factor for factor in each]


Passes: TypeAlias = "list[tuple[list[RolloutSegment], Gradient]]"
"""What was submitted to be learned from, with the future of its forward and backward pass."""


@dataclass
class Group:
    """Rollouts that are compared with each other."""

    rollouts: list[Rollout]
    counts: Counter[str] = field(default_factory=Counter)
    """What happened on the way: rewards that failed, rollouts that were tried again."""
    error: str = ""
    """The first thing that a reward raised."""
    greedy: Rollout | None = None
    """The policy's likeliest reply, where a baseline is made of it; it is not learned from."""
    reward_weights: dict[str, float] = field(default_factory=dict)
    """By name of a part, what it weighs in the reward; empty where an environment rewards."""
    apart: bool = False
    """Whether its parts are compared each by itself, so that those may tell where sums do not."""

    @property
    def own(self) -> list[Rollout]:
        """Those that the policy wrote."""
        return [rollout for rollout in self.rollouts if not rollout.by_reference]

    @property
    def written(self) -> int:
        """Tokens that were sampled for it, those of the greedy reply included."""
        greedy = self.greedy.length if self.greedy else 0
        return greedy + sum(rollout.length for rollout in self.rollouts)

    @property
    def scored(self) -> list[Rollout]:
        """Those that have a reward."""
        return [rollout for rollout in self.rollouts if rollout.reward is not None]

    @property
    def rewards(self) -> list[float]:
        """The rewards of `scored`."""
        return [rollout.reward for rollout in self.rollouts if rollout.reward is not None]

    @property
    def outcomes(self) -> list[float]:
        """The outcomes of `scored`."""
        return [one.outcome for one in self.rollouts if one.outcome is not None]

    @property
    def marked(self) -> list[list[float]]:
        """By each reward that marks steps, the marks of all of its scored rollouts."""
        several = zip(*(rollout.marks for rollout in self.scored), strict=True)
        return [[mark for one in part for _, mark in one.steps] for part in several]

    @property
    def varies(self) -> bool:
        """Whether there is something to learn: not all of its rewards, or of a reward's marks of
        steps, are the same."""
        parts = [part for _, part in self.weighted_parts()] if self.apart else []
        return any(varies(rewards) for rewards in (self.compared, *parts, *self.marked))

    @property
    def lone(self) -> bool:
        """Whether it is one reply, which is compared with other groups' alone."""
        return len(self.rollouts) + (self.greedy is not None) == 1

    @property
    def learned(self) -> bool:
        """Whether something is learned of it: it varies, or the batch gave it an advantage."""
        return self.varies or any(one.teaches for one in self.scored)

    @property
    def compared(self) -> list[float]:
        """The rewards that tell whether there is something to learn: the greedy reply's too."""
        greedy = self.greedy.outcome if self.greedy else None
        return self.outcomes if greedy is None else [*self.outcomes, greedy]

    def weighted_parts(self) -> list[tuple[float, list[float]]]:
        """(weight, values (G,) of the scored rollouts) of each part that scored all of them."""
        return [
            (weight, [rollout.parts[name] for rollout in self.scored])
            for name, weight in self.reward_weights.items()
            if all(name in rollout.parts for rollout in self.scored)
        ]

    def weigh(self, advantages: Sequence[float], weights: Sequence[float], groups: int) -> None:
        """Give each of `scored` its advantage, and each of its tokens a weight in the loss.

        Args:
            advantages: one for each (G,).
            weights: of a token of each (G,), in the loss of this group.
            groups: how many groups the loss is a mean over. Those without variance count in it,
                with nothing to add.
        """
        drawn = [-p for one in self.scored for s in one.segments for p in s.own(s.logprobs)]
        surprise = math.fsum(drawn) / max(1, len(drawn))
        for rollout, advantage, weight in zip(self.scored, advantages, weights, strict=True):
            rollout.surprise = surprise
            # Float noise in the mean of equal rewards is no reason to move.
            rollout.advantage = advantage if abs(advantage) > 1e-9 else 0.0
            rollout.weight = weight / groups


class Source(Protocol):
    """Where groups come from: prompts with rewards, or an environment."""

    @property
    def size(self) -> int:
        """How many different groups there are in a pass."""

    @property
    def seats(self) -> int:
        """How many groups one of them is: one for each seat that the policy takes."""

    def sample(self, index: int, seed: int, sampler: tinker.SamplingClient) -> list[Group]:
        """Group `index` from these weights, one for each seat; waits, in a thread of its own.

        What comes back depends on the arguments alone. Completions of prompts have no reward yet,
        episodes have that of their environment.
        """


class Learner(Protocol):
    """What a method makes of the groups of a batch, as far as the loop needs to know it."""

    @property
    def compares_batch(self) -> bool:
        """Whether what is learned of a group is known only once the whole batch has its rewards."""

    def ready(
        self, client: tinker.TrainingClient, groups: Sequence[Group], wait: Callable[[Any], Any]
    ) -> None:
        """Called with groups before anything is learned from their batch; may wait."""

    def told(
        self,
        groups: Sequence[Group],
        items: Sequence[RolloutSegment],
        outputs: Sequence[dict[str, tinker.TensorData]],
    ) -> Mapping[str, float]:
        """Metrics of a step, from what the engine's pass found for each item."""

    def watched(self, groups: Sequence[Group]) -> Sequence[WatchedReply]:
        """A few rollouts of a step for people to look at."""
