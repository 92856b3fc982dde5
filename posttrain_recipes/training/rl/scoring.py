"""Scoring: weighted sums of rewards with every part kept, penalties, and rewards that fail.

A reward may abstain. A part that abstains on a whole group counts nothing there; where it abstains
on some replies of a group, those have no reward and are left out: a sum without one of its parts
cannot be compared with one that has it.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar

from posttrain_recipes.context import RewardLike
from posttrain_recipes.errors import PtlError
from posttrain_recipes.plugin import (
    Renderer,
    Reward,
    RewardContext,
    Sample,
    StageContext,
    StepMark,
)
from posttrain_recipes.training.rl import entropy
from posttrain_recipes.training.rl.behaviour import Behaviour
from posttrain_recipes.training.rl.failing import in_words
from posttrain_recipes.training.rl.rollout import Group, Rollout, StepMarks
from posttrain_recipes.waiting import CancellableWaiter, Cancelled, in_thread, pressed

if TYPE_CHECKING:
    import tinker

    from posttrain_recipes.training.rl.sources import CompletionConfig

log = logging.getLogger(__name__)
T = TypeVar("T")
OnError = Literal["drop", "zero", "stop"]


@dataclass
class Scores:
    """What the rewards said of a group of replies."""

    totals: list[float | None]
    """The weighted sum for each reply; None where there is none."""
    parts: list[dict[str, float]]
    """What each reward gave each reply, before its weight."""
    counts: Counter[str] = field(default_factory=Counter)
    """How many scores were `abstained`, `failed` and `timed_out`."""
    error: str = ""
    """The first thing that a reward raised."""


def scores_of(
    reward: RewardLike, samples: Sequence[Sample], timeout: float | None = None
) -> list[float | None]:
    """What a reward says of some replies, once it is free to be called.

    Args:
        timeout: seconds that the call may take; waiting for the reward's `lock` is not part of it.

    Raises:
        TimeoutError: it took longer. It is left to itself, and the lock is free again.
        WrongScores: it returned something else than a number or None for each.
        ValueError: one of them is not finite.
        Exception: what it raised; `RuntimeError` where that would end the process.
    """
    with reward.lock:
        returned = within(timeout, lambda: reward.score(samples))
    values = each(returned, len(samples), f"'{reward.label}'")
    return [finite(value, f"'{reward.label}'") for value in values]


class WrongScores(PtlError):
    """A reward returned something that cannot be told apart into one score for each reply.

    It does so for every reply, so that none of them is asked again and no policy goes on without:
    one score for four replies is not the score of each.
    """

    code = "reward-failed"


def each(returned: Any, count: int, source: str) -> list[Any]:
    """What a reward returned, as one value for each of `count` replies.

    Args:
        returned: a list, a tuple, or an array or tensor of shape (count,).
        source: who returned it, for the error.

    Raises:
        WrongScores: it is something else, or of another length; the message says what.
    """
    shape = getattr(returned, "shape", None)
    listed = isinstance(returned, Sequence) and not isinstance(returned, str | bytes)
    if shape is not None and tuple(shape) == (count,):
        return list(returned)
    if shape is None and listed and len(returned) == count:
        return list(returned)
    if shape is not None:
        what = f"{_told(returned)} of shape {tuple(shape)}"
    elif listed:
        what = f"{len(returned)} scores"
    else:
        what = _told(returned)
    raise WrongScores(
        f"{source} returned {what} for {count} {'reply' if count == 1 else 'replies'}",
        hint="return a list with a number for each reply, in their order; None where there is none",
    )


def feedback_of(
    reward: RewardLike, name: str, samples: Sequence[Sample], timeout: float | None = None
) -> list[str | None]:
    """What a reward says of some replies in words, once it is free to be called.

    Args:
        name: what the reward is called, for the error.
        timeout: seconds that the call may take.

    Raises:
        TimeoutError: it took longer.
        WrongScores: it returned something else than a text or None for each.
        Exception: what it raised.
    """
    with reward.lock:
        returned = within(timeout, partial(reward.feedback, samples))
    return _texts(returned, len(samples), name)


def _texts(returned: Any, count: int, name: str) -> list[str | None]:
    """What a reward's `feedback` returned. Raises `WrongScores`."""
    listed = isinstance(returned, Sequence) and not isinstance(returned, str)
    whole = listed and len(returned) == count
    other = [one for one in returned if not isinstance(one, str | None)] if whole else []
    if whole and not other:
        return list(returned)
    told = f"{_told(other[0])} for a reply" if other else f"{_told(returned)} for {count} replies"
    raise WrongScores(
        f"the feedback of '{name}' is {told}, and no text",
        hint="it says what is wrong in words, a text for each reply in their order; None where "
        "there is nothing to say",
    )


def _told(value: Any) -> str:
    text, kind = repr(value), type(value).__name__
    article = "an" if kind[0] in "aeiou" else "a"
    return f"{article} {kind} ({text if len(text) <= 60 else text[:57] + '...'})"


class Scorer:
    """A weighted sum of rewards. May be used from many threads at once."""

    def __init__(
        self,
        rewards: Sequence[tuple[RewardLike, float]],
        on_error: OnError = "drop",
        timeout: float | None = None,
    ) -> None:
        self.rewards = [
            (name, reward, weight)
            for name, (reward, weight) in zip(_names(rewards), rewards, strict=True)
        ]
        self.on_error = on_error
        self.timeout = timeout

    def open(self, context: RewardContext) -> None:
        """Have the rewards get ready."""
        for _, reward, _ in self.rewards:
            reward.open(context)

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Score the replies to one prompt.

        Raises:
            PtlError: a reward failed, and the stage says that this ends it.
            WrongScores: whatever the stage says.
        """
        scores = Scores([0.0] * len(samples), [{} for _ in samples])
        for name, reward, weight in self.rewards:
            values = self._ask(name, reward, samples, scores)
            if all(value is None for value in values):
                continue
            for index, value in enumerate(values):
                total = scores.totals[index]
                if value is None:
                    scores.totals[index] = None
                    continue
                scores.parts[index][name] = value
                scores.totals[index] = None if total is None else total + weight * value
        # Where every part abstained there is no sum, rather than a sum of nothing.
        scores.totals = [
            total if part else None for total, part in zip(scores.totals, scores.parts, strict=True)
        ]
        return scores

    def feedback(self, samples: Sequence[Sample]) -> list[str | None]:
        """What the rewards say of replies in words, one after another; None where none does.

        Raises:
            PtlError: a reward failed, and the stage says that this ends it.
            WrongScores: one returned something else than a text or None for each.
        """
        said: list[list[str]] = [[] for _ in samples]
        unread = Scores([], [])
        for name, reward, _ in self.rewards:
            try:
                texts_of = feedback_of(reward, name, samples, self.timeout)
            except TimeoutError:
                self._failed(name, f"feedback took more than {self.timeout:g} s", 0, unread)
                continue
            except (Cancelled, KeyboardInterrupt, WrongScores):
                raise
            except Exception as error:  # a reward is anybody's code
                self._failed(name, f"feedback: {in_words(error)}", 0, unread)
                continue
            for texts, text in zip(said, texts_of, strict=True):
                texts += [text] if text else []
        if unread.error:
            log.warning("%s; it goes on without", unread.error)
        return ["\n\n".join(texts) or None for texts in said]

    def _ask(
        self, name: str, reward: RewardLike, samples: Sequence[Sample], scores: Scores
    ) -> list[float | None]:
        try:
            values = scores_of(reward, samples, self.timeout)
        except TimeoutError:
            scores.counts["timed_out"] += len(samples)
            return self._failed(name, f"took more than {self.timeout:g} s", len(samples), scores)
        except (Cancelled, KeyboardInterrupt, WrongScores):
            raise
        except Exception as error:  # a reward is anybody's code
            if len(samples) > 1:
                # Only the reply that it fails on is to be without a score.
                return [self._ask(name, reward, [sample], scores)[0] for sample in samples]
            scores.counts["failed"] += 1
            return self._failed(name, in_words(error), 1, scores)
        scores.counts["abstained"] += sum(value is None for value in values)
        return values

    def _failed(self, name: str, why: str, count: int, scores: Scores) -> list[float | None]:
        scores.error = scores.error or f"reward '{name}': {why}"
        if self.on_error == "stop":
            raise PtlError(
                f"reward '{name}' failed",
                why=why,
                hint="mend it, or set on_reward_error to 'drop' or 'zero' to go on without",
                code="reward-failed",
            )
        return [0.0 if self.on_error == "zero" else None] * count


class StepScores:
    """A reward that marks steps, as one of whole replies: the mean of their marks, which are kept.

    May be used from many threads at once.
    """

    def __init__(self, reward: Reward, renderer: Renderer, weight: float) -> None:
        self.reward, self.renderer, self.weight = reward, renderer, weight
        self._kept: dict[int, list[StepMark]] = {}

    @property
    def label(self) -> str:
        return self.reward.label

    @property
    def lock(self) -> AbstractContextManager[object]:
        return self.reward.lock

    def open(self, context: RewardContext) -> None:
        self.reward.open(context)

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        returned = self.reward.steps(samples)
        marked = each(returned, len(samples), f"steps() of '{self.label}'")
        means: list[float | None] = []
        for sample, marks in zip(samples, marked, strict=True):
            said = [
                StepMark(m.end, finite(m.reward, f"'{self.label}'") or 0.0) for m in marks or ()
            ]
            self._kept[id(sample)] = said
            means.append(math.fsum(m.reward for m in said) / len(said) if said else None)
        return means

    def feedback(self, samples: Sequence[Sample]) -> Sequence[str | None]:
        return self.reward.feedback(samples)

    def take(self, rollout: Rollout) -> StepMarks:
        """The marks of a reply, by its tokens."""
        marks = self._kept.pop(id(rollout.sample), [])
        segment = rollout.segments[0]
        own = [token for token, mine in zip(segment.tokens, segment.sampled, strict=True) if mine]
        text = rollout.sample.completion

        def tokens(end: int) -> int:
            if end >= len(text):
                return len(own)
            places, said = range(len(own) + 1), len(text[:end].rstrip())

            def shown(count: int) -> int:
                return len(self.renderer.parse(own[:count]))

            # White space after a step belongs to it, and shows only with what follows.
            return max(
                bisect_left(places, said, key=shown), bisect_right(places, said, key=shown) - 1
            )

        return StepMarks(self.weight, [(tokens(mark.end), mark.reward) for mark in marks])


class RolloutScorer:
    """From what was sampled to the reward that is learned from: rewards less penalties.

    May be used from many threads at once.
    """

    def __init__(
        self, stage: StageContext, config: CompletionConfig, waiter: CancellableWaiter
    ) -> None:
        self.config = config
        self.waiter = waiter
        rewards = [
            (StepScores(reward, stage.renderer, weight), weight) if _marks_steps(reward) else one
            for one in stage.rewards
            for reward, weight in [one]
        ]
        self.scorer = Scorer(rewards, config.on_reward_error, config.reward_timeout)
        context = RewardContext(stage.seed, stage.renderer, waiter, stage.resolve, stage.cache)
        self.scorer.open(context)
        self.behaviour = Behaviour(
            config.reads_policy, waiter, measure=config.measures_policy and not stage.exact
        )
        self.reference: tinker.SamplingClient | None = None
        if config.reference is not None:
            self.reference = stage.resolve(config.reference).sampler
        elif config.reads_reference:
            self.reference = stage.sampling_client(stage.start)

    def score(self, group: Group, sampler: tinker.SamplingClient) -> Group:
        """The group with the reward of each rollout: that of the stage's rewards where it has some,
        else that of the environment, less penalties. `sampler` is the policy that wrote them."""
        asked = self.ask_reference(group.rollouts)  # it reads while the rewards are at work
        own = self.behaviour.ask(group.rollouts, sampler)
        likeliest = entropy.ask(group.rollouts, sampler) if self.config.reads_entropy else []
        greedy = [group.greedy] if group.greedy else []
        if self.scorer.rewards:
            every = [*group.rollouts, *greedy]
            scores = self.scorer.score([rollout.sample for rollout in every])
            for rollout, total, parts in zip(every, scores.totals, scores.parts, strict=True):
                rollout.reward, rollout.parts = total, parts
            group.counts.update(scores.counts)
            group.error = scores.error
            for name, reward, weight in self.scorer.rewards:
                if isinstance(reward, StepScores):
                    self.mark(every, reward)
                else:
                    group.reward_weights[name] = weight
        group.apart = self.config.compares_parts
        self.behaviour.take(group.rollouts, own)
        entropy.take(group.rollouts, likeliest, self.waiter)
        self.penalize(group.rollouts, asked)
        self.penalize(greedy, [])
        return group

    def mark(self, rollouts: Sequence[Rollout], reward: StepScores) -> None:
        """Keep what their steps are worth."""
        for rollout in rollouts:
            rollout.marks.append(reward.take(rollout))

    def ask_reference(
        self, rollouts: Sequence[Rollout]
    ) -> list[list[tinker.APIFuture[list[float | None]]]]:
        """Ask the reference for its log-probabilities, without waiting."""
        import tinker

        if self.reference is None:
            return []
        return [
            [
                self.reference.compute_logprobs(tinker.ModelInput.from_ints(segment.tokens))
                for segment in rollout.segments
            ]
            for rollout in rollouts
        ]

    def penalize(
        self,
        rollouts: Sequence[Rollout],
        asked: Sequence[Sequence[tinker.APIFuture[list[float | None]]]],
    ) -> None:
        """Take off what length costs, and keep what the reference says."""
        config = self.config
        for rollout, futures in zip(rollouts, asked, strict=bool(asked)):
            pairs = zip(rollout.segments, futures, strict=True)
            rollout.reference = [segment.own(self.waiter(future)) for segment, future in pairs]
        for rollout in rollouts:
            rollout.masked = config.overlong == "mask" and rollout.sample.truncated
            cost = config.overlong_cost(rollout.longest, rollout.sample.truncated)
            if config.overlong == "penalize":
                rollout.penalties["overlong"] = cost
            if rollout.reward is not None:
                rollout.reward -= sum(rollout.penalties.values())


def _marks_steps(reward: RewardLike) -> TypeGuard[Reward]:
    return isinstance(reward, Reward) and type(reward).steps is not Reward.steps


def _names(rewards: Sequence[tuple[RewardLike, float]]) -> list[str]:
    """A name for each reward's metrics; the second of a kind is `name_2`."""
    seen: Counter[str] = Counter()
    names = []
    for reward, _ in rewards:
        seen[reward.label] += 1
        names.append(reward.label + (f"_{seen[reward.label]}" if seen[reward.label] > 1 else ""))
    return names


def finite(value: Any, source: str) -> float | None:
    """What a reward or an environment gave, as a number; None where it abstains.

    Args:
        source: who gave it, for the error.

    Raises:
        ValueError: it is not a finite number.
    """
    if value is None:
        return None
    try:
        number = float(value) if hasattr(value, "__float__") else math.nan
    except Exception:  # an integer that no float holds, an array of several, a type of its own
        number = math.nan
    if not abs(number) < 1e30:
        told = "a huge integer" if isinstance(value, int) else repr(value)
        raise ValueError(f"{source} returned {told}, which is not a finite number")
    return number


def within(seconds: float | None, function: Callable[[], T]) -> T:
    """Call a function that may take too long; it is left to itself then, and not waited for.

    Args:
        seconds: how long it may take; None: as long as it likes.

    Raises:
        TimeoutError: it took too long.
        RuntimeError: it asked for the end of the process (`exit()`), or interrupted itself.
        Exception: whatever else the function raised.
    """
    began = time.monotonic()

    def work() -> T:
        try:
            return function()
        except (SystemExit, GeneratorExit) as error:
            raise RuntimeError(f"it called for the end of the process: {error!r}") from error
        except KeyboardInterrupt as error:
            if pressed(error):
                raise
            raise RuntimeError("it raised KeyboardInterrupt") from error
        except TimeoutError as error:
            if seconds is not None and time.monotonic() - began >= seconds:
                raise
            # One that times out by itself is a failure like any other.
            raise RuntimeError(f"TimeoutError: {error}") from error

    return work() if seconds is None else in_thread(work).result(timeout=seconds)
