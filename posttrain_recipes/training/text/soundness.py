"""Whether a tokenizer keeps text and whether a model's files agree on where a reply ends.

A converted model may load, train and be sampled from while its tokenizer loses every space: what it
learns is another text. These checks need the tokenizer alone, and a second.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

PROBES: Mapping[str, str] = {
    "spaces": "the cat sat on the mat and the dog lay by the door",
    "line breaks": "one\ntwo\n\nthree",
    "digits": "0 1 2 3 4 5 6 7 8 9 and 1024 and 3.14",
    "letters": "pack my box with five dozen liquor jugs",
    "capital letters": "The Quick Brown FOX",
    "punctuation": "a, b; (c) [d] {e}: \"f\" 'g' - h_i/j <k> = 2 * 3 + 4%",
    "indentation": "if a:\n    if b:\n        c",
    "accents": "café naïve señor Größe",
}
"""Plain texts that a tokenizer should keep, by what is in them."""
NEEDED = ("spaces", "line breaks", "digits", "letters")
"""Probes without which no text can be learned."""
SEEN = 2_000
"""Characters of a text that are looked at."""


@dataclass(frozen=True)
class Lost:
    """What a tokenizer does not keep."""

    what: str
    needed: bool
    """Whether plain words, digits or white space are lost: nothing can be learned then."""


def keeps(again: Callable[[str], str], special: Collection[str]) -> Iterator[Lost]:
    """What of the plain probes is lost.

    Args:
        again: text -> the same text after it was tokens.
        special: names of tokens that stand for no text.
    """
    for what, text in PROBES.items():
        read = again(text)
        plain = what in NEEDED
        same = _plain(text, ()) == _plain(read, special) if plain else _same(text, read)
        if not same:
            yield Lost(f"{what}: {text!r} becomes {_short(read)!r}", plain)


def keeps_text(again: Callable[[str], str], special: Collection[str], text: str) -> Lost | None:
    """What of a text of the data is lost; None where it is kept.

    Other forms of one character and other amounts of white space in a row are no loss.
    """
    text = text[:SEEN]
    ascii_only = "".join(letter for letter in text if letter.isascii())
    read = again(ascii_only)
    names = [name for name in special if name not in text]
    if _plain(ascii_only, ()) != _plain(read, names):
        return Lost(f"{_short(ascii_only)!r} becomes {_short(read)!r}", True)
    read = again(text)
    dense, kept = ("".join(_normal(one).split()) for one in (text, read))
    if dense.casefold() == kept.casefold():
        return None
    gone = sorted(set(dense) - set(kept))
    named = f"{', '.join(map(repr, gone[:5]))} lost; " if gone else ""
    return Lost(f"{named}{_short(text)!r} becomes {_short(read)!r}", False)


def _same(text: str, read: str) -> bool:
    return _normal(text).strip() == _normal(read).strip()


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text.replace("\r\n", "\n"))


def _plain(text: str, special: Collection[str]) -> str:
    """Letters and digits of ASCII in lower case, with one space or line break between them."""
    for name in special:
        text = text.replace(name, "")
    kept = "".join(c for c in text.casefold() if c.isspace() or (c.isascii() and c.isalnum()))
    return re.sub(
        r"\s+", lambda run: "\n" if "\n" in run[0] or "\r" in run[0] else " ", kept
    ).strip()


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[:most] + "..."


# --- ends ----------------------------------------------------------------------------------------


def ends_differ(
    tokenizer: int | None, files: Mapping[str, Sequence[int]], name: Callable[[int], str]
) -> str | None:
    """In what the files of a model differ on the token that ends a sequence; None where they agree.

    They agree where some token is the end by all that name one: a file may well name more.

    Args:
        tokenizer: the tokenizer's end of a sequence.
        files: by file, the ends that it names; none where it names none.
        name: the text of a token.
    """
    said = {"the tokenizer": [] if tokenizer is None else [tokenizer], **files}
    given = {where: set(ids) for where, ids in said.items() if ids}
    if len(given) < 2 or set.intersection(*given.values()):
        return None
    return ", ".join(
        f"{where} has {' and '.join(f'{token} ({name(token)!r})' for token in sorted(ids))}"
        for where, ids in given.items()
    )
