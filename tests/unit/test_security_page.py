"""Every test that docs/security.md names in its later sections is there."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def test_the_tests_that_hold_it_are_there() -> None:
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8").split("## Secrets")[1]
    rows = [row for row in page.splitlines() if row.startswith("| ") and "/test_" in row]
    assert len(rows) >= 10
    for row in rows:
        tried = row.rsplit("|", 2)[1]
        for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", tried):
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            for name in re.findall(r"`(\w+)`", names):
                assert f"def {name}(" in text, (file, name)
