"""Loads a dataset's records for a method or an eval: converted, limited and split."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

from posttrain_recipes import content
from posttrain_recipes.conversion import convert, expand
from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning import depends, splits
from posttrain_recipes.planning.plans import Data, PlannedStage
from posttrain_recipes.planning.splits import held_out
from posttrain_recipes.records import Labelled, Record
from posttrain_recipes.streamed import Streamed

_LEADING = 100
"""Rows of a large data set that are looked at for what it holds."""


def load_records(
    data: Data, wants: type[Record], made: Callable[[str], Path] = Path
) -> list[Record]:
    """The records of `data` as `wants`, in the dataset's order, its split applied.

    `made(stage)` is the directory of what an earlier stage made. `limit` and `test_size` count
    records as they are read: a preference that is wanted as labelled replies counts as one and
    becomes two.

    Raises:
        UsageError: data that cannot be read or are not those that were planned with, too few
            records for the test split, or a record that is of another type.
    """
    if data.held_out and (streamed := _streamed(data, wants, made)) is not None:
        return list(streamed)  # a few of very many
    return _loaded(data, wants, made)


def _loaded(data: Data, wants: type[Record], made: Callable[[str], Path]) -> list[Record]:
    config = data.dataset.config
    data.dataset.bind(made, wants)
    # Before, as what was edited may not even be readable; after, as it may be edited meanwhile.
    depends.check_held(data.label, data.dataset, data.planned)
    for stage in data.made_by:
        _check_made(stage, made(stage))
    records = list(islice(data.dataset.load(), config.limit))
    depends.check_held(data.label, data.dataset, data.planned)
    if config.test_size:
        if config.test_size >= len(records):
            raise splits.too_few(data, len(records))
        test = held_out(records, config.test_size)
        records = [r for place, r in enumerate(records) if (place in test) == data.held_out]
    return [part for record in records for part in expand(record, wants)]


def open_records(
    data: Data, wants: type[Record], made: Callable[[str], Path] = Path
) -> Sequence[Record]:
    """As `load_records`; records of a data set that is too large to be held are a `Streamed`, which
    raises what is wrong with one when that is asked for.

    A test split needs to know what all rows ask, so that each is read once for it: rows that cannot
    be used are told then.
    """
    streamed = _streamed(data, wants, made)
    return _loaded(data, wants, made) if streamed is None else streamed


def reading_ahead(stages: Iterable[PlannedStage]) -> AbstractContextManager[None]:
    """Have what these stages will ask of large files read while other things are done."""
    sources = []
    for stage in stages:
        if (data := stage.data) is None or data.made_by or stage.wants in (None, Labelled):
            continue  # of replies with labels there may be two a row: such a file is held
        data.dataset.bind(Path, stage.wants)
        sources.append(data)
    return splits.ahead(sources)


def _streamed(
    data: Data, wants: type[Record], made: Callable[[str], Path]
) -> Streamed[Record] | None:
    config = data.dataset.config
    data.dataset.bind(made, wants)
    depends.check_held(data.label, data.dataset, data.planned)
    rows = None if data.made_by else data.dataset.streamed()
    first = None if rows is None else _first(rows)
    if rows is None or first is None or len(expand(first, wants)) != 1:
        return None
    if getattr(config, "bad_rows", "stop") == "skip":
        rows = rows.leaving_out(lambda error: True)
    places: Sequence[int] = range(min(len(rows), config.limit or len(rows)))
    if config.test_size:
        split = splits.split(data, rows)
        if split is None:
            return None
        places = split
    return rows.at(places).map(lambda record: convert(record, wants))


def _first(rows: Streamed[Record]) -> Record | None:
    """The first of its leading rows that can be used."""
    return next(rows.tried(range(min(len(rows), _LEADING))), None)


def _check_made(stage: str, folder: Path) -> None:
    """Refuse records that a stage made and that were edited since.

    Raises:
        UsageError: a file does not hold what the stage left.
    """
    try:
        told = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # whoever reads the records tells that they are not there
    for name, file in told.items():
        path = folder / name
        if not path.is_file() or content.file_digest(path) != file["sha256"]:
            raise UsageError(
                f"the records that stage '{stage}' made are not those any more: {path}",
                why="the file was edited or removed, and other stages are known by what it held",
                hint=f"copy it elsewhere and read it with 'jsonl', or run with --from {stage}",
                code="changed",
            )
