"""`ptl compare`: runs side by side, with the differences of their recipes, results and curves."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes.language.expansion import expand, origins
from posttrain_recipes.language.nodes import Node
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.records import PerRecord
from posttrain_recipes.reporting import comparisons, plots, report, statistics
from posttrain_recipes.reporting.comparisons import ArmGroup, Cell, Table
from posttrain_recipes.reporting.overlaid import overlaid
from posttrain_recipes.reporting.page import MAIN_CURVES, Pages, templates
from posttrain_recipes.shown import cell as cell_of
from posttrain_recipes.shown import field, plain
from posttrain_recipes.shown import markdown as words
from posttrain_recipes.store import Measured, RunRecord, StageRecord, write_atomic
from posttrain_recipes.tracking import curves

if TYPE_CHECKING:
    import pandas as pd


class Comparison:
    """Runs that are compared with the first of them."""

    def __init__(self, home: Path, records: Sequence[RunRecord]) -> None:
        self.records = list(records)
        self.pages = [Pages(home, record) for record in records]
        self.names = [record.id for record in records]

    @cached_property
    def differing(self) -> list[tuple[str, ...]]:
        """Options that are not the same in all runs: `(path, value in each run)`."""
        leaves = [{**dict(_leaves(_flat(r.resolved))), **_numbers(r)} for r in self.records]
        leaves = [
            {"preset": record.preset or "-", "version": record.version, **found}
            for record, found in zip(self.records, leaves, strict=True)
        ]
        paths = dict.fromkeys(path for found in leaves for path in found)
        rows = [(path, *(found.get(path, "-") for found in leaves)) for path in paths]
        rows = [row for row in rows if len(set(row[1:])) > 1 and row[0] != "description"]
        auto = [_auto(record) for record in self.records]
        said = [{**found, **a} for found, a in zip(leaves, auto, strict=True)]
        rows = [
            (path, *(a.get(path, v) for a, v in zip(auto, row, strict=True))) for path, *row in rows
        ]
        known = {
            f"stages.{origin.name}.": f"stages.{origin.name.partition('@')[0]}."
            for record in self.records
            for origin in origins(record.resolved)
            if origin.labels
        }
        return _folded(rows, said, known)

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
        """By eval: the last stage of each run that has it; of runs with a matrix or branches each
        way that they have in common, or else all of them."""
        owners = {id(stage): pages for pages in self.pages for stage in pages.record.stages}

        def by_record(stage: StageRecord, measured: Measured) -> Mapping[str, PerRecord]:
            return owners[id(stage)].scores(stage, measured)

        ways: dict[str, _Ways] = {}
        for pages in self.pages:
            for name, found in _last(pages.record):
                for way, seeds in found.items():
                    ways.setdefault(name, {}).setdefault(way, {})[pages.record.id] = seeds
        return comparisons.adjusted(
            replace(table, of=of)
            for name, found in ways.items()
            for of, arms in _compared(found)
            for table in comparisons.tables(ArmGroup(name, arms), by_record)
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
                ways=[
                    (pages.record.id, drawn)
                    for pages in self.pages
                    if (drawn := list(overlaid(pages.record, pages.curves, MAIN_CURVES)))
                ],
                stages=self.curves() if len(self.records) > 1 or not self.sections[0][0] else [],
            )
        )

    def to_frame(self) -> pd.DataFrame:
        """The results, a row for each way and metric, in the columns of `ptl compare -o x.csv`."""
        import pandas as pd

        lines = [
            _line(title, table, cell)
            for title, tables in self.sections
            for table in tables
            for cell in table.cells
        ]
        return pd.DataFrame(lines, columns=list(_COLUMNS)).replace({"": math.nan, None: math.nan})

    def __str__(self) -> str:
        return _markdown(self)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.names)})"

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, na_rep=""))

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


_Seeds = Mapping[str, StageRecord]
_Ways = dict[str, dict[str, _Seeds]]
"""Of an eval: way -> run -> seed -> the stage that has it; the way of a run without is empty."""


def _last(record: RunRecord) -> Iterator[tuple[str, Mapping[str, _Seeds]]]:
    """By eval: the last stage that has it, or all the ways of what that is one way of."""
    known = comparisons.groups(record)
    last = {m.name: stage for stage in record.stages for m in stage.after}
    for name, stage in last.items():
        of = (g for g in known if any(stage is s for way in g.arms.values() for s in way.values()))
        if (group := next(of, None)) is None:
            yield name, {"": {"": stage}}
            continue
        there = {
            way: {seed: s for seed, s in seeds.items() if comparisons.find(s, name)}
            for way, seeds in group.arms.items()
        }
        yield name, {way: seeds for way, seeds in there.items() if seeds}


def _compared(ways: _Ways) -> Iterator[tuple[str, Mapping[str, _Seeds]]]:
    """What is compared of an eval: by way, the runs that have it; if no two have one in common,
    every way of every run."""
    shared = {way: runs for way, runs in ways.items() if len(runs) > 1}
    if shared:
        yield from ((way if len(ways) > 1 else "", runs) for way, runs in shared.items())
        return
    every = {
        f"{run}, {way}" if way else run: seeds
        for way, runs in ways.items()
        for run, seeds in runs.items()
    }
    yield "", every


def _folded(
    rows: Sequence[tuple[str, ...]], said: Sequence[Mapping[str, str]], known: Mapping[str, str]
) -> list[tuple[str, ...]]:
    """The rows with those of a stage's variants as one, with all the values that they have.

    Args:
        rows: path and value in each run, of options that differ.
        said: by run, the values of all options.
        known: how paths of variants begin, with how those of their stage do.
    """

    def of_stage(path: str) -> str:
        begins = max((b for b in known if path.startswith(b)), key=len, default="")
        return known[begins] + path.removeprefix(begins) if begins else path

    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        groups.setdefault(of_stage(row[0]), []).append(row)
    values: list[dict[str, list[str]]] = [{} for _ in said]
    for found, by_stage in zip(said, values, strict=True):
        for path, value in found.items():
            if of_stage(path) in groups:
                by_stage.setdefault(of_stage(path), []).append(value)
    folded: list[tuple[str, ...]] = []
    for path, group in groups.items():
        joined = [", ".join(dict.fromkeys(found.get(path, ["-"]))) for found in values]
        if len(set(joined)) > 1:
            folded.append((path, *joined))
        elif all("-" not in row[1:] for row in group):  # the same values, of other variants
            folded += group
    return folded


ENDINGS = (".html", ".htm", ".md", ".csv", ".tsv", ".json")
"""What the names of files may end in that a comparison is written to."""

_COLUMNS = (
    *("comparison", "eval", "metric", "direction", "way", "best", "seeds", "count"),
    *("value", "low", "high", "against", "difference", "difference_low", "difference_high"),
    *("p", "adjusted_p", "test", "why_no_test"),
)


def write(found: Comparison, path: Path) -> None:
    """Write a comparison as what `path`, which ends in one of `ENDINGS`, is by its name.

    Raises:
        PtlError: it cannot be written.
    """
    texts: dict[str, Callable[[], str]] = {
        ".md": lambda: _markdown(found),
        ".csv": lambda: _separated(found, ","),
        ".tsv": lambda: _separated(found, "\t"),
        ".json": lambda: json.dumps(found.as_json(), indent=2, ensure_ascii=False) + "\n",
    }
    write_atomic(path, texts.get(path.suffix.lower(), found.html)())


def _separated(found: Comparison, delimiter: str) -> str:
    """The results, one way and metric a line."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for title, tables in found.sections:
        for table in tables:
            for cell in table.cells:
                writer.writerow([_field(value) for value in _line(title, table, cell)])
    return out.getvalue()


def _line(title: str, table: Table, cell: Cell) -> list[Any]:
    value, tested = cell.estimate, cell.against
    return [
        *(title or table.of, table.eval, table.metric, table.direction),
        *(cell.arm, "yes" if cell.arm == table.best else "", cell.seeds, value.count),
        *(value.value, value.low, value.high),
        *(
            (table.cells[0].arm, tested.difference, tested.low, tested.high, tested.p)
            if tested
            else ("", "", "", "", "")
        ),
        *(cell.adjusted, tested.test if tested else "", cell.why),
    ]


def _field(value: Any) -> str:
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return field(str(value))


def _markdown(found: Comparison) -> str:
    """Options that differ, and a table for each metric."""
    lines = [f"# {', '.join(map(words, found.names))}"]
    if found.differing:
        lines += ["", *_rows([("option", *found.names), *found.differing])]
    for title, tables in found.sections:
        lines += ["", f"## {words(title) or 'Results'}"]
        for same in comparisons.together(tables):
            name = report.metric_label(same[0].eval, same[0].eval, same[0].metric)
            lines += ["", f"{words(name)} ({same[0].direction})", ""]
            head, *_ = comparisons.shown(same[0])
            lines += _rows([head, *(r for table in same for r in comparisons.shown(table)[1:])])
        lines += ["", *(f"{words(note)}  " for note in comparisons.notes(tables))]
    return "\n".join(lines) + "\n"


def _rows(table: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = ["| " + " | ".join(map(cell_of, row)) + " |" for row in table]
    return [head, "|" + "---|" * len(table[0]), *rest]


def _flat(resolved: Mapping[str, Any]) -> Any:
    return expand(Recipe(Node.of(resolved), Path()))[0].data


def _numbers(record: RunRecord) -> dict[str, str]:
    """What `auto` was, by the path of the option."""
    return {
        f"stages.{stage.name}.method.{name}": report.plain(rate)
        for stage in record.stages
        for name, rate in stage.numbers.items()
    }


def _auto(record: RunRecord) -> dict[str, str]:
    """The same, with the word beside the number."""
    return {path: f"{shown} (auto)" for path, shown in _numbers(record).items()}


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


def worse(table: Table) -> Iterator[str]:
    """What is worse than the first of a table, in words: by tests with p < 0.05, adjusted for all
    of those of its section."""
    for cell in table.cells:
        if statistics.verdict(cell.against, cell.adjusted, table.higher_is_better) == "worse":
            name = report.metric_label(table.eval, table.eval, table.metric)
            change = report.show_paired(cell.against, table.metric in report.SHARES)
            yield f"{name} of {table.named(cell)} is {change} against {table.cells[0].arm}"
