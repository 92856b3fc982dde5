"""Reproducing a run from its resolved recipe, and comparing the results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from posttrain_recipes import store
from posttrain_recipes.errors import UsageError
from posttrain_recipes.language.parsing import parse
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.planning import lock
from posttrain_recipes.planning.lock import StageLock
from posttrain_recipes.planning.planner import build
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.records import Estimate
from posttrain_recipes.registry import Registry
from posttrain_recipes.reporting import report
from posttrain_recipes.store import RunRecord

EXACT = 1e-9
"""Results that are nearer than this are the same; floats survive JSON."""
Found = Literal["identical", "within", "outside", "missing"]


@dataclass(frozen=True)
class Verdict:
    """One metric, then and now."""

    stage: str
    eval: str
    metric: str
    when: str
    then: Estimate
    now: Estimate | None
    percent: bool

    @property
    def found(self) -> Found:
        """identical, within the two intervals, outside of them, or missing."""
        if self.now is None:
            return "missing"
        apart = abs(self.now.value - self.then.value)
        if apart <= EXACT * max(1.0, abs(self.then.value)) or (
            math.isnan(self.now.value) and math.isnan(self.then.value)
        ):
            return "identical"
        noise = math.hypot(report.half(self.now), report.half(self.then))
        return "within" if apart <= noise else "outside"

    @property
    def reproduced(self) -> bool:
        """Whether the same came out, up to the noise of measuring."""
        return self.found in ("identical", "within")


def kept_in_mlflow(run_id: str, tracking_uri: str) -> RunRecord:
    """What a tracking server has of a finished run.

    Raises:
        UsageError: there is no such run, or it did not finish, or was made by another program.
    """
    from posttrain_recipes.tracking import mlstore

    text = mlstore.artifact_text(tracking_uri, run_id, "run.json")
    try:
        return store.parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"what MLflow has of run {run_id} cannot be read",
            why=str(error) or None,
            code="tracking",
        ) from None


def plan_again(record: RunRecord, registry: Registry, base_dir: Path | None = None) -> Plan:
    """The plan of what a run did, from its resolved recipe.

    Args:
        base_dir: what relative paths start from; by default where the recipe was.

    Raises:
        RecipeError: what is not there any more, such as a data file.
    """
    folder = base_dir or Path(record.path).parent
    root = parse(report.resolved_yaml(record.resolved), f"recipe of {record.id}")
    kept = {stage.name: stage.numbers for stage in record.stages}
    recipe = Recipe(root, folder / Path(record.path).name, record.preset)
    # Of a run that a person looks at nobody else is told.
    root.value.pop("trackers", None)
    return replace(build(recipe, registry, ask=True, kept=kept), on_end=None)


def changes(record: RunRecord, plan: Plan) -> Iterator[str]:
    """What is not as it was: data, models, versions of plugins; in words, by stage."""
    kept = {
        stage.name: StageLock(
            stage.fingerprint,
            stage.inputs,
            {m.name: m.fingerprint for m in (*stage.before, *stage.after)},
        )
        for stage in record.stages
    }
    return lock.changes(kept, plan)


def verdicts(then: RunRecord, now: RunRecord) -> list[Verdict]:
    """Every metric of the earlier run, with what the later one found."""
    again = {
        (stage.name, when, measured.name): measured.metrics
        for stage in now.stages
        for when, measured in _measured(stage)
    }
    return [
        Verdict(
            stage.name,
            measured.name,
            metric,
            when,
            estimate,
            again.get((stage.name, when, measured.name), {}).get(metric),
            metric in report.SHARES,
        )
        for stage in then.stages
        for when, measured in _measured(stage)
        for metric, estimate in measured.metrics.items()
    ]


def _measured(stage: Any) -> Iterator[tuple[str, Any]]:
    for when in ("before", "after") if stage.method else ("after",):
        for measured in getattr(stage, when):
            yield when, measured


@dataclass(frozen=True)
class Reproduction:
    """A run, and the same run again."""

    then: RunRecord
    now: RunRecord
    changed: Sequence[str]
    """What is not as it was: data, models, versions of plugins; in words, by stage."""

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Every metric of the earlier run, with what the later one found."""
        return verdicts(self.then, self.now)

    @property
    def reproduced(self) -> bool:
        """Whether the same came out, up to the noise of measuring."""
        return all(verdict.reproduced for verdict in self.verdicts)

    def __repr__(self) -> str:
        same = "reproduced" if self.reproduced else "not reproduced"
        return f"Reproduction({self.then.id} again as {self.now.id}: {same})"

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [("stage", "eval", "", self.then.id, self.now.id, "")]
        for v in self.verdicts:
            shown = [report.show(e, v.percent) for e in (v.then, v.now)]
            words = {"within": "within the intervals", "outside": "OUTSIDE the intervals"}
            label = v.eval if v.metric == v.eval else f"{v.eval} {v.metric}"
            table.append((v.stage, label, v.when, *shown, words.get(v.found, v.found)))
        count = len(self.verdicts)
        missed = sum(not v.reproduced for v in self.verdicts)
        same = sum(v.found == "identical" for v in self.verdicts)
        tail = f", {count - same} within the intervals" if count > same else ""
        said = (
            f"not reproduced: {missed} of {count} results are outside or missing"
            if missed
            else f"reproduced: {same} of {count} results identical{tail}"
        )
        return f"{report.columns(table, right=(3, 4))}\n\n{said}"

    def as_json(self) -> Mapping[str, Any]:
        """The verdict as `ptl reproduce --json` prints it."""
        return {
            "run": self.then.id,
            "again": self.now.id,
            "reproduced": self.reproduced,
            "changed": list(self.changed),
            "results": [{**asdict(v), "found": v.found} for v in self.verdicts],
        }
