"""Loads a dataset's records for a method or an eval: converted, limited and split."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from posttrain_recipes import content
from posttrain_recipes.conversion import expand
from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning import depends
from posttrain_recipes.planning.plans import Data
from posttrain_recipes.planning.questions import content_of, question_of
from posttrain_recipes.records import Record


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
            raise UsageError(
                f"{data.label} has {len(records)} records, too few for test_size={config.test_size}"
            )
        test = held_out(records, config.test_size)
        records = [r for place, r in enumerate(records) if (place in test) == data.held_out]
    return [part for record in records for part in expand(record, wants)]


def held_out(records: Sequence[Record], count: int) -> set[int]:
    """The places of the records that are held out: by what they ask, whatever seed and order.

    Records with one question stay together, so that no question of the test split is trained on.
    The questions are taken in the order of their digests, and one whose records are more than
    what is missing is passed over. So there are `count` records, fewer where questions that are
    asked several times do not add up to it, and more only where each is asked more than `count`
    times: then it is the one that is asked least. A record more or less moves few others.

    Where all ask the same (a prompt that never changes, the same examples before each), the whole
    content decides instead; where that too is the same or cannot be known, the place.
    """
    for known_by in (question_of, content_of):
        groups: dict[str, list[int]] = {}
        for place, record in enumerate(records):
            groups.setdefault(known_by(record) or depends.digest(place), []).append(place)
        if len(groups) > 1:
            break
    else:
        groups = {depends.digest(place): [place] for place in range(len(records))}
    in_order = [groups[key] for key in sorted(groups)]
    chosen: set[int] = set()
    for places in in_order:
        if len(chosen) + len(places) <= count:
            chosen.update(places)
    smallest = min(in_order, key=len)
    return chosen or set(smallest)


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
            )
