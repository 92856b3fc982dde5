"""The kinds of errors, as `troubleshooting.md` tells of them: `ptl explain CODE` and the site."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "troubleshooting.md"
"""One section a code, in Markdown; its links are relative to `docs/`."""


@dataclass(frozen=True)
class Section:
    """What is told of one kind of error."""

    code: str
    text: str
    """In Markdown: the kind in a sentence, what it looks like, why, and what to do."""

    def plain(self) -> str:
        """For a terminal: links as the paths of pages, code without marks."""
        text = re.sub(r"\[([^\]]+)\]\(([^)#]+)[^)]*\)", r"\1 (docs/\2)", self.text)
        text = re.sub(r"^```\w*\n(.*?)^```$", lambda m: _indented(m[1]), text, flags=re.M | re.S)
        return text.replace("**", "").replace("`", "'").strip()


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


@cache
def sections() -> Mapping[str, Section]:
    """By code, in the order of the file."""
    _, *parts = re.split(r"^## ", SOURCE.read_text(encoding="utf-8"), flags=re.M)
    pairs = (part.split("\n", 1) for part in parts)
    return {code.strip(): Section(code.strip(), text.strip()) for code, text in pairs}
