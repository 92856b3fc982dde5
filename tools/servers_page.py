"""Bring the recipes in docs/servers.md up to date; what servers do stays as it was measured.

    python tools/servers_page.py [--check]

A section is written by `ptl engines check --markdown LABEL`, of a server that runs. Recipes come
and go since: their rows are made anew here from the checks that stand in the section.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from posttrain_recipes import probe
from posttrain_recipes.cli import check_page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "servers.md"
_ROW = re.compile(r"\| `([^`]+)` \| (.*?) \| (yes|\*\*no\*\*|not tried)(?:: (.*?))? \| [^|]*\|$")
_DIALECT = re.compile(r"\d+ of \d+ checks.*?, dialect ([\w.]+);")
_VERDICTS = {mark: verdict for verdict, mark in check_page.MARKS.items()}


def refreshed(text: str) -> str:
    """The page with the recipes of this package in the tables of every section."""
    head, *sections = re.split(r"(?m)^(?=## )", text)
    return head + "".join(map(_section, sections))


def _section(text: str) -> str:
    rows = [_ROW.match(line) for line in text.splitlines()]
    found = [
        probe.Outcome(row[1], _plain(row[2]), _VERDICTS[row[3]], _plain(row[4] or ""))
        for row in rows
        if row
    ]
    if not found:
        return text
    dialect = _DIALECT.search(text)
    tables = check_page.tables(dialect[1] if dialect else None, found)
    before, after = text[: text.index("| recipe |")], text[text.rindex("|\n") + 2 :]
    return before + "\n".join([*tables, ""]) + after


def _plain(cell: str) -> str:
    return cell.replace("\\|", "|")


def main() -> int:
    """Write the page; with --check say whether it is as it would be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = PAGE.read_text(encoding="utf-8")
    made = refreshed(text)
    if parser.parse_args().check:
        return int(made != text)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
