"""How far a stage in training is: what is told of a step, and how long it will take yet."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from posttrain_recipes.planning import costs
from posttrain_recipes.planning.plans import PlannedEval, PlannedStage
from posttrain_recipes.planning.pricing import duration
from posttrain_recipes.store import StageRecord
from posttrain_recipes.waiting import worker

SLOPE_STEPS = 20
"""Of RL, steps that the slope of the reward is taken over."""
PACE_STEPS = 50
"""Steps that the time of the next ones is taken from."""


@dataclass
class BetweenSteps:
    """Seconds that what comes between the steps of a run's stages took the last time."""

    clock: Callable[[], float] = time.monotonic
    evals: dict[str, float] = field(default_factory=dict)
    """By fingerprint."""
    checkpoint: float = 0.0
    """Beyond a step without one."""
    _began: dict[str, float] = field(default_factory=dict)
    """When each worker began the eval that it is at."""

    def known(self, stage: PlannedStage, record: StageRecord) -> None:
        """What an earlier try of a stage tells of its evals, where nothing newer does."""
        results = len(record.before) + len(record.during)
        for planned in stage.evals if results else ():
            self.evals.setdefault(planned.fingerprint, record.evaluation.seconds / results)

    def evaluating(self) -> None:
        """An eval begins."""
        self._began[worker()] = self.clock()

    def evaluated(self, planned: PlannedEval) -> None:
        """It is done. One whose result was known before never began, and says nothing of time."""
        if (began := self._began.pop(worker(), None)) is not None:
            self.evals[planned.fingerprint] = self.clock() - began


class StageProgress:
    """The progress of a stage in training: steps saved, its smoothed speed, and the time left.

    Args:
        done: steps of an earlier try.
        stage: whose evals and checkpoints come between its steps; None: nothing does.
        pauses: how long those take.
    """

    def __init__(
        self,
        done: int = 0,
        stage: PlannedStage | None = None,
        pauses: BetweenSteps | None = None,
    ) -> None:
        self.stage = stage
        self.pauses = pauses or BetweenSteps()
        self.done = done
        self.kept = done
        """Steps that a next run need not do again."""
        self.stepped = False
        """Whether a step was done."""
        self.last = float("-inf")
        """When a step was told of."""
        self.tokens = 0.0
        """Tokens a second."""
        self.rewards: deque[float] = deque(maxlen=SLOPE_STEPS)
        """The mean rewards of the last steps of RL."""
        self._since = self.pauses.clock()
        """When the step that is under way began."""
        self._first = 0.0
        """Seconds of the first step, which starts up what the others find running."""
        self._took: deque[float] = deque(maxlen=PACE_STEPS)
        """Seconds of the others, without those that waited for a checkpoint too."""

    def add(self, metrics: Mapping[str, float]) -> None:
        """A step is done."""
        now = self.pauses.clock()
        if self.stepped:
            self._took.append(now - self._since)
        else:
            self._first = now - self._since
        self._since, self.stepped = now, True
        speed = metrics.get("train/tokens_per_second", 0.0)
        self.tokens = speed if not self.tokens else 0.9 * self.tokens + 0.1 * speed
        if "reward/mean" in metrics:
            self.rewards.append(metrics["reward/mean"])

    def saved(self, step: int) -> None:
        """A checkpoint is safe. The step that was told just before waited for it."""
        self.kept = step
        if len(self._took) > 1:
            took = self._took.pop()
            self.pauses.checkpoint = max(0.0, took - statistics.fmean(self._took))
        self._since = self.pauses.clock()

    def evaluated(self) -> None:
        """An eval is done, and the next step begins."""
        self._since = self.pauses.clock()

    def told(self, metrics: Mapping[str, float]) -> str:
        """The numbers of a step that people look at first."""
        if "reward/mean" in metrics:
            return "  ".join(self._rollouts(metrics))
        if "train/loss" in metrics:
            return f"loss {metrics['train/loss']:z.4f}"
        if "merge/norm" in metrics:
            return f"norm {metrics['merge/norm']:.3g}  lost {metrics['merge/lost']:.0%} of it"
        return f"{metrics.get('data/kept', 0):,.0f} records"

    def _rollouts(self, metrics: Mapping[str, float]) -> Iterator[str]:
        """Of RL, whose loss is 0 by its making: what the replies got, how many groups taught
        nothing, how many were cut at max_tokens, how far the policy went, how long they are. Where
        it is what is said of them that teaches, also the loss and how many were learned."""
        reward = f"reward {metrics['reward/mean']:z.3f}"
        if len(self.rewards) >= 3:
            slope = statistics.linear_regression(range(len(self.rewards)), self.rewards).slope
            reward += f" ({slope:+z.3f}/step)"
        yield reward
        if (share := metrics.get("feedback/learned_share")) is not None:
            yield f"loss {metrics.get('train/loss', 0):z.4f}  learned {share:.0%}"
        if (share := metrics.get("groups/zero_variance_share")) is not None:
            yield f"zero-var {share:.0%}"
        if (share := metrics.get("completions/clipped_ratio")) is not None:
            yield f"cut {share:.0%}"
        if (kl := metrics.get("policy/kl_reference")) is not None:
            yield f"kl {kl:z.3f}"
        if (length := metrics.get("completions/mean_length")) is not None:
            yield f"len {length:.0f}"

    def left(self, number: int, total: int) -> str:
        """Time until the last step, with the evals and checkpoints that come before it, as a person
        says it; empty where that is nothing. Asked once step `number` is done."""
        if not self.stepped:
            return "?"
        step = statistics.fmean(self._took) if self._took else self._first
        seconds = step * (total - number) + self._between(number, total)
        return duration(max(1.0, seconds)) if seconds > 0 else ""

    def _between(self, number: int, total: int) -> float:
        if self.stage is None:
            return 0.0
        # What is due on this very step comes once it was told.
        evals = sum(
            (costs.times_during(self.stage, planned, number - 1, total) or 0)
            * self.pauses.evals.get(planned.fingerprint, 0.0)
            for planned in self.stage.evals
        )
        return evals + costs.checkpoints(self.stage, number, total) * self.pauses.checkpoint
