"""Records that an earlier stage collected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import Field

from posttrain_recipes.conversion import can_become
from posttrain_recipes.datasets.formats import RowParser
from posttrain_recipes.datasets.options import RowsConfig, records
from posttrain_recipes.datasets.reading import read_rows
from posttrain_recipes.errors import display_path
from posttrain_recipes.plugin import Dataset, DatasetConfig, Record, UsageError
from posttrain_recipes.records import RECORD_TYPES


class Collected(Dataset):
    """Records that an earlier stage of the recipe made, or left behind while it trained.

    Where that stage made records of several types, those are taken that the reader can use.
    """

    name = "collected"

    class Config(DatasetConfig):
        """Options of collected records."""

        stage: str = Field(min_length=1)
        """The stage that made them, above this one."""

    config: Config
    _made: Callable[[str], Path] | None = None
    _wants: type[Record] | None = None

    def reads(self) -> Sequence[str]:
        """The one stage."""
        return [self.config.stage]

    def bind(self, made: Callable[[str], Path], wants: type[Record]) -> None:
        """Remember where to look and for what."""
        self._made, self._wants = made, wants

    def load(self) -> Iterator[Record]:
        """The records of the type that is wanted, in the order in which they were made."""
        assert self._made is not None, "bind() comes first"
        assert self._wants is not None
        folder = self._made(self.config.stage)
        there = [t for t in RECORD_TYPES if (folder / f"{t.__name__.lower()}.jsonl").is_file()]
        fitting = [t for t in there if can_become(t, (self._wants,))]
        if not fitting:
            names = ", ".join(t.__name__ for t in there)
            raise UsageError(
                f"stage '{self.config.stage}' left no {self._wants.__name__} records in {folder}",
                why=f"it left {names} records" if there else "it left no records at all",
                code="no-records",
            )
        exact = self._wants if self._wants in fitting else fitting[0]
        path = folder / f"{exact.__name__.lower()}.jsonl"
        name = display_path(path)
        config = RowsConfig(limit=self.config.limit)
        yield from records(read_rows(path), RowParser(name, record=exact), config, "")
