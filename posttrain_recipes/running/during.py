"""Evals while a stage trains: its best checkpoint is kept, or it ends where nothing is gained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning.plans import PlannedEval, PlannedStage, Yardstick
from posttrain_recipes.plugin import Checkpoint, Resume
from posttrain_recipes.reporting import report
from posttrain_recipes.store import Measured, StageRecord

Measure = Callable[[PlannedEval, Checkpoint], None]


@dataclass
class During:
    """The evals of one stage that are run while it trains.

    Args:
        measure: runs an eval on a checkpoint, and adds what it found to `StageRecord.during`.
    """

    stage: PlannedStage
    kept: StageRecord
    measure: Measure

    def check(self) -> None:
        """Refuse, before anything is trained, a metric by which checkpoints cannot be compared.

        Raises:
            UsageError: the eval before the stage did not find it, or neither way is the better one.
        """
        for yardstick in (self.stage.keep, self.stage.stop.yardstick if self.stage.stop else None):
            if yardstick is not None:
                list(self._every(yardstick))

    @property
    def evals(self) -> list[PlannedEval]:
        """Those that are run while it trains."""
        return [planned for planned in self.stage.evals if planned.every]

    def due(self, step: int) -> bool:
        """Whether an eval is to be run after this step."""
        return any(self._due(planned, step) for planned in self.evals)

    def _due(self, planned: PlannedEval, step: int) -> bool:
        """The first checkpoint at or after each multiple of `every`; the last one is evaluated as
        the stage's result, and here only where it is compared with the others."""
        assert planned.every is not None
        found = [m.step or 0 for m in self.kept.during if m.fingerprint == planned.fingerprint]
        done = max(found, default=0)
        if step >= self.kept.total_steps:
            decides = self.stage.keep is not None and self.stage.keep.eval == planned.name
            return decides and step > done
        return step // planned.every > done // planned.every

    def review(self, resume: Resume | None) -> bool:
        """Run what is due on a checkpoint; whether the stage ends with it."""
        if resume is None or self.kept.ended:
            return self.kept.ended
        checkpoint = Checkpoint(self.stage.model, resume.state_uri, resume.sampler_uri, resume.step)
        for planned in self.evals:
            if self._due(planned, resume.step):
                self.measure(planned, checkpoint)
        if self.stage.keep is not None:
            self._choose(self.stage.keep, resume)
        if (stop := self.stage.stop) is not None and resume.step < self.kept.total_steps:
            gained = list(self._gains(stop.yardstick))
            if len(gained) >= stop.patience and not any(gained[-stop.patience :]):
                self.kept.notes.append(
                    f"ended at step {resume.step} of {self.kept.total_steps}: {stop}"
                )
                self.kept.ended, self.kept.total_steps = True, resume.step
        return self.kept.ended

    # --- the best checkpoint ---------------------------------------------------------------------

    def _choose(self, yardstick: Yardstick, resume: Resume) -> None:
        """Keep this checkpoint where it is better than the best before it; of equals the first."""
        kept, values = self.kept, dict(self._values(yardstick))
        if resume.step not in values or (kept.best and kept.best.step == resume.step):
            return
        if kept.best is not None and not values[resume.step] > values[kept.best.step]:
            return
        before, kept.best = kept.best, resume
        if before is not None:
            kept.superseded += before.saved

    def result(self, last: Checkpoint) -> Checkpoint:
        """The checkpoint that the stage leaves: its best where that is asked for."""
        kept, yardstick = self.kept, self.stage.keep
        if yardstick is None or kept.best is None:
            return last
        best = kept.best
        values = dict(self._values(yardstick))
        text = f"leaves the checkpoint of step {best.step} of {kept.total_steps}, the best of "
        text += f"{len(values)} by {yardstick}: {self._shown(yardstick, best.step)}"
        if best.step != last.step and last.step in values:
            also = " too" if values[best.step] == values[last.step] else ""
            text += f"; the last has {self._shown(yardstick, last.step)}{also}"
        if (start := self._start(yardstick)) is not None and not values[best.step] > start:
            text += f"; none is better than the start, {self._shown(yardstick, 0)}"
        if len(values) > 1:
            text += f". {yardstick} chose it, so it flatters it: judge by another eval"
        if text not in kept.notes:
            kept.notes.append(text)
        return Checkpoint(self.stage.model, best.state_uri, best.sampler_uri, best.step)

    # --- what was found --------------------------------------------------------------------------

    def _measured(self, yardstick: Yardstick) -> Iterator[tuple[int, Measured]]:
        planned = next(one for one in self.stage.evals if one.name == yardstick.eval)
        for found in (*self.kept.before, *self.kept.during):
            if found.fingerprint == planned.fingerprint:
                yield found.step or 0, found

    def _every(self, yardstick: Yardstick) -> Iterator[tuple[int, float]]:
        """The yardstick's values by step, 0 among them, negated where less is better."""
        for step, found in self._measured(yardstick):
            metric = yardstick.metric or found.main
            if metric is None or metric not in found.metrics:
                there = ", ".join(found.metrics)
                raise UsageError(
                    f"eval '{yardstick.eval}' found no '{metric}'; there is: {there}",
                    code="unknown-name",
                )
            better = found.higher_is_better.get(metric)
            if better is None:
                others = [name for name, way in found.higher_is_better.items() if way is not None]
                named = " or ".join(f"'{yardstick.eval}/{name}'" for name in others)
                raise UsageError(
                    f"checkpoints cannot be compared by {yardstick.eval}/{metric}",
                    why="it says of neither direction that it is the better one",
                    hint=f"have 'keep:' and 'stop:' name {named or 'another eval'}",
                    code="unknown-name",
                )
            value = found.metrics[metric].value
            # NaN is never better, and anything is better than it.
            yield step, (value if better else -value) if value == value else float("-inf")

    def _values(self, yardstick: Yardstick) -> Iterator[tuple[int, float]]:
        return ((step, value) for step, value in self._every(yardstick) if step)

    def _start(self, yardstick: Yardstick) -> float | None:
        return dict(self._every(yardstick)).get(0)

    def _gains(self, yardstick: Yardstick) -> Iterator[bool]:
        """For each eval during training: whether it found more than all before it, the one of the
        start included."""
        best = self._start(yardstick)
        for _, value in self._values(yardstick):
            yield best is None or value > best
            best = value if best is None else max(best, value)

    def _shown(self, yardstick: Yardstick, step: int) -> str:
        found = dict(self._measured(yardstick))[step]
        metric = yardstick.metric or found.main or ""
        return report.show(found.metrics[metric], metric in report.SHARES)
