"""Comparisons within a run: between the branches of `compare`, or the cells of a matrix.

Branches or cells that differ only in the seed are one arm, compared by its mean over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from posttrain_recipes.language.expansion import origins
from posttrain_recipes.language.flat import Origin, show_labels
from posttrain_recipes.planning.gates import starts_of
from posttrain_recipes.records import Estimate, PerRecord
from posttrain_recipes.reporting import report, statistics
from posttrain_recipes.reporting.statistics import Compared, Paired
from posttrain_recipes.store import OWN, Measured, RunRecord, StageRecord

ByRecord = Callable[[StageRecord, Measured], Mapping[str, PerRecord]]
"""The scores by record of an eval after a stage, by metric."""


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
    """The p value of `against`, for as many tests as there are; NaN where there is none."""
    tokens: int
    seconds: float
    why: str = ""
    """Why there is no test."""


@dataclass(frozen=True)
class Table:
    """One metric of all arms of a group."""

    eval: str
    metric: str
    higher_is_better: bool | None
    cells: tuple[Cell, ...]
    told: tuple[str, ...] = ()
    """What the eval says has to be known to read its numbers."""
    of: str = ""
    """The way that all runs have, of tables that compare runs way by way."""

    def named(self, cell: Cell) -> str:
        """What a line is called: `learning_rate=0.001, mx-2`."""
        return f"{self.of}, {cell.arm}" if self.of else cell.arm

    @property
    def best(self) -> str:
        """The arm with the best value; empty where neither more nor less is better, where it is not
        told apart from the first (or, of the first, no other from it), where two share what is
        shown of it, and where some were measured on other records or on one."""
        if self.higher_is_better is None or any(cell.why for cell in self.cells):
            return ""
        sign = 1 if self.higher_is_better else -1
        known = [c for c in self.cells if not math.isnan(c.estimate.value)]
        known.sort(key=lambda cell: -sign * cell.estimate.value)
        shown = [report.show_value(c.estimate.value, self.metric in report.SHARES) for c in known]
        best = known[0].arm if known and shown.count(shown[0]) == 1 else ""
        first = self.cells[0].arm
        compared = [c for c in self.cells if c.against and (best == first or c.arm == best)]
        # A number that is a little higher wins nothing.
        return best if any(self.verdict(c) in ("better", "worse") for c in compared) else ""

    def verdict(self, cell: Cell) -> str:
        """Of an arm against the first: better, worse, changed, same, or nothing without a test."""
        return statistics.verdict(cell.against, cell.adjusted, self.higher_is_better)

    @property
    def direction(self) -> str:
        """What is good, in words."""
        if self.higher_is_better is None:
            return "neither way is better"
        return "higher is better" if self.higher_is_better else "lower is better"


def groups(record: RunRecord) -> list[ArmGroup]:
    """The comparisons of a run; none for a run without branches."""
    found: dict[str, dict[str, dict[str, StageRecord]]] = {}
    known = origins(record.resolved)
    start = starts_of(record.resolved)
    leaves = [o for o in known if o.name not in start.values()]
    stages = {stage.name: stage for stage in record.stages}
    at_end = {m.name for o in leaves if o.name in stages for m in stages[o.name].after}
    for origin in known:
        stage = stages.get(origin.name)
        if stage is None:
            continue
        # One in the middle is compared where it has what no end of a path has.
        judged = origin in leaves or not {m.name for m in stage.after} <= at_end
        if origin.comparison and origin.last:
            title, arm = origin.comparison, arm_of(origin, known)
        elif judged and origin.labels and not origin.comparison:
            title, arm = f"{origin.source}, by what varies", arm_of(origin, known)
        else:
            continue
        seed = dict(origin.labels).get("seed", "")
        found.setdefault(title, {}).setdefault(arm, {})[seed] = stage
    return [ArmGroup(title, arms) for title, arms in found.items() if _has_comparison(arms)]


def arm_of(origin: Origin, known: Iterable[Origin]) -> str:
    """What a stage's way is called: its branch, and what varies but for the seed.

    Of values that a matrix varies together, those of the branches beside it are left out.

    Args:
        known: all stages of the recipe, of which some are branches of the same comparison.
    """
    branch = origin.branch if origin.comparison else None
    beside = {o.branch for o in known if o.comparison == origin.comparison} - {branch, None}
    labels = [
        (path.removeprefix(f"{branch}."), value)
        for path, value in origin.labels
        if path != "seed" and not (branch and path.partition(".")[0] in beside)
    ]
    return " ".join(filter(None, (branch, show_labels(tuple(labels))))) or origin.source


def _has_comparison(arms: Mapping[str, Mapping[str, StageRecord]]) -> bool:
    return len(arms) > 1 or any(len(seeds) > 1 for seeds in arms.values())


def tables(group: ArmGroup, by_record: ByRecord) -> list[Table]:
    """Every metric that the arms of a group have, with each arm against the first; p values are
    adjusted for all of these tests (Holm)."""
    metrics: dict[tuple[str, str], bool | None] = {}
    for seeds in group.arms.values():
        for stage in seeds.values():
            for measured in stage.after:
                for metric in measured.metrics:
                    better = measured.higher_is_better.get(metric, True)
                    metrics.setdefault((measured.name, metric), better)
    return adjusted(
        _table(group, name, metric, better, by_record) for (name, metric), better in metrics.items()
    )


def adjusted(found: Iterable[Table]) -> list[Table]:
    """The same tables with p values that are adjusted for the tests of all of them (Holm 1979)."""
    found = list(found)
    raw = [c.against.p if c.against else math.nan for table in found for c in table.cells]
    values = iter(statistics.holm(raw))
    return [
        replace(t, cells=tuple(replace(c, adjusted=next(values)) for c in t.cells)) for t in found
    ]


def together(found: Sequence[Table]) -> list[list[Table]]:
    """The tables that stand below one head: those of one metric, way by way."""
    groups: dict[tuple[str, str, str], list[Table]] = {}
    for index, table in enumerate(found):
        key = (table.eval, table.metric, "" if table.of else str(index))
        groups.setdefault(key, []).append(table)
    return list(groups.values())


def shown(table: Table) -> list[tuple[str, ...]]:
    """A table as people read it: a line for each arm, below a head; `*` marks the best."""
    percent = table.metric in report.SHARES
    rows: list[tuple[str, ...]] = [
        ("way", "seeds", "value", f"against {table.cells[0].arm}", "p", "", "")
    ]
    for cell in table.cells:
        tested = cell.against
        star = " *" if cell.arm == table.best and len(table.cells) > 1 else ""
        rows.append(
            (
                f"{table.named(cell)}{star}",
                str(cell.seeds),
                report.show(cell.estimate, percent),
                report.show_paired(tested, percent),
                report.show_p(cell.adjusted) if tested else "",
                table.verdict(cell) if tested else "",
                tested.test if tested else "",
            )
        )
    return rows


def notes(found: Sequence[Table], sections: int = 1) -> list[str]:
    """What has to be known to read the tables: sentences for below them.

    Args:
        sections: in how many they stand; p values are adjusted for the tests of each.
    """
    cells = [cell for table in found for cell in table.cells]
    tests = [cell.against for cell in cells if cell.against]
    said = [] if found else ["No eval has a result: there is nothing to compare."]
    if any(table.best and len(table.cells) > 1 for table in found):
        said.append("* best value, where it is told apart from the first way's.")
    if tests:
        said.append("better, worse, changed: p < 0.05, adjusted; same: not told apart.")
    if any(cell.seeds > 1 for cell in cells):
        said.append(
            "Over several seeds, ± is half of Student's 95% interval of the mean. It is over seeds "
            "alone: the eval's records are taken as given, and others may say otherwise."
        )
    if any(cell.seeds == 1 for table in found if len(table.cells) > 1 for cell in table.cells):
        said.append(
            "With one seed, ± and p are over the eval's records. Seeds were not sampled: training "
            "again with another seed may change more than this, so that even a small p does not "
            "say that the recipe is better, only that these weights are."
        )
    if tests:
        several = f", adjusted for these {len(tests)} tests (Holm)" if len(tests) > 1 else ""
        if sections > 1:
            several = ", adjusted for the tests of each part (Holm)"
        said.append(f"p values are two-sided{several}.")
    if any(not test.paired for test in tests):
        said.append("Unpaired tests see less; those runs kept no scores by record.")
    if read := dict.fromkeys(t.eval for t in found for c in t.cells if c.why == statistics.READ):
        said.append(f"Replies to read, not tested: {', '.join(read)}.")
    for why in dict.fromkeys(c.why for c in cells if c.why not in ("", statistics.READ)):
        named = ", ".join(
            f"{report.metric_label(table.eval, table.eval, table.metric)} of {table.named(cell)}"
            for table in found
            for cell in table.cells
            if cell.why == why
        )
        said.append(f"Not tested ({why}): {named}.")
    said += dict.fromkeys(f"{table.eval}: {text}." for table in found for text in table.told)
    return said


def _table(
    group: ArmGroup, name: str, metric: str, better: bool | None, by_record: ByRecord
) -> Table:
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
        judged = _against(seeds, first, name, metric, by_record) if first else Compared(None)
        first = first or seeds
        cells.append(
            Cell(
                arm,
                estimate,
                len(values),
                judged.tested,
                math.nan,
                sum(stage.tokens for stage in seeds.values()),
                sum(stage.seconds for stage in seeds.values()),
                judged.why,
            )
        )
    stages = [stage for seeds in group.arms.values() for stage in seeds.values()]
    there = [measured for stage in stages if (measured := find(stage, name))]
    told = dict.fromkeys(text for measured in there for text in measured.notes)
    return Table(name, metric, better, tuple(cells), tuple(told))


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
    by_record: ByRecord,
) -> Compared:
    values, baseline_values = _values(arm, name, metric), _values(baseline, name, metric)
    there = [find(stage, name) for stage in (*arm.values(), *baseline.values())]
    if any(measured and not measured.tested for measured in there):
        return Compared(None, statistics.READ)
    shared = [seed for seed in values if seed in baseline_values]
    if len(shared) > 1:
        a, b = ([found[seed].value for seed in shared] for found in (values, baseline_values))
        if not all(map(math.isfinite, (*a, *b))):
            return Compared(None, "a value is not finite")
        return Compared(statistics.paired_t(a, b, "seeds"))
    if len(arm) == len(baseline) == 1:
        (stage,), (baseline_stage,) = arm.values(), baseline.values()
        return on_records(stage, baseline_stage, name, metric, by_record)
    return Compared(None, "no two seeds in common")


def on_records(
    stage: StageRecord, baseline: StageRecord, name: str, metric: str, by_record: ByRecord
) -> Compared:
    """The test of two stages on the records that both were evaluated on."""
    measured, other = find(stage, name), find(baseline, name)
    if (
        measured is None
        or other is None
        or not {metric} <= measured.metrics.keys() & other.metrics.keys()
    ):
        return Compared(None, "not measured on both")
    if not (measured.tested and other.tested):
        return Compared(None, statistics.READ)
    same = measured.fingerprint == other.fingerprint
    if same and measured.fingerprint.startswith(OWN):
        # A method's own measurement is on the data of its stage.
        same = stage.inputs.get("dataset") == baseline.inputs.get("dataset")
    if not same:
        return Compared(None, "another eval or other records")
    a, b = (by_record(one, found) for one, found in ((stage, measured), (baseline, other)))
    estimates = measured.metrics[metric], other.metrics[metric]
    return statistics.compare(*estimates, a.get(metric), b.get(metric))
