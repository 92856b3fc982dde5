"""Numbers that remember how they were written: as a number they count, as text they are quoted.

Most numbers are plain: Python writes them as they stood. The rest are of the classes here, which
compare and calculate as their value does, and whose `str()` is the text of the data.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from posttrain_recipes.datasets.faults import RowError

MAX_DIGITS = 4000
"""Python refuses to write integers of more than 4300 digits."""


class FloatText(float):
    """A float with the text that it was written as: `0.00001`, `1.50`, `1E3`."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, value: float, text: str) -> FloatText:
        """`value`, written as `text`."""
        made = super().__new__(cls, value)
        made.text = text
        return made

    def __str__(self) -> str:
        return self.text

    def __getnewargs__(self) -> tuple[float, str]:  # type: ignore[override]
        return (float(self), self.text)


class IntText(int):
    """An integer with the text that it was written as: `1e400`, `-0`."""

    text: str

    def __new__(cls, value: int, text: str) -> IntText:
        """`value`, written as `text`."""
        made = super().__new__(cls, value)
        made.text = text
        return made

    def __str__(self) -> str:
        return self.text

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]
        return (int(self), self.text)


class NumberText(str):
    """A number that is too long or too large to calculate with; its digits are kept as text."""


def parse_float(text: str) -> float | int | NumberText:
    """A number with a point or an exponent."""
    value = float(text)
    if repr(value) == text:
        return value
    if math.isfinite(value):
        return FloatText(value, text)
    try:
        exact = Decimal(text)
        if exact.adjusted() < MAX_DIGITS and exact == exact.to_integral_value():
            return IntText(int(exact), text)
    except ArithmeticError:  # an exponent that even Decimal does not hold
        pass
    return NumberText(text)


def parse_int(text: str) -> int | NumberText:
    """A number of digits alone."""
    if len(text) > MAX_DIGITS:
        return NumberText(text)
    return IntText(0, text) if text == "-0" else int(text)


def is_number(value: Any) -> bool:
    """Whether `value` stood in the data as a number."""
    return isinstance(value, int | float | Decimal | NumberText) and not isinstance(value, bool)


def without_exponent(value: float) -> float:
    """A float that comes without a text, such as parquet's: `0.00001`, where Python says 1e-05."""
    text = repr(value)
    if "e" not in text or not math.isfinite(value):
        return value
    return FloatText(value, format(Decimal(text), "f"))


def single(value: float) -> float:
    """The float with the fewest digits that is `value` in 32 bits: 0.1, not 0.10000000149011612."""
    if not math.isfinite(value):
        return value
    for digits in range(6, 9):
        near = float(f"{value:.{digits}g}")
        if abs(near) < 3.4e38 and struct.unpack("f", struct.pack("f", near))[0] == value:
            return near
    return value


def plain(value: Any, where: str, narrow: bool = False) -> Any:
    """A value of parquet or Arrow, with numbers as JSON has them.

    Raises:
        RowError: NaN or an infinity is in it; the message names `where`.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RowError(f"'{where}' has {value}, which is no number; leave it out or write null")
        return without_exponent(single(value) if narrow else value)
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise RowError(f"'{where}' has {value}, which is no number; leave it out or write null")
        text = format(value, "f")
        return parse_float(text) if "." in text else parse_int(text)
    if isinstance(value, Mapping):
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, f"{where}[{index}]", narrow) for index, item in enumerate(value)]
    return value
