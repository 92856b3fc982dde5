"""From a dataset to the records that a method or an eval is handed."""

from __future__ import annotations

import random
from itertools import islice

from posttrain_recipes.conversion import convert
from posttrain_recipes.errors import UsageError
from posttrain_recipes.plan import Data
from posttrain_recipes.records import Record


def load_records(data: Data, wants: type[Record]) -> list[Record]:
    """The records of `data` as `wants`, in the dataset's order, its split applied.

    Raises:
        UsageError: data that cannot be read, too few records for the test split, or a record
            that is of another type.
    """
    config = data.dataset.config
    records = list(islice(data.dataset.load(), config.limit))
    if config.test_size:
        if config.test_size >= len(records):
            raise UsageError(
                f"{data.label} has {len(records)} records, too few for test_size={config.test_size}"
            )
        chosen = random.Random(data.split_seed).sample(range(len(records)), config.test_size)
        held_out = set(chosen)
        records = [r for i, r in enumerate(records) if (i in held_out) == data.held_out]
    return [convert(record, wants) for record in records]
