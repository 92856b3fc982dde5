"""What each row of a large file asks, read by several processes: a core each.

    python -m posttrain_recipes.planning.asked < REQUEST > DIGESTS

One of them reads a part of the rows. What is to be told of a row, a person hears of whoever asked:
there it is read again.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from array import array
from contextlib import suppress

from posttrain_recipes.errors import UsageError
from posttrain_recipes.machine import cores
from posttrain_recipes.planning.questions import question_of
from posttrain_recipes.plugin import Dataset

MANY = 100_000
"""Rows from which on it is worth the processes: of fewer the start takes longer."""
UNKNOWN = 0
"""Stands for the digest of a row of which something is to be told, or that asks nothing."""


class Reading:
    """A reading that other processes began; this one goes on with what it has to do."""

    def __init__(self, readers: list[subprocess.Popen[bytes]]) -> None:
        self._readers = readers

    def digests(self, count: int) -> array[int]:
        """Wait for the digests of what the first `count` rows ask, as numbers; `UNKNOWN` for some.

        Empty where the readers could not read the data set, or found another number of rows.
        """
        found = array("Q")
        for reader in self._readers:
            assert reader.stdout is not None
            with suppress(ValueError, OSError):  # it broke off within a number
                found.frombytes(reader.stdout.read())
        self.close()
        return found if len(found) == count else array("Q")

    def close(self) -> None:
        """End the processes, whatever they still had to read."""
        for reader in self._readers:
            reader.kill()
            reader.wait()
            assert reader.stdout is not None
            reader.stdout.close()


def begin(dataset: Dataset, count: int) -> Reading | None:
    """Have the rows of a data set of `count` read.

    None where there are few, one core, or nobody else can read the data set.
    """
    if count < MANY or cores() == 1:
        return None
    try:
        requests = [pickle.dumps((dataset, part, cores())) for part in range(cores())]
    except (pickle.PicklingError, AttributeError, TypeError):  # of a class that has no address
        return None
    reading = Reading(readers := [])
    try:
        for request in requests:
            # They import what this process does, and nothing that lies in the working directory.
            reader = subprocess.Popen(
                [sys.executable, "-P", "-m", __spec__.name],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            readers.append(reader)
            assert reader.stdin is not None
            with suppress(BrokenPipeError), reader.stdin:
                reader.stdin.write(request)
    except OSError:
        reading.close()
        return None
    return reading


class _Told(logging.Handler):
    """Whether anything was said since it was last asked."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        self.said = True


def read(dataset: Dataset, part: int, parts: int) -> array[int]:
    """The digests of what the rows of one of so many parts ask."""
    told = _Told()
    logging.basicConfig(handlers=[told], level=logging.WARNING, force=True)
    rows = dataset.streamed()
    if rows is None:
        raise SystemExit("it is another file by now")
    count = min(len(rows), dataset.config.limit or len(rows))
    found = array("Q")
    for place in range(count * part // parts, count * (part + 1) // parts):
        told.said = False
        try:
            question = question_of(rows[place])
        except UsageError:
            question = None
        found.append(UNKNOWN if question is None or told.said else int(question, 16))
    return found


if __name__ == "__main__":
    sys.stdout.buffer.write(read(*pickle.load(sys.stdin.buffer)).tobytes())
