"""A picture of what a plugin's check found, for its README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain_recipes.store import write_atomic
from posttrain_recipes.testing.findings import Finding
from posttrain_recipes.version import __version__

UNKNOWN = "not checked yet"
_COLOURS = {"conforms": "#2e7d32", "not tried": "#9a6700", "fails": "#b3261e", UNKNOWN: "#6e7781"}
_CHARACTER = 7
"""Pixels that a character of 11 px is given."""


def verdict(found: Sequence[Finding], *, seen: bool) -> str:
    """`conforms`, `fails`, or `not tried` where a plugin was read and not seen at work."""
    if not all(finding.passed for finding in found):
        return "fails"
    return "conforms" if seen else "not tried"


def svg(word: str) -> str:
    """The picture for a verdict, with the version of ptl that came to it."""
    left, right = f"ptl {__version__}", word
    a, b = (_CHARACTER * len(text) + 12 for text in (left, right))
    text = 'fill="#fff" font-family="Verdana,sans-serif" font-size="11" text-anchor="middle" y="14"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{a + b}" height="20" role="img" '
        f'aria-label="{left}: {right}"><title>{left}: {right}</title>\n'
        f'<rect width="{a}" height="20" fill="#444"/>'
        f'<rect x="{a}" width="{b}" height="20" fill="{_COLOURS[word]}"/>\n'
        f'<text {text} x="{a // 2}">{left}</text><text {text} x="{a + b // 2}">{right}</text>\n'
        "</svg>\n"
    )


def write(path: Path, word: str) -> None:
    """The picture as a file."""
    write_atomic(path, svg(word))
