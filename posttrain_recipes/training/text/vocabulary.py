"""Whether two tokenizers have the same vocabulary: equal ids for equal text.

A teacher that scores a student's tokens, and a reference that a policy is held to, read the
student's numbers. Where those mean other words, nothing fails: the scores are of nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBE = "The teacher's 12,345 naïve words: π ≈ 3.14\n\n    def f(x): return x**2  # 你好 🙂"
"""Text on which tokenizers differ: digits, contractions, accents, spaces, code, other scripts."""


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer makes of text."""

    words: Mapping[str, int]
    """Its tokens but for those that were added to it."""
    added: Mapping[str, int]
    """Tokens that stand for no text of their own, as those that begin and end a turn."""
    probe: tuple[int, ...]
    """`PROBE` as token ids (N,), without those that mark a beginning or an end."""

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """Of a tokenizer as `transformers` loads it."""
        added = tokenizer.get_added_vocab()
        probe = tokenizer.encode(PROBE, add_special_tokens=False)
        return cls(_without(tokenizer.get_vocab(), added), added, tuple(probe))

    @classmethod
    def of_file(cls, path: Path) -> Vocabulary | None:
        """Of a `tokenizer.json`, read without `transformers`; None where it cannot be."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception:  # the library raises nothing more special
            return None
        added = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items()}
        probe = tokenizer.encode(PROBE, add_special_tokens=False).ids
        return cls(_without(tokenizer.get_vocab(), added), added, tuple(probe))


def _without(words: Mapping[str, int], added: Mapping[str, int]) -> dict[str, int]:
    return {word: number for word, number in words.items() if word not in added}


def difference(ours: Vocabulary, theirs: Vocabulary) -> str | None:
    """In what two tokenizers differ, ours first; None where one can read what the other wrote.

    A token that only one of them was added is no difference: models of a family have their own.
    """
    if len(ours.words) != len(theirs.words):
        return f"{len(ours.words):,} tokens beside {len(theirs.words):,}"
    if ours.words != theirs.words:
        other = sum(theirs.words.get(word) != number for word, number in ours.words.items())
        return f"{other:,} of {len(ours.words):,} tokens are others"
    for word, number in ours.added.items():
        if theirs.added.get(word, number) != number:
            return f"{word} is token {number} beside {theirs.added[word]}"
    if ours.probe != theirs.probe:
        return "they split the same text otherwise"
    return None
