"""`ptl report --all`: every weights that the runs of a home measured, by eval, the best first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from posttrain_recipes.records import PerRecord
from posttrain_recipes.reporting import comparisons, report, scores
from posttrain_recipes.reporting.comparisons import ArmGroup, Table
from posttrain_recipes.reporting.page import templates
from posttrain_recipes.shown import cell as cell_of
from posttrain_recipes.shown import markdown as words
from posttrain_recipes.shown import plain
from posttrain_recipes.store import OWN, Measured, RunRecord, StageRecord, Store


@dataclass(frozen=True)
class Ranked:
    """What one eval found on one set of weights."""

    weights: str
    """What tells them from others."""
    said: str
    """`RUN/STAGE`, or the base model."""
    run: RunRecord
    stage: StageRecord
    when: str
    measured: Measured


@dataclass
class Board:
    """One eval, on the same records."""

    name: str
    data: str
    entries: list[Ranked] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def rank(self) -> None:
        """Put the best first, and test each against it."""
        main = self.entries[0].measured.main
        better = self.entries[0].measured.higher_is_better.get(main or "", True)

        def worth(entry: Ranked) -> float:
            found = entry.measured.metrics.get(main or "")
            value = float("nan") if found is None else found.value
            if value != value:  # NaN comes last
                return float("-inf")
            return -value if better is False else value

        self.entries.sort(key=worth, reverse=True)
        arms, of = {}, {}
        for entry in self.entries:
            found = replace(entry.measured, name=self.name)
            stage = replace(entry.stage, after=[found])
            arms[entry.said] = {"": stage}
            of[id(stage)] = entry

        def by_record(stage: StageRecord, measured: Measured) -> Mapping[str, PerRecord]:
            entry = of[id(stage)]
            return scores.load(entry.run, entry.stage, entry.measured, entry.when)

        self.tables = comparisons.tables(ArmGroup(self.name, arms), by_record)


class Leaderboard:
    """All evals of a home's runs that measured at least two sets of weights."""

    def __init__(self, home: Path) -> None:
        self.records, self.unreadable = Store(home).listed()
        boards: dict[str, Board] = {}
        known: set[tuple[str, str]] = set()
        for entry in _entries(self.records):
            fingerprint = entry.measured.fingerprint
            if (fingerprint, entry.weights) in known:
                continue
            known.add((fingerprint, entry.weights))
            board = boards.setdefault(fingerprint, Board(entry.measured.name, entry.measured.data))
            board.entries.append(entry)
        self.boards = [board for board in boards.values() if len(board.entries) > 1]
        self.alone = len(boards) - len(self.boards)
        """Evals that measured one set of weights: there is nothing to rank."""
        for board in self.boards:
            board.rank()
        tested = iter(comparisons.adjusted(self.tables))
        for board in self.boards:
            board.tables = list(islice(tested, len(board.tables)))

    @property
    def tables(self) -> list[Table]:
        """Those of all boards."""
        return [table for board in self.boards for table in board.tables]

    def html(self) -> str:
        """The page."""
        return plain(
            templates()
            .get_template("leaderboard.html")
            .render(
                boards=self.boards,
                tables=self.tables,
                runs=len(self.records),
                alone=self.alone,
            )
        )

    def markdown(self) -> str:
        """The same in Markdown."""
        lines = ["# Leaderboard"]
        for board in self.boards:
            lines += ["", f"## {words(board.name)}, on {words(board.data)}"]
            for table in board.tables:
                name = report.metric_label(table.eval, table.eval, table.metric)
                lines += ["", f"{words(name)} ({table.direction})", ""]
                head, *rest = comparisons.shown(table)
                lines += [_row(head), "|" + "---|" * len(head), *map(_row, rest)]
        lines += ["", *(f"{words(note)}  " for note in comparisons.notes(self.tables))]
        return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(cell_of, cells)) + " |"


def _entries(records: Sequence[RunRecord]) -> Iterator[Ranked]:
    """Every measurement before and after a stage, the oldest first; those of a method's own are of
    its training."""
    trained = {
        stage.checkpoint.sampler_uri: f"{record.id}/{stage.name}"
        for record in reversed(records)  # the first that left it names it
        for stage in record.stages
        if stage.method and stage.checkpoint and not stage.reused_from
    }
    for record in records:
        for stage in record.stages:
            for when, weights in (("before", stage.start), ("after", stage.checkpoint)):
                if weights is None:
                    continue
                uri = weights.sampler_uri
                start = f"the start of {record.id}/{stage.name}"
                said = trained.get(uri, start) if uri else weights.base_model
                for measured in getattr(stage, when):
                    if not measured.fingerprint.startswith(OWN):
                        key = uri or weights.base_model
                        yield Ranked(key, said, record, stage, when, measured)
