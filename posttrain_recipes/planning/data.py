"""Loads a dataset's records for a method or an eval: converted, limited and split."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from posttrain_recipes.conversion import expand
from posttrain_recipes.errors import UsageError
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
        UsageError: data that cannot be read, too few records for the test split, or a record
            that is of another type.
    """
    config = data.dataset.config
    data.dataset.bind(made, wants)
    records = list(islice(data.dataset.load(), config.limit))
    if config.test_size:
        if config.test_size >= len(records):
            raise UsageError(
                f"{data.label} has {len(records)} records, too few for test_size={config.test_size}"
            )
        chosen = random.Random(data.split_seed).sample(range(len(records)), config.test_size)
        held_out = set(chosen)
        records = [r for i, r in enumerate(records) if (i in held_out) == data.held_out]
    return [part for record in records for part in expand(record, wants)]
