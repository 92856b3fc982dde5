"""Estimates of a plan's records, steps, tokens, time and cost, made before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain_recipes.conversion import convert
from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning import pricing, tokens
from posttrain_recipes.planning.data import load_records
from posttrain_recipes.planning.plans import Data, Plan, PlannedEval, PlannedStage, model_location
from posttrain_recipes.planning.pricing import Prices, duration, show_usd
from posttrain_recipes.planning.reuse import Decision
from posttrain_recipes.plugin import DataMethod
from posttrain_recipes.records import Record
from posttrain_recipes.store import Estimated, RunRecord, Spent, StageRecord
from posttrain_recipes.workload import CountTokens, Usage, Workload

COUNTED = 1000
"""Data sets up to this many records are counted whole; of larger ones, their first SAMPLED."""
SAMPLED = 200
STREAMED_BYTES = 64 << 20
"""Files whose records have to be read to be counted are read up to this size."""
TRIES = 5
"""Earlier stages whose speed is averaged."""
START_S, STEP_S, EVAL_S, CHECKPOINT_S = 0.5, 0.07, 0.08, 0.04
"""Seconds that a stage in training, and each of these, takes beside its tokens: measured with
`ptl/tiny`, whose tokens take next to nothing. Of a stage that was never run they are added."""


@dataclass
class Estimator:
    """Estimates the stages of one plan."""

    plan: Plan
    prices: Prices
    runs: Sequence[RunRecord] = ()
    """Earlier runs, for their speed."""
    whole: bool = False
    """Count the tokens of every record, however many there are."""
    _samples: dict[str, tuple[int, list[Record], bool] | None] = field(default_factory=dict)
    _measured: set[tuple[str, str]] = field(default_factory=set)

    def stages(
        self, decided: Sequence[tuple[PlannedStage, Decision]]
    ) -> Iterator[tuple[PlannedStage, Decision, Estimated | None]]:
        """Each stage with its estimate; None for one that has nothing left to do."""
        for stage, decision in decided:
            todo = decision.action in ("run", "resume") or decision.evals
            if decision.stage is not None and decision.action in ("reuse", "resume"):
                self._known(stage, decision.stage)
            yield stage, decision, self.stage(stage, decision) if todo else None

    def stage(self, stage: PlannedStage, decision: Decision) -> Estimated:
        """The estimate of one stage: its training and its evals."""
        training, exact = self._training(stage)
        if decision.action == "reuse":
            training, exact = Workload(Usage()), True
        resume = decision.stage.resume if decision.stage else None
        done = decision.done or (resume.step if resume else 0)
        steps = training.steps if training else None
        if training and decision.action == "resume" and training.steps and done:
            if decision.stage is not None and decision.stage.ended:
                steps = done  # by its evals
            left = max(0, (steps or 0) - done)
            usage = training.usage.scaled(left / training.steps)
            training = replace(training, usage=usage, steps=left)
        evals, evals_exact, count = self._evals(stage, done, steps)
        unknown = [name for name, part in (("training", training), ("evals", evals)) if not part]
        unknown += ["rewards"] * any(reward.asks_model for reward, _ in stage.rewards)
        whole = (training or Workload(Usage())) + (evals or Workload(Usage()))
        if unknown or training is None or evals is None:
            return Estimated(
                whole.steps, whole.usage.tokens, at_most=whole.at_most, unknown=unknown
            )
        price = self.prices.of(stage.model)
        return Estimated(
            steps=training.steps,
            tokens=whole.usage.tokens,
            exact=exact and evals_exact,
            at_most=whole.at_most,
            usd=price.usd(whole.usage) if self.plan.engine.billed else None,
            **self._seconds(stage, training, evals, _beside_tokens(stage, training, done), count),
        )

    # --- work ------------------------------------------------------------------------------------

    def _training(self, stage: PlannedStage) -> tuple[Workload | None, bool]:
        if stage.method is None or stage.data is None or stage.wants is None:
            return Workload(Usage()), True
        found = self._sample(stage.data, stage.wants)
        if found is None:
            return None, False
        count, sample, exact = found
        counter = self._counter(stage)
        work = stage.method.workload(sample, count, counter or tokens.roughly)
        return work, exact and counter is not None and not (work and work.about)

    def _known(self, stage: PlannedStage, kept: StageRecord) -> None:
        """Nothing that an earlier run measured is measured again."""
        start, end = self._weights(stage)
        for weights, results in ((start, kept.before), (end, kept.after)):
            self._measured |= {(found.fingerprint, weights) for found in results}

    def _weights(self, stage: PlannedStage) -> tuple[str, str]:
        """What tells the weights that a stage starts from, and those that it ends in."""
        parent = next((s for s in self.plan.stages if s.name == stage.start), None)
        start = self._weights(parent)[1] if parent else f"{stage.start} {stage.model}"
        trains = stage.method is not None and not isinstance(stage.method, DataMethod)
        return start, stage.fingerprint if trains else start

    def _evals(
        self, stage: PlannedStage, done: int, steps: int | None
    ) -> tuple[Workload | None, bool, int]:
        """What the evals of a stage take that has done some of its steps, if those are known; and
        how many they are."""
        start, end = self._weights(stage)
        total: Workload | None = Workload(Usage())
        exact, runs = True, 0
        counter = self._counter(stage)
        for planned in stage.evals:
            found = self._sample(planned.data, planned.wants)
            work = None
            if found is not None:
                count, sample, whole = found
                work = planned.eval.workload(sample, count, counter or tokens.roughly)
                exact = exact and whole and counter is not None and not (work and work.about)
            for weights in dict.fromkeys((start, end)):
                # The runner evaluates the same weights once, whichever stage asks.
                if (planned.fingerprint, weights) in self._measured:
                    continue
                self._measured.add((planned.fingerprint, weights))
                runs += 1
                total = total + work if total and work else None
            if planned.every and (times := times_during(stage, planned, done, steps)) != 0:
                runs += times or 0
                during = _repeated(work, times) if work and times else None
                total = total + during if total and during else None
        if total and (stage.keep or stage.stop):
            total = replace(total, at_most=True)
        return total, exact, runs

    def _counter(self, stage: PlannedStage) -> CountTokens | None:
        location = model_location(stage.model, self.plan.path.parent)
        key = location, stage.renderer.chat_template
        if key not in _COUNTERS:
            _COUNTERS[key] = tokens.counter(*key)
        return _COUNTERS[key]

    def _sample(self, data: Data, wants: type[Record]) -> tuple[int, list[Record], bool] | None:
        """How many records there are, some of them, and whether those are all."""
        key = f"{data.identity()} {wants.__name__}"
        if key not in self._samples:
            try:
                self._samples[key] = self._read(data, wants)
            except PtlError:  # preflight and the run say what is wrong with it
                self._samples[key] = None
        return self._samples[key]

    def _read(self, data: Data, wants: type[Record]) -> tuple[int, list[Record], bool] | None:
        dataset, config = data.dataset, data.dataset.config
        if data.made_by or (dataset.digest() is None and not self.whole):
            return None  # made by a stage that has not run, or not on this machine
        count = dataset.size()
        if count is None:
            large = getattr(dataset, "path", None)
            if isinstance(large, Path) and large.stat().st_size > STREAMED_BYTES and not self.whole:
                return None
            count = sum(1 for _ in dataset.load())
        count = min(count, config.limit) if config.limit else count
        if count <= COUNTED or self.whole:
            records = load_records(data, wants)
            return len(records), records, True
        part = config.test_size if data.held_out else count - config.test_size
        return part, [convert(record, wants) for record in islice(dataset.load(), SAMPLED)], False

    # --- time ------------------------------------------------------------------------------------

    def _seconds(
        self, stage: PlannedStage, training: Workload, evals: Workload, beside: float, count: int
    ) -> dict[str, Any]:
        """The estimated seconds, from earlier runs of the same model, method and engine; what was
        never run is told by the machine's speed, where the engine knows that, and by what training
        takes `beside` its tokens, and so many evals beside theirs.

        A bound on tokens is not what is expected: it counts as the share that was used of the
        bounds of those runs.
        """
        method = stage.method.name if stage.method else None
        same = [
            kept
            for run in reversed(self.runs)
            for kept in run.stages
            if run.engine == self.plan.engine.name and kept.model == stage.model
        ]
        found, calibrated = 0.0, False
        folder = tokens.folder(model_location(stage.model, self.plan.path.parent))
        alike = [kept for kept in same if kept.method == method]
        for work, spent, more in (
            (training, [kept.training for kept in alike], beside),
            (evals, [kept.evaluation for kept in same], EVAL_S * count),
        ):
            if work.usage.tokens:
                rate = _rate(spent)
                ahead = rate * work.usage.tokens if rate is not None else None
                if ahead is None and folder is not None:
                    ahead, calibrated = self.plan.engine.seconds(folder, work.usage), True
                    found += more
                if ahead is None:
                    return {"seconds": None}
                found += ahead * (_share(alike) if work.at_most else 1.0)
        return {"seconds": found, "calibrated": calibrated}


_COUNTERS: dict[tuple[str, str | None], CountTokens | None] = {}


def times_during(
    stage: PlannedStage, planned: PlannedEval, done: int, steps: int | None
) -> int | None:
    """How often an eval is run in the middle of a stage that has `done` steps already; None where
    it is not known how many steps there are."""
    if steps is None:
        return None
    if steps <= done or planned.every is None:
        return 0
    decides = stage.keep is not None and stage.keep.eval == planned.name
    return (steps - 1) // planned.every - done // planned.every + decides


def checkpoints(stage: PlannedStage, done: int, total: int) -> int:
    """How many a stage saves after step `done` of `total`, by steps: `save_minutes` adds few."""
    every = {planned.every or 0 for planned in stage.evals}
    every.add(getattr(getattr(stage.method, "config", None), "save_every", 0))
    steps = {n for k in every - {0} for n in range(done // k * k + k, total, k)}
    return len(steps) + (done < total)


def _beside_tokens(stage: PlannedStage, training: Workload, done: int) -> float:
    """Seconds that training takes beside its tokens."""
    saves = checkpoints(stage, done, done + training.steps)
    return START_S + STEP_S * training.steps + CHECKPOINT_S * saves


def _repeated(work: Workload, times: int) -> Workload:
    return replace(work, usage=work.usage.scaled(times), steps=work.steps * times)


def _rate(spent: Sequence[Spent]) -> float | None:
    """Seconds per token."""
    used = [part for part in spent if part.usage.tokens and part.seconds > 0][:TRIES]
    if not used:
        return None
    return sum(part.seconds for part in used) / sum(part.usage.tokens for part in used)


def _share(stages: Sequence[StageRecord]) -> float:
    """The share of the bounds on their tokens that stages used; 1 where there is none to tell."""
    told = [
        (kept.spent.usage.tokens, kept.estimate.tokens)
        for kept in stages
        if kept.done and kept.estimate and kept.estimate.at_most and not kept.estimate.unknown
    ]
    used = [(spent, bound) for spent, bound in told if spent and bound][:TRIES]
    if not used:
        return 1.0
    return min(1.0, sum(spent for spent, _ in used) / sum(bound for _, bound in used))


def needed(plan: Plan) -> dict[str, list[str]]:
    """By base model, the kinds of price that its stages need: those that train it, training too."""
    found: dict[str, list[str]] = {}
    for stage in plan.stages:
        kinds = found.setdefault(stage.model, [])
        trains = stage.method is not None and not isinstance(stage.method, DataMethod)
        wanted = ["train"] * trains + ["prefill", "sample"]
        kinds += [kind for kind in wanted if kind not in kinds]
    return found


def unpriced(plan: Plan, prices: Prices) -> list[str]:
    """What costs of the plan nothing is known of, and what else the table says of its models, in
    words; nothing where the engine bills nothing."""
    if not plan.engine.billed:
        return []
    lacking = pricing.unpriced(needed(plan), prices)
    told = [f"{text}, so that what needs it is not estimated" for text in lacking]
    noted = ((model, prices.of(model).note) for model in needed(plan))
    return told + [f"prices of {model}: {note}" for model, note in noted if note]


def goes_beside(stage: PlannedStage) -> bool:
    """Whether the evals after a stage can go on while later ones train: it has some, of weights
    that are not those before it."""
    trains = stage.method is not None and not isinstance(stage.method, DataMethod)
    return trains and bool(stage.evals)


def beside(plan: Plan) -> str | None:
    """That evals go on while later stages train, in words; None where they do not."""
    if not (plan.engine.beside and any(map(goes_beside, plan.stages[:-1]))):
        return None
    most = plan.engine.beside
    whose = "one stage" if most == 1 else f"up to {most} stages"
    return f"evals of {whose} go on beside those that train next, which takes less time than this"


def storage(plan: Plan, stage: PlannedStage, prices: Prices) -> str | None:
    """What a stage leaves on an engine that bills for keeping it; None where it leaves nothing."""
    trains = stage.method is not None and not isinstance(stage.method, DataMethod)
    if not plan.engine.billed or not trains:
        return None
    cost = "at a price that is not in the table"
    if prices.storage is not None:
        cost = f"{show_usd(prices.storage)} per GB and month"
    return f"2 checkpoints, a state and its sampler; the service bills their storage, {cost}"


def total(estimates: Sequence[Estimated]) -> Estimated:
    """The estimates of several stages, added up."""

    def add(name: str) -> float | None:
        values = [getattr(estimate, name) for estimate in estimates]
        return None if None in values else sum(values)

    return Estimated(
        steps=sum(e.steps for e in estimates),
        tokens=sum(e.tokens for e in estimates),
        exact=all(e.exact for e in estimates),
        at_most=any(e.at_most for e in estimates),
        usd=add("usd"),
        seconds=add("seconds"),
        calibrated=any(e.calibrated for e in estimates),
        unknown=sorted({part for e in estimates for part in e.unknown}),
    )


def describe(estimate: Estimated, billed: bool) -> str:
    """`112 steps, at most 481,200 tokens, 3 min 10 s, $0.21`."""
    parts = [f"{estimate.steps} step{'s' * (estimate.steps != 1)}"] if estimate.steps else []
    if estimate.unknown:
        whose = " and ".join(estimate.unknown)
        if estimate.tokens:
            parts.append(f"{_hedged(estimate)} tokens, {whose} not counted")
        else:
            parts.append(f"tokens of {whose} are not counted")
        return ", ".join(parts)
    parts.append(f"{_hedged(estimate)} tokens")
    if estimate.seconds is not None:
        how = " by this machine's speed" if estimate.calibrated else ""
        parts.append(f"about {_ahead(estimate.seconds)}{how}")
    if billed and estimate.usd is None:
        parts.append("price unknown")
    elif billed:
        parts.append(f"{'at most ' if estimate.at_most else ''}{show_usd(estimate.usd or 0.0)}")
    return ", ".join(parts)


def took(stage: StageRecord) -> str | None:
    """A stage's actual time and tokens beside the estimate; None for one that spent nothing."""
    spent, expected = stage.spent, stage.estimate
    if not stage.paid.usage.tokens:
        return None
    tokens_ahead = time_ahead = usd_ahead = None
    if expected is not None and not expected.unknown:
        tokens_ahead = _hedged(expected)
        time_ahead = None if expected.seconds is None else _ahead(expected.seconds)
        usd_ahead = None if expected.usd is None else show_usd(expected.usd)

    def beside(actual: str, estimate: str | None) -> str:
        return f"{actual} ({estimate} expected)" if estimate else actual

    parts = [
        beside(f"{spent.usage.tokens:,} tokens", tokens_ahead),
        beside(duration(spent.seconds), time_ahead),
    ]
    if stage.usd is not None:
        parts.append(beside(show_usd(stage.usd), usd_ahead))
    if lost := stage.lost.usage.tokens:
        parts.append(f"and {lost:,} tokens of evals that were interrupted")
    if watching := stage.watching.usage.tokens:
        parts.append(f"and {watching:,} tokens of the prompts of 'watch:'")
    return ", ".join(parts)


def _ahead(seconds: float) -> str:
    """A time that is expected: nothing takes none."""
    return duration(max(1.0, seconds))


def _hedged(estimate: Estimated) -> str:
    hedge = "at most " if estimate.at_most else ""
    return f"{hedge}{'' if estimate.exact else 'about '}{estimate.tokens:,}"
