"""A mixture of several datasets, in stated shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from pydantic import Field, model_validator

from posttrain_recipes.conversion import can_become
from posttrain_recipes.plugin import Dataset, DatasetConfig, DatasetRef, Record


class Mix(Dataset):
    """Several datasets interleaved: all of each, or in shares given by weights.

    With weights the mix ends where the part that is due has no more records, so that no record
    comes twice; with `size` parts that are used up begin again. Replay against forgetting is a mix
    of the new data and some of an earlier stage's.
    """

    name = "mix"

    class Config(DatasetConfig):
        """Options of a mix."""

        parts: list[DatasetRef] = Field(min_length=1)
        """The datasets, each written as a `dataset:` is."""
        weights: list[float] | None = None
        """The share of each part, as `[4, 1]`; by the number of its records where not given."""
        size: int | None = Field(default=None, ge=1)
        """Records in all, repeating parts that are too short for it."""

        @model_validator(mode="after")
        def _a_weight_for_each(self) -> Mix.Config:
            if self.weights is not None:
                if len(self.weights) != len(self.parts):
                    raise ValueError(
                        f"has {len(self.weights)} weights for {len(self.parts)} parts; give each "
                        "part one"
                    )
                if min(self.weights) <= 0:
                    raise ValueError("'weights' have to be above 0; remove a part that has none")
            return self

    config: Config

    @property
    def parts(self) -> Sequence[Dataset]:
        """The datasets that are mixed."""
        return self.sources.get("parts", ())

    def problems(self) -> Iterator[tuple[str, str]]:
        """Parts that do not go together."""
        types = [(part, kind) for part in self.parts if (kind := part.record_type())]
        for part, kind in types[1:]:
            if can_become(kind, (types[0][1],)) is None:
                yield (
                    "parts",
                    f"'{part.name}' has {kind.__name__} records and '{types[0][0].name}' has "
                    f"{types[0][1].__name__} records; mix records of one type",
                )
        if any(part.config.test_size for part in self.parts):
            yield "parts", "a part has 'test_size'; say it of the mix as a whole"

    def record_type(self) -> type[Record] | None:
        """That of the first part that knows it."""
        return next((kind for part in self.parts if (kind := part.record_type())), None)

    def load(self) -> Iterator[Record]:
        """The records, each part in its own order, at every point as near to the shares as can be.

        Raises:
            UsageError: a part cannot be read.
        """
        parts = [list(islice(part.load(), part.config.limit)) for part in self.parts]
        weights = self.config.weights or [float(len(part)) for part in parts]
        for place, index in interleave(parts, weights, self.config.size):
            yield parts[place][index]


def interleave(
    parts: Sequence[Sequence[Record]], weights: Sequence[float], size: int | None
) -> Iterator[tuple[int, int]]:
    """Which part comes next, and which of its records.

    Each part gathers its weight at every turn and the one with the most pays the sum of all for
    its turn: after n turns a part of weight w has had n w / sum(weights) of them, give or take one.
    """
    credit, taken, whole = [0.0] * len(parts), [0] * len(parts), sum(weights)
    while size is None or sum(taken) < size:
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        place = max(range(len(parts)), key=lambda i: (credit[i], -i))
        if not parts[place] or (size is None and taken[place] == len(parts[place])):
            return
        yield place, taken[place] % len(parts[place])
        credit[place] -= whole
        taken[place] += 1
