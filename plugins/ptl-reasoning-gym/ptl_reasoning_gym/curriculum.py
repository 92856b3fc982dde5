"""A curriculum that goes by pass rates: items of the level that a model is ready for.

    level(task) = the lowest one whose pass rate is below `raise_at`; else the highest one measured

It has no state of its own: pass rates are records that an earlier stage made, so that a run that
is resumed comes to the same level. In a loop (`repeat:`) it follows the model: up as it learns,
and down again where it forgets.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

from pydantic import Field

from posttrain_recipes.plugin import Dataset, DatasetConfig, DatasetRef, Prompt, Record, UsageError
from ptl_reasoning_gym import forms, library
from ptl_reasoning_gym.datasets import ITEM, item_of, prompts, say
from ptl_reasoning_gym.items import SEEDS, Source

RATE = "pass_rate"
"""The field in which the method `pass_rates` keeps what it found."""


@dataclass(frozen=True)
class Measured:
    """What an earlier stage found of one task with one set of options."""

    task: str
    config: str
    rates: Mapping[int, float]
    """Mean pass rate by level."""
    count: int

    def level(self, raise_at: float) -> int:
        """The lowest level whose pass rate is below, or the highest."""
        levels = sorted(self.rates)
        return next((one for one in levels if self.rates[one] < raise_at), levels[-1])


class ReasoningGymCurriculum(Dataset):
    """Items of the level of each task that a model is ready for, by pass rates.

    `rates` holds prompts of `reasoning_gym` at several levels, which the method `pass_rates` rated.
    The tasks, their options, their shares and the form of the answer are those of these prompts.
    """

    name = "reasoning_gym_curriculum"

    class Config(DatasetConfig):
        """Options of a curriculum by pass rates."""

        rates: DatasetRef
        """The rated prompts, as `{use: collected, stage: rates}`."""
        raise_at: float = Field(default=0.7, gt=0, le=1)
        """The pass rate at which a level has been learned, and the next one is due."""
        size: int = Field(default=500, ge=1)
        """Items in all."""
        seed: int = Field(default=0, ge=0, lt=SEEDS // 2)
        """Other items. They are others after every measurement anyway."""
        tell: bool = True
        """Whether the prompt says how to write the answer."""

    config: Config

    def record_type(self) -> type[Record]:
        """Prompts."""
        return Prompt

    def problems(self) -> Iterator[tuple[str, str]]:
        """A split inside, which would be lost."""
        if self.sources.get("rates") and self.sources["rates"][0].config.test_size:
            yield "rates", "has 'test_size'; say it of the curriculum as a whole"

    def digest(self) -> str:
        """The version of the library."""
        return f"reasoning-gym {library.version()}"

    def load(self) -> Iterator[Prompt]:
        """The items; which level they are of is logged.

        Raises:
            UsageError: no rated prompts of `reasoning_gym`, or some that have no level.
        """
        config = self.config
        source = self.sources["rates"][0]
        found, form, known_by = _measured(islice(source.load(), source.config.limit))
        sources = []
        for one in found:
            level = one.level(config.raise_at)
            told = ", ".join(f"{at}: {one.rates[at]:.0%}" for at in sorted(one.rates))
            say(f"reasoning-gym: {one.task} is at level {level} (pass rates {told})")
            sources.append(Source(one.task, level, one.config, float(one.count)))
        # Rounds of a loop have one seed: without this they would train on the same items.
        seed = SEEDS // 2 + (config.seed + known_by) % (SEEDS // 2)
        size = min(config.size, config.limit or config.size)
        return prompts(sources, "train", seed, size, form, config.tell)


def _measured(records: Iterable[Record]) -> tuple[list[Measured], forms.Form, int]:
    """What rated prompts tell: of each task, how its answers are written, and a number that is
    another one where anything is."""
    rates: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    known_by, form = hashlib.sha256(), None
    for record in records:
        kept = record.metadata if isinstance(record, Prompt) else {}
        found = item_of(kept)
        if found is None or RATE not in kept:
            raise UsageError(
                f"{record.source}: no rated prompt of reasoning-gym",
                hint="'rates' reads what a stage with the method 'pass_rates' made of "
                "'reasoning_gym'",
            )
        item, form = found
        if item.level is None:
            raise UsageError(
                f"{record.source}: a prompt of '{item.task}' without a level",
                hint="name the levels in the dataset of the stage that rates: 'level: [0, 1, 2]'",
            )
        rate = float(kept[RATE])
        rates[item.task, item.config][item.level].append(rate)
        known_by.update(f"{kept[ITEM]}{rate}".encode())
    if form is None:
        raise UsageError("the stage that rates left no prompts")
    measured = [
        Measured(
            task,
            config,
            {level: round(fmean(each), 9) for level, each in levels.items()},
            sum(map(len, levels.values())),
        )
        for (task, config), levels in rates.items()
    ]
    return measured, form, int.from_bytes(known_by.digest()[:8])
