"""The budget of a run: what it has spent so far, and stopping it before a limit is passed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning.plans import Plan, PlannedStage
from posttrain_recipes.planning.pricing import Prices, show_usd
from posttrain_recipes.running.metering import Meter
from posttrain_recipes.store import RunRecord, Spent, StageRecord
from posttrain_recipes.waiting import Interrupts, StopAsked

AHEAD = 2
"""Steps that may be under way when one is done: a bound has to hold with them too."""


@dataclass
class Spending:
    """Counts what a run spends, and has it stop before a bound is passed."""

    plan: Plan
    record: RunRecord
    prices: Prices
    interrupts: Interrupts
    jobs: int = 1
    """Stages that may run at the same time."""
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.before = self.record.seconds
        self._last: dict[str, tuple[float, int]] = {}
        """By stage: when its last step was done, and how many tokens it had used then."""
        self._longest = 0.0
        self._largest = 0
        limits = self.plan.limits
        if limits.max_cost_usd is not None and self.plan.engine.billed:
            for stage in self.plan.stages:
                price = self.prices.of(stage.model)
                if None in (price.train, price.prefill, price.sample):
                    raise UsageError(
                        f"limits.max_cost_usd cannot be held: not every price of {stage.model} is "
                        "known",
                        why=self.prices.note,
                        hint="write them into prices.yaml beside the runs, or use max_tokens",
                        code="prices",
                    )

    def start(self) -> None:
        """Begin to count."""
        limits = self.plan.limits
        if limits.max_hours is not None:
            self._deadline(limits.max_hours)
        self.check("")

    @property
    def seconds(self) -> float:
        """How long the run has taken, all tries together."""
        return self.before + time.monotonic() - self.began

    @property
    def tokens(self) -> int:
        """Tokens of all stages that this run trained and evaluated itself."""
        return sum(kept.paid.usage.tokens for kept in self.record.stages)

    def usd(self, stage: PlannedStage, kept: StageRecord) -> float | None:
        """What a stage cost so far; None where that is not known or nothing is billed."""
        if not self.plan.engine.billed:
            return None
        return self.prices.of(stage.model).usd(kept.paid.usage)

    @contextmanager
    def into(self, stage: PlannedStage, kept: StageRecord, spent: Spent) -> Iterator[None]:
        """Count what is spent on a stage until the context ends."""
        self._last[stage.name] = time.monotonic(), kept.paid.usage.tokens
        try:
            with self.meter.into(spent):
                yield
        finally:
            kept.usd = self.usd(stage, kept)
            # What comes next is no part of a step, nor is what was counted here.
            self._last[stage.name] = time.monotonic(), kept.paid.usage.tokens

    def step(self, stage: PlannedStage, kept: StageRecord) -> None:
        """A step is done: ask for a stop where the next ones could pass a bound."""
        now, tokens = time.monotonic(), kept.paid.usage.tokens
        began, before = self._last.get(stage.name, (now, tokens))  # a node tells of its first
        self._longest = max(self._longest, now - began)
        self._largest = max(self._largest, tokens - before)
        self._last[stage.name] = now, tokens
        kept.usd = self.usd(stage, kept)
        if self.plan.limits.max_hours is not None:
            self._deadline(self.plan.limits.max_hours)
        reason = self._over(AHEAD * self.jobs * self._largest)
        if reason:
            self.interrupts.ask(reason)

    def check(self, what: str, tokens: int = 0) -> None:
        """Raise `StopAsked` where `what`, of so many tokens, would pass a bound."""
        reason = self._over(tokens)
        if reason:
            raise StopAsked(f"{reason}{what and f', before {what}'}")

    def _over(self, tokens: int) -> str | None:
        limits, used = self.plan.limits, self.tokens
        if limits.max_tokens is not None and used + tokens > limits.max_tokens:
            return f"limits.max_tokens is {limits.max_tokens:,}, and {used:,} are used"
        if limits.max_hours is not None and self.seconds >= 3600 * limits.max_hours:
            return self._too_long(limits.max_hours)
        spent = sum(kept.usd or 0.0 for kept in self.record.stages)
        if limits.max_cost_usd is not None and self.plan.engine.billed:
            # A step costs as the tokens so far did.
            ahead = spent * tokens / used if used else 0.0
            if spent + ahead > limits.max_cost_usd:
                most = show_usd(limits.max_cost_usd)
                return f"limits.max_cost_usd is {most}, and {show_usd(spent)} are spent"
        return None

    def _deadline(self, hours: float) -> None:
        left = 3600 * hours - self.seconds - AHEAD * self._longest
        self.interrupts.stop_at(time.monotonic() + left, self._too_long(hours))

    def _too_long(self, hours: float) -> str:
        return f"limits.max_hours is {hours:g}, and the time is up"
