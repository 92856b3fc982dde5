"""What the values on an axis of a matrix are called: short, and no two that differ alike.

    text           its last path part; more parts of the path where two end alike
    number         6 digits; as many more as tell it from the others
    list, mapping  the number of the value, and the file or plugin that a mapping names

Only values whose labels would be the same get longer ones. Equal values have one label.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

DIGITS = 6
"""Of a number, where no other needs more."""
ALL_DIGITS = 17
"""Two floats that differ do so within these."""
Row = tuple[Any, ...]
"""The plain values of one choice, by path."""
Label = tuple[str, ...]
"""What they are called, by path."""


def first_equal(values: Sequence[Any]) -> tuple[int, ...]:
    """For each value the index of the first one that is equal to it."""
    first: dict[Hashable, int] = {}
    return tuple(first.setdefault(_identity(v), index) for index, v in enumerate(values))


def _identity(value: Any) -> Hashable:
    """Equal where two values mean the same: `1` and `1.0` do, `1`, `true` and `"1"` do not."""
    if isinstance(value, dict):
        return "mapping", frozenset((key, _identity(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return "list", tuple(_identity(inner) for inner in value)
    if isinstance(value, float) and math.isnan(value):
        return "number", "nan"
    return _kind(value), value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "number", float: "number", str: "text", dict: "mapping"}
    return kinds.get(type(value), "list")


def safe(text: str) -> str:
    """`text` in characters that a file name may have on every system that runs this."""
    return "".join(c if c.isprintable() and c not in "/\\" else "_" for c in text)


def alike(text: str) -> str:
    """Equal for texts that look the same, or do once MLflow's names of metrics are made of them."""
    return re.sub(r"[^\w.\- ]", "_", unicodedata.normalize("NFC", text))


def distinct_labels(rows: Sequence[Row], first: Sequence[int]) -> list[Label]:
    """A label for each row: the short one, or where others have it too, one that only it has.

    `first` is `first_equal(rows)`. What a label becomes depends on the rows that share the short
    one; the number of a row is the last resort.
    """
    own = [row for row in range(len(rows)) if first[row] == row]
    labels = {row: tuple(_short(v, row) for v in rows[row]) for row in own}
    for step in (_digits, _paths, _kinds):
        for group in list(_collisions(labels)):
            others = {_folded(label) for row, label in labels.items() if row not in group}
            longer = step({row: rows[row] for row in group}, {row: labels[row] for row in group})
            if not others & {_folded(label) for label in longer.values()}:
                labels.update(longer)
    # A label with a number in front can only meet one without, so this comes to an end.
    while groups := list(_collisions(labels)):
        for row in (row for group in groups for row in group):
            labels[row] = (f"{row + 1}-{labels[row][0]}", *labels[row][1:])
    return [labels[same] for same in first]


def _folded(label: Label) -> Label:
    return tuple(alike(text) for text in label)


def _collisions(labels: dict[int, Label]) -> Iterator[list[int]]:
    """The rows that share a label."""
    groups: dict[Label, list[int]] = {}
    for row, label in labels.items():
        groups.setdefault(_folded(label), []).append(row)
    return (group for group in groups.values() if len(group) > 1)


def _short(value: Any, row: int) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    if isinstance(value, dict):
        # Options of a plugin: the file is what tells data sets apart, most of the time.
        short = value.get("label") or value.get("path") or value.get("use")
        text = str(short).rsplit("/", 1)[-1].split(".")[0] if short else ""
        return f"{row + 1}-{safe(text)}" if text else str(row + 1)
    return str(row + 1) if isinstance(value, list) else safe(str(value).rsplit("/", 1)[-1])


Rows = dict[int, Row]
Labels = dict[int, Label]


def _digits(rows: Rows, labels: Labels) -> Labels:
    """With as many digits as tell the numbers apart."""

    def show(value: Any, label: str, digits: int) -> str:
        if not isinstance(value, float):
            return label
        shown = (f"{value:.{size}g}" for size in range(DIGITS, digits))
        # No digits but those that the number has: 0.1 is no 0.10000000000000001.
        return next((text for text in shown if float(text) == value), f"{value:.{digits}g}")

    return _grown(rows, labels, show, range(DIGITS + 1, ALL_DIGITS + 1))


def _paths(rows: Rows, labels: Labels) -> Labels:
    """With as many of the last parts of the paths as tell the texts apart."""

    def show(value: Any, label: str, parts: int) -> str:
        return safe("-".join(value.split("/")[-parts:])) if isinstance(value, str) else label

    texts = [value for row in rows.values() for value in row if isinstance(value, str)]
    longest = max((text.count("/") + 1 for text in texts), default=1)
    return _grown(rows, labels, show, range(2, longest + 1))


def _grown(
    rows: Rows,
    labels: Labels,
    show: Callable[[Any, str, int], str],
    sizes: Sequence[int],
) -> Labels:
    """The labels at the first size at which no more of them become distinct."""
    best = labels
    for size in sizes:
        tried = {
            row: tuple(show(v, t, size) for v, t in zip(rows[row], labels[row], strict=True))
            for row in rows
        }
        if _count(tried) > _count(best):
            best = tried
        if _count(best) == len(rows):
            break
    return best


def _count(labels: Labels) -> int:
    return len({_folded(label) for label in labels.values()})


def _kinds(rows: Rows, labels: Labels) -> Labels:
    """With the kind of each value, where that tells them apart: `1-text` and `1-number`."""
    kinds = {row: tuple(_kind(value) for value in values) for row, values in rows.items()}
    if len(set(kinds.values())) < len(rows):
        return labels
    places = [
        place for place, each in enumerate(zip(*kinds.values(), strict=True)) if len(set(each)) > 1
    ]
    return {
        row: tuple(
            f"{text}-{kinds[row][place]}" if place in places else text
            for place, text in enumerate(label)
        )
        for row, label in labels.items()
    }
