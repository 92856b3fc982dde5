"""Token prices: a dated table that ships with the package, and the user's own, which overrides it.

    date: 2026-11-21
    source: my contract
    models:
      Qwen/Qwen3-8B: {prefill: 0.195, sample: 0.60, train: 0.44}     # USD per million tokens

lies in `prices.yaml` of the directory that runs are kept in, or where `PTL_PRICES` says.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posttrain_recipes.errors import UsageError, display_path
from posttrain_recipes.workload import Usage

KINDS = {"train": "training", "prefill": "prefill", "sample": "sampling"}
VARIABLE = "PTL_PRICES"
NAME = "prices.yaml"
_SHIPPED = Path(__file__).with_name(NAME)


class Price(BaseModel):
    """USD per million tokens; None where it is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefill: float | None = Field(default=None, ge=0)
    sample: float | None = Field(default=None, ge=0)
    train: float | None = Field(default=None, ge=0)
    note: str | None = None
    """What else the table says of it, as that these are prices of a discount."""

    def usd(self, usage: Usage) -> float | None:
        """What `usage` costs; None where a price that it needs is not known.

        What a training client only reads counts as the dearer of prefill and training: the words
        of the service fit both.
        """
        dearer = None if None in (self.train, self.prefill) else max(self.train, self.prefill)  # type: ignore[type-var]
        total = 0.0
        for tokens, price in (
            (usage.prefill - usage.forward, self.prefill),
            (usage.forward, dearer),
            (usage.sample, self.sample),
            (usage.train, self.train),
        ):
            if tokens and price is None:
                return None
            total += tokens * (price or 0.0) / 1e6
        return total


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    date: date
    source: str
    models: dict[str, Price]
    storage: float | None = Field(default=None, ge=0)
    """USD per GB of checkpoints and month."""


@dataclass(frozen=True)
class Prices:
    """Prices by model, with the day and the place that they are from."""

    models: Mapping[str, Price]
    note: str
    """`prices of 2026-10-07, tinker-docs...`."""
    storage: float | None = None
    """USD per GB of checkpoints and month; None where that is not known."""

    def of(self, model: str) -> Price:
        """The price of a base model; nothing is known of one that is not in the table."""
        return self.models.get(model) or Price()


def load(home: Path) -> Prices:
    """The shipped table, with the user's in front of it.

    Raises:
        UsageError: the user's table cannot be read.
    """
    given = os.environ.get(VARIABLE)
    mine = Path(os.path.expanduser(given)) if given else home / NAME
    shipped = _read(_SHIPPED)
    if not given and not mine.is_file():
        return Prices(
            shipped.models, f"prices of {shipped.date}, {shipped.source}", shipped.storage
        )
    table = _read(mine)
    storage = shipped.storage if table.storage is None else table.storage
    note = f"prices of {display_path(mine)}, {table.date}"
    return Prices({**shipped.models, **table.models}, note, storage)


def source_of(path: Path) -> str | None:
    """Where a table of one's own is from; None where there is none.

    Raises:
        UsageError: it cannot be read.
    """
    return _read(path).source if path.exists() else None


def unpriced(models: Mapping[str, Sequence[str]], prices: Prices) -> list[str]:
    """What is not known of what models are used for, in words.

    Args:
        models: by model, the kinds of price that are needed: train, prefill, sample.
    """
    found = []
    for model, kinds in models.items():
        lacking = [KINDS[kind] for kind in kinds if getattr(prices.of(model), kind) is None]
        if lacking:
            found.append(f"no price of {' and '.join(lacking)} of {model} is known")
    return found


def _read(path: Path) -> _Table:
    try:
        return _Table.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(
            f"the price table {display_path(path)} cannot be read",
            why=error.strerror,
            code="prices",
        ) from None
    except (yaml.YAMLError, ValidationError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UsageError(
            f"the price table {display_path(path)} is not as it should be",
            why="; ".join(lines[:4]),
            hint="it reads 'date:', 'source:' and 'models: {NAME: {prefill, sample, train}}', in "
            "USD per million tokens, and may have 'storage:', in USD per GB and month",
            code="prices",
        ) from None


def show_usd(amount: float) -> str:
    """`$12.30`, `$0.0042`."""
    return f"${amount:,.2f}" if amount >= 0.01 or amount == 0 else f"${amount:.2g}"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 05 s`, `2 h 10 min`; `?` where it is no number."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
