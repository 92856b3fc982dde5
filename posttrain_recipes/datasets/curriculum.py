"""A dataset ordered from easy to hard."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from pydantic import Field

from posttrain_recipes.plugin import (
    Conversation,
    Dataset,
    DatasetConfig,
    DatasetRef,
    Labelled,
    Preference,
    Prompt,
    Record,
    UsageError,
)

LENGTH = "length"
"""What `by` says for the length of the reply (of a prompt: of the prompt)."""


class Curriculum(Dataset):
    """Another dataset sorted by difficulty: a field of its prompts, a pass rate, or length.

    Say `shuffle: false` in the method, or the order is lost. A pass rate comes from an earlier
    stage with the method pass_rates; `minimum` and `maximum` leave out what is too easy or too hard
    to learn from (Bengio et al. 2009, Curriculum learning).
    """

    name = "curriculum"

    class Config(DatasetConfig):
        """Options of a curriculum."""

        data: DatasetRef
        """The dataset that is sorted, written as a `dataset:` is."""
        by: str = LENGTH
        """The field with the difficulty, a number, as `level`; or `length`."""
        descending: bool = False
        """The largest number first, as for a pass rate."""
        minimum: float | None = Field(default=None)
        """Leave out records below this."""
        maximum: float | None = Field(default=None)
        """Leave out records above this."""

    config: Config

    @property
    def data(self) -> Dataset:
        """The dataset that is sorted."""
        return self.sources["data"][0]

    def record_type(self) -> type[Record] | None:
        """That of the data."""
        return self.data.record_type()

    def problems(self) -> Iterator[tuple[str, str]]:
        """A split inside, which would be lost."""
        if self.sources.get("data") and self.data.config.test_size:
            yield "data", "the data has 'test_size'; say it of the curriculum as a whole"

    def load(self) -> Iterator[Record]:
        """The records in the order of their difficulty; equals keep the order of the data.

        Raises:
            UsageError: a record without the field, or where it is no number.
        """
        config = self.config
        rated = [(self._difficulty(r), r) for r in islice(self.data.load(), self.data.config.limit)]
        kept = [
            (number, record)
            for number, record in rated
            if (config.minimum is None or number >= config.minimum)
            and (config.maximum is None or number <= config.maximum)
        ]
        if rated and not kept:
            raise UsageError(
                f"no record has a '{config.by}' within minimum and maximum",
                why=f"they are from {min(n for n, _ in rated):g} to {max(n for n, _ in rated):g}",
                code="no-records",
            )
        kept.sort(key=lambda one: -one[0] if config.descending else one[0])
        yield from (record for _, record in kept)

    def _difficulty(self, record: Record) -> float:
        if self.config.by == LENGTH:
            return float(_length(record))
        value = record.metadata.get(self.config.by) if isinstance(record, Prompt) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        found = "is not there" if value is None else f"is {value!r}"
        raise UsageError(
            f"{record.source}: '{self.config.by}' {found}; a curriculum needs a number in it",
            hint="only prompts keep such fields; say 'by: length' for other records",
            code="wrong-data",
        )


def _length(record: Record) -> int:
    """Characters of what is learned."""
    match record:
        case Conversation() | Prompt():
            return len(record.messages[-1].content)
        case Preference():
            return sum(len(message.content) for message in record.chosen)
        case Labelled():
            return sum(len(message.content) for message in record.completion)
    return 0
