"""Which records are held out for evals: by what they ask, whatever the seed and the order.

What a large file asks is found in one pass over its rows, of which none is held; the places of both
sides are kept in the cache, by the content of the file.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from posttrain_recipes import content
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.planning import asked, depends
from posttrain_recipes.planning.plans import Data
from posttrain_recipes.planning.questions import content_of, question_of
from posttrain_recipes.records import Record
from posttrain_recipes.streamed import Streamed
from posttrain_recipes.version import __version__

log = logging.getLogger(__name__)
KEPT = 8
"""Splits that are kept in the cache, 4 bytes a row each; and in this process."""
_TOLD = 10
"""Rows that cannot be used and are named; the others are only counted."""
_SUM = 32
"""Bytes of the hash that a kept split ends with."""

_known: OrderedDict[str, array[int]] = OrderedDict()
_begun: dict[str, asked.Reading] = {}


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
    chosen = _taken([len(places) for places in in_order], count)
    return {place for group in chosen for place in in_order[group]}


def _taken(sizes: Sequence[int], count: int) -> list[int]:
    """Which groups of these sizes are held out, taken in order."""
    chosen, held = [], 0
    for group, size in enumerate(sizes):
        if held == count:
            break
        if held + size <= count:
            chosen.append(group)
            held += size
    return chosen or [min(range(len(sizes)), key=lambda group: sizes[group])]


def too_few(data: Data, count: int) -> UsageError:
    """What to say where a test split would leave nothing."""
    size = data.dataset.config.test_size
    return UsageError(
        f"{data.label} has {count} records, too few for test_size={size}", code="no-records"
    )


# --- large files ---------------------------------------------------------------------------------


def split(data: Data, rows: Streamed[Record]) -> Sequence[int] | None:
    """The places of the side of the split that `data` is, as `held_out` would have it.

    None where the whole content or the place decides: all of the records ask the same.

    Raises:
        UsageError: a row that cannot be used (unless those are skipped), or too few for the split.
    """
    key = _key(data)
    kept = _known.get(key) or _read(key)
    if kept is None:
        kept = _made(data, rows, _asked(key, data, rows))
        if kept is None:
            return None
        if not rows.left_out:  # else they would not be told again
            _write(key, kept)
    held, size = kept[0], data.dataset.config.test_size
    if key not in _known and held != size:  # of smaller files it is told as a run begins
        label = data.label.removesuffix(" (test split)")
        what = f"{label} (test split) has {held:,} records and not test_size={size}"
        log.warning("%s: rows that ask the same stay together", what)
    _known[key] = kept
    _known.move_to_end(key)
    while len(_known) > KEPT:
        _known.popitem(last=False)
    return kept[1 : 1 + held] if data.held_out else kept[1 + held :]


@contextmanager
def ahead(sources: Iterable[Data]) -> Iterator[None]:
    """Have large files that are to be split read while other things are done, until the end of it.

    What they ask takes a process on each core some seconds, and whoever starts a run keeps one of
    them busy for as long.
    """
    mine = []
    try:
        for data in sources:
            with suppress(OSError, PtlError):  # told where the stage reads it
                count = data.dataset.size() if data.dataset.config.test_size else None
                if count is None or count < asked.MANY or (key := _key(data)) in _begun:
                    continue
                if key in _known or _read(key) is not None:
                    continue
                if (reading := asked.begin(data.dataset, count)) is not None:
                    _begun[key] = reading
                    mine.append(key)
        yield
    finally:
        for key in mine:
            if (left := _begun.pop(key, None)) is not None:
                left.close()


def _key(data: Data) -> str:
    return depends.digest("split", __version__, depends.of_plugin(data.dataset))


def _asked(key: str, data: Data, rows: Streamed[Record]) -> array[int]:
    """The digests of what the rows ask, as far as other processes read them."""
    count = min(len(rows), data.dataset.config.limit or len(rows))
    reading = _begun.pop(key, None) or asked.begin(data.dataset, count)
    return array("Q") if reading is None else reading.digests(count)


def _made(data: Data, rows: Streamed[Record], known: array[int]) -> array[int] | None:
    """How many are held out, their places, and those of the others.

    Args:
        known: what the rows ask, as `asked` has it; of rows after its end nothing is known.
    """
    import numpy as np

    config = data.dataset.config
    faults: list[UsageError] = []
    places, digests = array("I"), array("Q")
    for place in range(len(rows)):
        if place < len(known) and known[place] != asked.UNKNOWN:
            places.append(place)
            digests.append(known[place])
        else:
            try:
                found = rows.chosen((place,))
            except UsageError as error:
                if error.code == "changed":  # no row is what it was
                    raise
                faults.append(error)
                continue
            for record in found:
                question = question_of(record)
                if question is None:
                    return None
                places.append(place)
                digests.append(int(question, 16))
        if len(places) == config.limit:
            break
    if faults:
        raise _unusable(data, faults, len(rows))
    if known:
        rows.chosen(places[:1])  # raises where the file was edited while others read it
    if rows.left_out:
        count = f"{len(rows.left_out):,} of {len(rows):,} rows cannot be used and were left out"
        log.warning("%s: %s", data.label, count)
    if config.test_size >= len(places):
        raise too_few(data, len(places))
    # Digests are all of one length, so that as numbers they have the order that they have as text.
    questions_of_rows, there = np.frombuffer(digests, np.uint64), np.frombuffer(places, np.uint32)
    questions, counts = np.unique(questions_of_rows, return_counts=True)
    if len(questions) == 1:
        return None
    taken = questions[_taken(counts.tolist(), config.test_size)]
    at = np.minimum(np.searchsorted(taken, questions_of_rows), len(taken) - 1)
    held = taken[at] == questions_of_rows
    made = array("I", [int(held.sum())])
    made.frombytes(there[held].tobytes())
    made.frombytes(there[~held].tobytes())
    return made


def _unusable(data: Data, faults: Sequence[UsageError], count: int) -> UsageError:
    """All rows that cannot be used, where the split had each of them read."""
    if len(faults) == 1:
        return faults[0]
    shown = "\n  ".join(error.what for error in faults[:_TOLD])
    more = "\n  ..." if len(faults) > _TOLD else ""
    return UsageError(
        f"{len(faults):,} of {count:,} rows of {data.label} cannot be used:\n  {shown}{more}",
        hint="mend or remove them, or leave them out with 'bad_rows: skip' of the data set",
        code="bad-row",
    )


def _folder() -> Path:
    return content.cache_dir() / "splits"


def _read(key: str) -> array[int] | None:
    """What an earlier run kept; None where there is nothing, or nothing whole."""
    try:
        raw = (_folder() / key).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(raw[:-_SUM]).digest() != raw[-_SUM:]:
        return None
    kept = array("I")
    kept.frombytes(raw[:-_SUM])
    return kept


def _write(key: str, kept: array[int]) -> None:
    raw = kept.tobytes()
    content.write_quietly(_folder() / key, raw + hashlib.sha256(raw).digest())
    with suppress(OSError):
        files = sorted(_folder().iterdir(), key=lambda path: path.stat().st_mtime)
        for path in files[:-KEPT]:
            path.unlink(missing_ok=True)
