"""`ptl compare`: runs side by side, with the differences of their recipes, results and curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain_recipes.language.expansion import expand
from posttrain_recipes.language.nodes import Node
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.records import PerRecord
from posttrain_recipes.reporting import comparisons, plots, report
from posttrain_recipes.reporting.comparisons import ArmGroup, Table
from posttrain_recipes.reporting.page import MAIN_CURVES, Pages, templates
from posttrain_recipes.shown import plain
from posttrain_recipes.store import Measured, RunRecord, StageRecord
from posttrain_recipes.tracking import curves


class Comparison:
    """Runs that are compared with the first of them."""

    def __init__(self, home: Path, records: Sequence[RunRecord]) -> None:
        self.records = list(records)
        self.pages = [Pages(home, record) for record in records]
        self.names = [record.id for record in records]

    @cached_property
    def differing(self) -> list[tuple[str, ...]]:
        """Options that are not the same in all runs: `(path, value in each run)`."""
        leaves = [dict(_leaves(_flat(record.resolved))) for record in self.records]
        leaves = [
            {"preset": record.preset or "-", "version": record.version, **found}
            for record, found in zip(self.records, leaves, strict=True)
        ]
        paths = dict.fromkeys(path for found in leaves for path in found)
        rows = [(path, *(found.get(path, "-") for found in leaves)) for path in paths]
        return [row for row in rows if len(set(row[1:])) > 1 and row[0] != "description"]

    @cached_property
    def sections(self) -> list[tuple[str, list[Table]]]:
        """The last results of every run; then what single runs compare inside of them. p values are
        adjusted for the tests of a section."""
        found: list[tuple[str, list[Table]]] = []
        if len(self.records) > 1:
            found.append(("", self._last_results()))
        for pages in self.pages:
            for group in comparisons.groups(pages.record):
                title = f"{pages.record.id}, {group.title}"
                found.append((title, comparisons.tables(group, pages.scores)))
        return found or [("", self._last_results())]

    def _last_results(self) -> list[Table]:
        """By eval: the last stage of each run that has it."""
        owners: dict[int, Pages] = {}
        arms: dict[str, dict[str, dict[str, StageRecord]]] = {}
        for pages in self.pages:
            last = {m.name: stage for stage in pages.record.stages for m in stage.after}
            for name, stage in last.items():
                owners[id(stage)] = pages
                arms.setdefault(name, {})[pages.record.id] = {"": stage}

        def by_record(stage: StageRecord, measured: Measured) -> Mapping[str, PerRecord]:
            return owners[id(stage)].scores(stage, measured)

        return comparisons.adjusted(
            table
            for name, found in arms.items()
            for table in comparisons.tables(ArmGroup(name, found), by_record)
            if table.eval == name
        )

    def curves(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """By stage: drawings of its main curves, all runs in each."""
        stages: dict[str, dict[str, dict[str, curves.Series]]] = {}
        for pages in self.pages:
            for stage in pages.record.stages:
                for metric, series in pages.curves(stage).items():
                    if metric in MAIN_CURVES:
                        of_stage = stages.setdefault(stage.name, {})
                        of_stage.setdefault(metric, {})[pages.record.id] = series
        return [
            (
                stage,
                [
                    (m, plots.curves({name: metrics[m].get(name, []) for name in self.names}))
                    for m in MAIN_CURVES
                    if m in metrics
                ],
            )
            for stage, metrics in stages.items()
        ]

    def html(self) -> str:
        """The page."""
        return plain(
            templates()
            .get_template("compare.html")
            .render(
                names=self.names,
                records=self.records,
                differing=self.differing,
                sections=self.sections,
                stages=self.curves(),
            )
        )

    def as_json(self) -> Mapping[str, Any]:
        """As `ptl compare --json` prints it."""
        return {
            "runs": self.names,
            "differing": {
                path: dict(zip(self.names, v, strict=True)) for path, *v in self.differing
            },
            "results": [
                report.known({"comparison": title, **asdict(table), "best": table.best})
                for title, tables in self.sections
                for table in tables
            ],
        }


def _flat(resolved: Mapping[str, Any]) -> Any:
    return expand(Recipe(Node.of(resolved), Path()))[0].data


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every plain value with its path; stages and evals by their names."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            named = inner.get("name") or inner.get("use") if isinstance(inner, Mapping) else None
            yield from _leaves(inner, f"{path}.{named}" if named else f"{path}[{index}]")
    elif not path.endswith(".name"):
        yield path, report.plain(value)
