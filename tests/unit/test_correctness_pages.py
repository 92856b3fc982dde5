"""The pages that say what is tested name tests that there are."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

FILE = re.compile(r"`((?:unit|e2e|contract|conformance|fuzz)/[\w/]+\.py)`")
NAME = re.compile(r"`([a-z][a-z0-9_ ']+[a-z0-9])(?:_\.\.\.)?`")


@pytest.mark.parametrize("page", ["correctness", "security"])
def test_what_a_page_names_is_there(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    sources = {path: (ROOT / "tests" / path).read_text() for path in FILE.findall(text)}
    assert len(sources) > 1
    every = "\n".join(sources.values())
    for row in rows[1:]:
        last = row.rstrip("| ").rsplit("|", 1)[-1]
        for name in NAME.findall(last):
            named = f"def test_{name}" in every or f'"{name}"' in every
            assert named, f"{page}.md names {name!r}, and no test is called so"
