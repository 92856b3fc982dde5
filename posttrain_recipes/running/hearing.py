"""The trackers of a recipe: looked at before a run, and opened with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from posttrain_recipes.errors import PtlError
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.reporting import report
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.shown import redact
from posttrain_recipes.store import RunDirectory
from posttrain_recipes.tracking.delivery import Deliveries


def check(plan: Plan) -> None:
    """Refuse trackers that are known not to work, before anything is spent.

    Raises:
        UsageError: a key is not set, say.
        PtlError: one cannot even be asked.
    """
    for tracker in plan.trackers:
        try:
            tracker.check()
        except PtlError:
            raise
        except Exception as error:  # a stranger's
            raise PtlError(
                f"tracker '{tracker.name}' cannot say whether it works",
                why=redact(f"{type(error).__name__}: {error}"),
                hint="run without it: --set 'trackers=[]'",
                code="bad-plugin",
            ) from error


@contextmanager
def told(plan: Plan, directory: RunDirectory, reporter: Reporter) -> Iterator[Deliveries]:
    """The trackers of a run, told that it begins; at the end they are waited for."""
    record, folder = directory.record, directory.path / "trackers"
    with Deliveries(plan.trackers, folder, reporter.warning, reporter.doing) as deliveries:
        deliveries.run_started(
            run_id=record.id,
            recipe=plan.name,
            resolved_yaml=report.resolved_yaml(plan.resolved),
            description=plan.description,
            params=report.run_params(record),
            tags=report.run_tags(record),
        )
        yield deliveries
