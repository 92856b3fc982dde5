"""What each metric is the mean of, record by record: kept beside a run, and read again to test."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from posttrain_recipes import runfile, store
from posttrain_recipes.records import Estimate, EvalResult, PerRecord, Sample
from posttrain_recipes.store import Measured, RunDirectory, RunRecord, StageRecord

log = logging.getLogger(__name__)


def path(run: Path, stage: str, name: str, when: str) -> Path:
    """Where the scores of an eval lie."""
    return run / "scores" / stage / f"{name}-{when}.json"


def keep(directory: RunDirectory, stage: str, name: str, when: str, result: EvalResult) -> None:
    """Keep what an eval saw, and its scores by record."""
    if result.samples:
        directory.save_samples(stage, name, when, result.samples)
    given = {metric: one for metric, one in result.scores.items() if metric in result.metrics}
    known = {**of_samples(result.samples, result.metrics), **given}
    text = json.dumps({metric: asdict(one) for metric, one in known.items()})
    store.write_atomic(path(directory.path, stage, name, when), text)


def places(
    record: RunRecord, stage: StageRecord, measured: Measured
) -> Iterator[tuple[Path, str, str]]:
    """Where an eval of a stage may have left something: the directory of a run, and what the stage
    and the eval are called there. A reused stage may have had other names in the earlier run."""
    if record.home is None:
        return
    yield record.home / record.id, stage.name, measured.name
    if stage.reused_from is None:
        return
    there = record.home / stage.reused_from
    earlier = store.read(there / "run.json")
    for known in earlier.stages if earlier else ():
        if known.fingerprint == stage.fingerprint:
            same = (m for m in (*known.before, *known.after) if _is(m, measured))
            yield there, known.name, next((m.name for m in same), measured.name)


def _is(one: Measured, other: Measured) -> bool:
    return one.fingerprint == other.fingerprint


def load(
    record: RunRecord, stage: StageRecord, measured: Measured, when: str
) -> Mapping[str, PerRecord]:
    """The scores of an eval before or after a stage by metric, from wherever it was measured; none
    where they are not known."""
    for run, stage_name, name in places(record, stage, measured):
        file = path(run, stage_name, name, when)
        if file.is_file():
            try:
                data = json.loads(file.read_text(encoding="utf-8"))
                return {
                    metric: PerRecord(tuple(one["values"]), tuple(one["weights"]), one["abstained"])
                    for metric, one in data.items()
                }
            except (OSError, *runfile.DAMAGED) as error:
                log.warning("%s", runfile.damaged(file, error))
                return {}
        samples = store.load_samples(run, stage_name, name, when)
        if samples:  # of a run that kept no scores
            return of_samples(samples, measured.metrics)
    return {}


def of_samples(samples: Sequence[Sample], metrics: Mapping[str, Estimate]) -> dict[str, PerRecord]:
    """The scores of those metrics that are the mean of what every sample scored."""
    return {
        metric: PerRecord(tuple(sample.scores[metric] for sample in samples))
        for metric, estimate in metrics.items()
        if len(samples) == estimate.count and all(metric in s.scores for s in samples)
    }
