"""Curves of a run over one another: those of the variants of a stage, or of the branches that are
compared. Seeds of one way have its colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from posttrain_recipes.language.expansion import origins
from posttrain_recipes.reporting import plots
from posttrain_recipes.reporting.comparisons import arm_of
from posttrain_recipes.store import RunRecord, StageRecord
from posttrain_recipes.tracking.curves import Series

CurvesOf = Callable[[StageRecord], dict[str, Series]]
"""A stage's metrics over its steps."""


@dataclass(frozen=True)
class Overlaid:
    """Drawings with a line for each variant."""

    title: str
    """The stage as the recipe has it, or the comparison."""
    ways: tuple[tuple[str, str], ...]
    """What the lines are, each with its classes in the page's style."""
    drawings: tuple[tuple[str, str], ...]
    """By metric."""
    seeds: bool
    """Whether several lines are one way."""


def overlaid(record: RunRecord, curves_of: CurvesOf, metrics: Sequence[str]) -> Iterator[Overlaid]:
    """What is drawn over one another, in the recipe's order; nothing of a stage that there is once.

    Args:
        metrics: those that are drawn, where two variants have them.
    """
    stages = {stage.name: stage for stage in record.stages}
    found: dict[str, dict[str, list[StageRecord]]] = {}
    known = origins(record.resolved)
    for origin in known:
        if origin.name not in stages or not (origin.labels or origin.comparison):
            continue
        if origin.comparison and not origin.last:
            continue
        title = origin.comparison or origin.name.partition("@")[0]
        way = arm_of(origin, known)
        if not origin.comparison and way == origin.source:  # only the seed varies
            way = origin.label
        found.setdefault(title, {}).setdefault(way, []).append(stages[origin.name])
    for title, ways in found.items():
        if sum(map(len, ways.values())) > 1:
            yield from _drawn(title, ways, curves_of, metrics)


def _drawn(
    title: str,
    ways: dict[str, list[StageRecord]],
    curves_of: CurvesOf,
    metrics: Sequence[str],
) -> Iterator[Overlaid]:
    lines: dict[str, dict[str, Series]] = {}
    classes: dict[str, str] = {}
    for index, stages in enumerate(ways.values()):
        for stage in stages:
            classes[stage.name] = plots.colour(index)
            for metric, series in curves_of(stage).items():
                lines.setdefault(metric, {})[stage.name] = series
    drawings = [(m, plots.curves(lines[m], classes)) for m in metrics if len(lines.get(m, ())) > 1]
    drawn = tuple((metric, drawing) for metric, drawing in drawings if drawing)
    if drawn:
        named = tuple((way, plots.colour(index)) for index, way in enumerate(ways))
        yield Overlaid(title, named, drawn, any(len(stages) > 1 for stages in ways.values()))
