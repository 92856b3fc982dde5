"""Which records of evals ask what is trained on: looked for before a run, told as a warning.

The same prompt counts, whatever the reply (`questions`); preflight compares words too
(`contamination`), of files up to `RUN_BYTES`. An eval is compared with the data of its
stage, of the stages that this one starts from, and of those whose records were made from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from posttrain_recipes.datasets import contamination
from posttrain_recipes.datasets.contamination import WORDS, Held
from posttrain_recipes.planning.data import load_records
from posttrain_recipes.planning.plans import Data, Plan, PlannedEval, PlannedStage
from posttrain_recipes.planning.questions import questions_of
from posttrain_recipes.plugin import DataMethod, Dataset
from posttrain_recipes.records import Record

VALIDATED_BYTES = 8 << 20
"""Files of up to this many bytes in all are compared by `ptl validate`: about a second."""
RUN_BYTES = 64 << 20
"""And these as a run starts."""


@dataclass(frozen=True)
class Overlap:
    """Records of an eval that ask what is trained on."""

    stage: str
    eval: str
    trained: str
    """The training data, as the recipe names them."""
    use: str
    """Which stage they are of, and what it does with them."""
    count: int
    total: int
    first: str
    """Where the first of them was read."""
    there: str
    """And where the training data ask the same."""
    hint: ClassVar[str] = (
        "it measures what was trained on: leave those rows out of one of the two files, or hold "
        "some out with 'test_size:'; a prompt with another reply is the same prompt"
    )

    def __str__(self) -> str:
        where = f" (first: {self.first}, asked at {self.there})" if self.first else ""
        return (
            f"eval {self.eval}: {self.count} of {self.total} records are in {self.trained}, "
            f"which {self.use}{where}"
        )


@dataclass(frozen=True)
class NearCopies:
    """Records of an eval that training data hold in other words (`contamination`)."""

    stage: str
    eval: str
    trained: str
    use: str
    count: int
    total: int
    first: Held
    hint: ClassVar[str] = "read them ('ptl data overlap TRAIN EVAL'), and leave out what is a copy"

    def __str__(self) -> str:
        how = "asks the same but for case and punctuation"
        if self.first.kind == "words":
            how = f"has {self.first.share:.0%} of its runs of {WORDS} words"
        return (
            f"eval {self.eval}: {self.count} of {self.total} records are nearly in {self.trained}, "
            f"which {self.use} (first: {self.first.source} {how}, at {self.first.there})"
        )


@dataclass(frozen=True)
class Uncompared:
    """An eval that was not compared: the files were more than could be read in passing."""

    stage: str
    eval: str
    trained: str
    hint: ClassVar[str] = "'ptl preflight' reads them all and compares them"

    def __str__(self) -> str:
        return f"eval {self.eval} was not compared with {self.trained}: the files are large"


@dataclass(frozen=True)
class Unread:
    """An eval whose suite has data of its own, which nobody here reads."""

    stage: str
    eval: str
    suite: str
    hint: ClassVar[str] = (
        "compare its data with yours by hand, or measure by an eval that ptl reads the data of"
    )

    def __str__(self) -> str:
        return (
            f"eval {self.eval}: whether it asks what is trained on is not known, as ptl does not "
            f"read the data of {self.suite}"
        )


@dataclass(frozen=True)
class OddSplit:
    """A test split of another size than was asked for."""

    stage: str
    eval: str
    label: str
    count: int
    asked: int
    hint: ClassVar[str] = "remove copies of rows, or ask for another size"

    def __str__(self) -> str:
        return (
            f"{self.label} has {self.count} records and not test_size={self.asked}: "
            "rows that ask the same stay together"
        )


Asked = list[tuple[list[str], str]]
"""For each record of data what it asks, as digests, and its source."""
Known = dict[str, Asked | None]
"""What data were found to ask, by what tells them from others."""


@dataclass
class _DataReader:
    """What data ask, each read once, as long as there are bytes left to read."""

    left: int | None
    """Bytes that may still be read; None: as many as there are, from wherever they come."""
    known: Known
    _names: dict[int, tuple[Data, str]] = field(default_factory=dict)
    """By object, which is held, as it names another once it is gone."""

    def name(self, data: Data) -> str:
        """What tells the records of data from others'."""
        if id(data) not in self._names:
            self._names[id(data)] = data, str(data.identity())
        return self._names[id(data)][1]

    def read(self, data: Data, wants: type[Record]) -> Asked | None:
        """For each record what it asks and its source; None where that is not known here.

        Raises:
            _TooLargeError: it could be known and was not read.
        """
        key = f"{self.name(data)} {wants.__name__}"
        if key not in self.known:
            if self.left is not None:
                size = _bytes(data.dataset)
                if size is None:
                    return None
                if size > self.left:
                    raise _TooLargeError
                self.left -= size
            self.known[key] = self._load(data, wants)
        return self.known[key]

    @staticmethod
    def _load(data: Data, wants: type[Record]) -> Asked | None:
        try:
            records = load_records(data, wants)
        except Exception:  # preflight and the run say what is wrong with it, plugins' own code too
            return None
        return [(list(questions_of(record)), record.source) for record in records]


class _TooLargeError(Exception):
    pass


def find(
    plan: Plan, limit: int | None, *, splits: bool = True, known: Known | None = None
) -> list[Overlap | NearCopies | OddSplit | Uncompared | Unread]:
    """What evals measure of what is trained on, each once, and what could not be told.

    Args:
        limit: bytes of local files that may be read, and nothing else; None: all data is read,
            those of the hub and environments too.
        splits: whether a stage's own test split is looked at too: whether it has the size that was
            asked for, and holds copies of what is trained on, where there is nothing but copies.
        known: what earlier calls read, which is not read again.
    """
    reader = _DataReader(limit, {} if known is None else known)
    stages = {stage.name: stage for stage in plan.stages}
    found: dict[tuple[str, ...], Overlap | NearCopies | OddSplit | Uncompared | Unread] = {}
    for stage in plan.stages:
        for planned in stage.evals:
            if planned.data.made_by:
                continue
            key = (planned.name, reader.name(planned.data))
            if not planned.eval.takes:
                if any(_trained(stage, stages)):
                    unread = Unread(stage.name, planned.name, planned.eval.suite)
                    found.setdefault(key, unread)
                continue
            for data, wants, use in _trained(stage, stages):
                pair = (*key, reader.name(data))
                own = planned.data.held_out and data.dataset is planned.data.dataset
                if pair in found or (own and not splits):
                    continue
                try:
                    if told := _compared(reader, stage, planned, data, wants, use):
                        found[pair] = told
                except _TooLargeError:
                    found[pair] = Uncompared(stage.name, planned.name, data.label)
            odd = _odd_split(reader, stage, planned) if splits else None
            if odd is not None:
                found.setdefault((reader.name(planned.data),), odd)
    return list(found.values())


def _compared(
    reader: _DataReader,
    stage: PlannedStage,
    planned: PlannedEval,
    data: Data,
    wants: type[Record],
    use: str,
) -> Overlap | NearCopies | None:
    measured, trained = reader.read(planned.data, planned.wants), reader.read(data, wants)
    if not measured or not trained:
        return None
    places = {question: source for asked, source in reversed(trained) for question in asked}
    # What a reply is measured to: of a conversation the last.
    both = [(asked[-1], source) for asked, source in measured if asked and asked[-1] in places]
    if not both and reader.left is None and (_bytes(data.dataset) or 0) <= RUN_BYTES:
        return _nearly(stage, planned, data, wants, use)
    if not both:
        return None
    question, first = both[0]
    return Overlap(
        stage.name,
        planned.name,
        data.label,
        use,
        len(both),
        len(measured),
        first,
        places[question],
    )


def _nearly(
    stage: PlannedStage, planned: PlannedEval, data: Data, wants: type[Record], use: str
) -> NearCopies | None:
    evals = load_records(planned.data, planned.wants)
    found = contamination.find(load_records(data, wants), evals)
    if not found.held:
        return None
    count, first = len(found.held), found.held[0]
    return NearCopies(stage.name, planned.name, data.label, use, count, len(evals), first)


def _odd_split(reader: _DataReader, stage: PlannedStage, planned: PlannedEval) -> OddSplit | None:
    asked = planned.data.dataset.config.test_size
    if not planned.data.held_out:
        return None
    try:
        held_out = reader.read(planned.data, planned.wants)
    except _TooLargeError:
        return None
    if held_out is None or len(held_out) == asked:
        return None
    return OddSplit(stage.name, planned.name, planned.data.label, len(held_out), asked)


def _trained(
    stage: PlannedStage, stages: dict[str, PlannedStage]
) -> Iterator[tuple[Data, type[Record], str]]:
    """What the weights after a stage were trained on: the data, as what, and a word of its use."""
    at: PlannedStage | None = stage
    while at is not None:
        if at.method is not None and not isinstance(at.method, DataMethod):
            yield from _read_by(at, stages, f"{at.name} trains on")
        at = stages.get(at.start)


def _read_by(
    stage: PlannedStage, stages: dict[str, PlannedStage], use: str
) -> Iterator[tuple[Data, type[Record], str]]:
    if stage.data is None or stage.wants is None:
        return
    for part in _there(stage.data.dataset) if stage.data.made_by else ():
        yield Data(part, stage.data.key, stage.data.eval_seed), stage.wants, use
    if not stage.data.made_by:
        yield stage.data, stage.wants, use
    for name in stage.data.made_by:
        yield from _read_by(stages[name], stages, f"{name} makes records from")


def _there(dataset: Dataset) -> Iterator[Dataset]:
    """The parts of a mixture that no stage has to make first."""
    for parts in dataset.sources.values():
        for part in parts:
            if part.sources:
                yield from _there(part)
            elif not part.reads():
                yield part


def _bytes(dataset: Dataset) -> int | None:
    """The size of the files that a dataset reads; None where it reads anything else."""
    if dataset.sources:
        sizes = [_bytes(part) for parts in dataset.sources.values() for part in parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    path = getattr(dataset, "path", None)
    return path.stat().st_size if isinstance(path, Path) and path.is_file() else None
