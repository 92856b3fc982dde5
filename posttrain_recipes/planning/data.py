"""Loads a dataset's records for a method or an eval: converted, limited and split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from posttrain_recipes.conversion import expand
from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning.contents import content_of, question_of
from posttrain_recipes.planning.plans import Data, digest
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
            groups.setdefault(known_by(record) or digest(place), []).append(place)
        if len(groups) > 1:
            break
    else:
        groups = {digest(place): [place] for place in range(len(records))}
    in_order = [groups[key] for key in sorted(groups)]
    chosen: set[int] = set()
    for places in in_order:
        if len(chosen) + len(places) <= count:
            chosen.update(places)
    smallest = min(in_order, key=len)
    return chosen or set(smallest)
