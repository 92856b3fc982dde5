"""For plugin authors: what a plugin has to hold, checked as a reviewer would.

    from posttrain_recipes.testing import check_plugin

    def test_it_conforms():
        check_plugin("reward", "brevity")

`ptl plugins check NAME` runs the same checks. Options that have no default are given by keyword.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from posttrain_recipes import registry
from posttrain_recipes.errors import PtlWarning
from posttrain_recipes.registry import Entry
from posttrain_recipes.testing.findings import Finding
from posttrain_recipes.testing.reading import read_checks
from posttrain_recipes.testing.working import work_checks

__all__ = ["Finding", "check_plugin", "findings", "unexercised"]


def findings(entry: Entry, options: dict[str, Any], *, work: bool = True) -> list[Finding]:
    """Every check of a plugin in turn; the embedded engine is started where `work` is true."""
    found = read_checks(entry, options)
    if work and all(finding.passed for finding in found):
        found += [replace(finding, worked=True) for finding in work_checks(entry, options)]
    return found


def unexercised(found: Sequence[Finding]) -> str | None:
    """Why nothing was seen of how a plugin works, though it was let work; None where some was, or
    something is wrong that comes first."""
    working = [finding for finding in found if finding.worked]
    if not working or not all(finding.passed and finding.skipped for finding in working):
        return None
    return "; ".join(dict.fromkeys(finding.told for finding in working))


def check_plugin(kind: str, name: str, *, work: bool = True, **options: Any) -> None:
    """Raise `AssertionError` with everything that is wrong with an installed plugin.

    Where nothing is wrong and nothing was seen of how it works, as every sample abstained, a
    `PtlWarning` says so.

    Args:
        kind: dataset, method, reward, eval, engine or tracker.
        name: what a recipe says after `use:`.
        work: also let it work, methods and evals on the embedded engine (some 20 seconds).
        options: its options, where some have no default or the defaults are too large for a test.

    Raises:
        UsageError: no such plugin is installed.
    """
    entry = registry.load().get(kind, name)
    found = findings(entry, options, work=work)
    failed = [f for f in found if not f.passed]
    if failed:
        lines = [f"{finding.check}: {finding.told}" for finding in failed]
        raise AssertionError(f"{kind} '{name}' does not conform\n" + "\n".join(lines))
    if why := unexercised(found):
        warnings.warn(
            f"{kind} '{name}' was read and not seen at work: {why}", PtlWarning, stacklevel=2
        )
