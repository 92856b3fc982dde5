"""Loads a dataset's records for a method or an eval: converted, limited and split."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from posttrain_recipes import content
from posttrain_recipes.conversion import expand
from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning import depends
from posttrain_recipes.planning.plans import Data
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
        chosen = random.Random(data.split_seed).sample(range(len(records)), config.test_size)
        held_out = set(chosen)
        records = [r for i, r in enumerate(records) if (i in held_out) == data.held_out]
    return [part for record in records for part in expand(record, wants)]


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
