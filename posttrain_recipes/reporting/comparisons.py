"""Comparisons within a run: between the branches of `compare`, or the cells of a matrix.

Branches or cells that differ only in the seed are one arm, compared by its mean over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from posttrain_recipes.language.expansion import origins
from posttrain_recipes.language.flat import Origin, show_labels
from posttrain_recipes.planning.gates import starts_of
from posttrain_recipes.records import Estimate, Sample
from posttrain_recipes.reporting import statistics
from posttrain_recipes.reporting.statistics import Paired
from posttrain_recipes.store import Measured, RunRecord, StageRecord

Samples = Callable[[StageRecord, str], Sequence[Sample]]
"""The samples of an eval after a stage, by the eval's name."""


@dataclass(frozen=True)
class ArmGroup:
    """The arms of one comparison."""

    title: str
    arms: Mapping[str, Mapping[str, StageRecord]]
    """Arm -> seed -> the last stage of that branch or cell."""


@dataclass(frozen=True)
class Cell:
    """One metric of one arm."""

    arm: str
    estimate: Estimate
    """Over seeds where there are several, else over records."""
    seeds: int
    against: Paired | None
    """This arm minus the first one."""
    adjusted: float
    """The p value of `against`, for as many arms as there are; NaN where there is none."""
    tokens: int
    seconds: float

    @property
    def verdict(self) -> str:
        """What to say of the difference, without the direction that is good."""
        if self.against is None:
            return ""
        return "differs" if self.adjusted < statistics.ALPHA else "same"


@dataclass(frozen=True)
class Table:
    """One metric of all arms of a group."""

    eval: str
    metric: str
    higher_is_better: bool | None
    cells: tuple[Cell, ...]

    @property
    def best(self) -> str:
        """The arm with the best value; empty where neither more nor less is better."""
        if self.higher_is_better is None:
            return ""
        sign = 1 if self.higher_is_better else -1
        known = [c for c in self.cells if not math.isnan(c.estimate.value)]
        return max(known, key=lambda c: sign * c.estimate.value).arm if known else ""


def groups(record: RunRecord) -> list[ArmGroup]:
    """The comparisons of a run; none for a run without branches."""
    found: dict[str, dict[str, dict[str, StageRecord]]] = {}
    known = origins(record.resolved)
    start = starts_of(record.resolved)
    leaves = [o for o in known if o.name not in start.values()]
    stages = {stage.name: stage for stage in record.stages}
    for origin in known:
        stage = stages.get(origin.name)
        if stage is None:
            continue
        if origin.comparison and origin.last:
            title, arm = origin.comparison, _arm(origin, origin.branch or "")
        elif origin in leaves and origin.labels and not origin.comparison:
            title, arm = f"{origin.source}, by what varies", _arm(origin, "")
        else:
            continue
        seed = dict(origin.labels).get("seed", "")
        found.setdefault(title, {}).setdefault(arm, {})[seed] = stage
    return [ArmGroup(title, arms) for title, arms in found.items() if _has_comparison(arms)]


def _arm(origin: Origin, branch: str) -> str:
    rest = show_labels(tuple(label for label in origin.labels if label[0] != "seed"))
    return " ".join(filter(None, (branch, rest))) or origin.source


def _has_comparison(arms: Mapping[str, Mapping[str, StageRecord]]) -> bool:
    return len(arms) > 1 or any(len(seeds) > 1 for seeds in arms.values())


def tables(group: ArmGroup, samples: Samples) -> list[Table]:
    """Every metric that the arms of a group have, with each arm against the first."""
    metrics: dict[tuple[str, str], bool | None] = {}
    for seeds in group.arms.values():
        for stage in seeds.values():
            for measured in stage.after:
                for metric in measured.metrics:
                    better = measured.higher_is_better.get(metric, True)
                    metrics.setdefault((measured.name, metric), better)
    return [
        _table(group, name, metric, better, samples) for (name, metric), better in metrics.items()
    ]


def _table(group: ArmGroup, name: str, metric: str, better: bool | None, samples: Samples) -> Table:
    cells: list[Cell] = []
    first: Mapping[str, StageRecord] = {}
    for arm, seeds in group.arms.items():
        values = _values(seeds, name, metric)
        if not values:
            continue
        if len(values) > 1:
            estimate = statistics.over_seeds([e.value for e in values.values()])
        else:
            (estimate,) = values.values()
        against = _against(seeds, first, name, metric, samples) if first else None
        first = first or seeds
        cells.append(
            Cell(
                arm,
                estimate,
                len(values),
                against,
                against.p if against else math.nan,
                sum(stage.tokens for stage in seeds.values()),
                sum(stage.seconds for stage in seeds.values()),
            )
        )
    adjusted = statistics.holm([cell.adjusted for cell in cells])
    judged = tuple(replace(c, adjusted=p) for c, p in zip(cells, adjusted, strict=True))
    return Table(name, metric, better, judged)


def _values(seeds: Mapping[str, StageRecord], name: str, metric: str) -> dict[str, Estimate]:
    found = {}
    for seed, stage in seeds.items():
        measured = find(stage, name)
        if measured and metric in measured.metrics:
            found[seed] = measured.metrics[metric]
    return found


def find(stage: StageRecord, name: str) -> Measured | None:
    """What the eval of that name found after the stage."""
    return next((m for m in stage.after if m.name == name), None)


def _against(
    arm: Mapping[str, StageRecord],
    baseline: Mapping[str, StageRecord],
    name: str,
    metric: str,
    samples: Samples,
) -> Paired | None:
    values, baseline_values = _values(arm, name, metric), _values(baseline, name, metric)
    shared = [seed for seed in values if seed in baseline_values]
    if len(shared) > 1:
        a, b = ([found[seed].value for seed in shared] for found in (values, baseline_values))
        return statistics.paired_t(a, b, "seeds")
    if len(arm) == len(baseline) == 1:
        (stage,), (baseline_stage,) = arm.values(), baseline.values()
        return paired_records(stage, baseline_stage, name, metric, samples)
    return None


def paired_records(
    stage: StageRecord, baseline: StageRecord, name: str, metric: str, samples: Samples
) -> Paired | None:
    """The paired test on the records that both stages were evaluated on; None where they differ."""
    measured, baseline_measured = find(stage, name), find(baseline, name)
    if (
        measured is None
        or baseline_measured is None
        or measured.fingerprint != baseline_measured.fingerprint
    ):
        return None
    pairs = [
        (a.scores[metric], b.scores[metric])
        for a, b in zip(samples(stage, name), samples(baseline, name), strict=False)
        if a.prompt == b.prompt and metric in a.scores and metric in b.scores
    ]
    if len(pairs) < 2 or len(pairs) != measured.metrics[metric].count:
        return None
    return statistics.on_records([a for a, _ in pairs], [b for _, b in pairs])
