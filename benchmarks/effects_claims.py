"""What a recipe claims of held-out data, and what its runs found about that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain_recipes.planning import gates
from posttrain_recipes.planning.gates import Bound, Subject
from posttrain_recipes.reporting import report
from posttrain_recipes.store import Measured, RunRecord, StageRecord

NEW_FORMS = ("new_forms", "new_requests")
"""What the names of evals end with that ask in forms of no training file."""


@dataclass(frozen=True)
class Effect:
    """One claim of a recipe, with what each seed found."""

    stage: str
    """The last stage that it was measured after, as the recipe writes it."""
    subject: str
    bound: str
    metric: str
    before: list[float]
    after: list[float]

    @property
    def measured(self) -> str:
        """The eval's name, and that of the metric where the claim names one."""
        subject = Subject.parse(self.subject)
        if subject is None:
            return self.subject
        return " ".join(filter(None, (subject.eval, subject.metric)))

    @property
    def change(self) -> bool:
        """Whether the bound is on after minus before, and not on the value after."""
        subject = Subject.parse(self.subject)
        return subject is not None and subject.kind == "change"

    @property
    def share(self) -> bool:
        """Whether it is a share, shown in percent."""
        return self.metric in report.SHARES

    @property
    def spread(self) -> float:
        """Largest minus smallest value after training."""
        return max(self.after) - min(self.after)

    @property
    def sign(self) -> int:
        """1 where the claim is of more, -1 where it is of less."""
        return 1 if self.bound.strip().startswith(">") else -1

    @property
    def limits_loss(self) -> bool:
        """Whether it is a limit on what may be lost (`change > -25%`): nothing has to move."""
        bound = Bound.parse(self.bound)
        return self.change and bound is not None and self.sign * bound.value < 0

    @property
    def kept(self) -> bool:
        """Whether every seed keeps the bound."""
        bound = Bound.parse(self.bound)
        if bound is None or Subject.parse(self.subject) is None or not self.after:
            return False
        changes = [a - b for a, b in zip(self.after, self.before, strict=True)]
        return all(map(bound.holds, changes if self.change else self.after))

    @property
    def holds(self) -> bool:
        """Every seed keeps the bound and, unless that limits a loss, moves beyond the spread."""
        if self.limits_loss or not self.kept:
            return self.kept
        moved = min(self.sign * (a - b) for a, b in zip(self.after, self.before, strict=True))
        return moved > self.spread


@dataclass(frozen=True)
class Side:
    """What an eval found before or after a stage."""

    stage: StageRecord
    measured: Measured
    when: str
    """before or after."""


@dataclass(frozen=True)
class Finding:
    """What one way through a run's stages found about a claim."""

    source: str
    """The last stage, as the recipe writes it."""
    subject: str
    bound: str
    metric: str
    before: Side
    after: Side

    @property
    def values(self) -> tuple[float, float]:
        """Before and after."""
        first, last = (side.measured.metrics[self.metric] for side in (self.before, self.after))
        return first.value, last.value


Wanted = Callable[[Mapping[str, Any]], Iterator[tuple[str | None, str, str]]]


def claims(resolved: Mapping[str, Any]) -> Iterator[tuple[str | None, str, str]]:
    """What a recipe expects: the stage (None: of each way through it), subject and bound."""
    for subject, bound in (resolved.get("expect") or {}).items():
        yield None, subject, str(bound)
    for stage in stages_of(resolved):
        for subject, bound in (stage.get("expect") or {}).items():
            yield stage.get("name"), subject, str(bound)


def new_forms(resolved: Mapping[str, Any]) -> Iterator[tuple[str | None, str, str]]:
    """What a recipe measures in forms that no training file has, and claims nothing of."""
    for stage in stages_of(resolved):
        for item in stage.get("eval") or []:
            name = item if isinstance(item, str) else str(item.get("name", ""))
            if name.endswith(NEW_FORMS):
                yield stage.get("name"), name, ""
                yield stage.get("name"), f"{name}/margin", ""


def stages_of(holder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All stages of a recipe, those of loops and of the branches of comparisons too."""
    for stage in [*holder.get("stages", []), *holder.get("compare", [])]:
        yield stage
        yield from stages_of(stage)


def effects(record: RunRecord, written: Mapping[str, Any], wanted: Wanted = claims) -> list[Effect]:
    """What a run over seeds found about each claim of the recipe, as it is written.

    Args:
        wanted: what is looked for in the recipe: its claims, or `new_forms`.
    """
    found: dict[tuple[str, str, str], Effect] = {}
    for one in findings(record, written, wanted):
        effect = found.setdefault(
            (one.source, one.subject, one.bound),
            Effect(one.source, one.subject, one.bound, one.metric, [], []),
        )
        before, after = one.values
        effect.before.append(before)
        effect.after.append(after)
    return list(found.values())


def findings(
    record: RunRecord, written: Mapping[str, Any], wanted: Wanted = claims
) -> Iterator[Finding]:
    """What each way through the stages of a run found about each claim.

    Forgetting is no change of one metric and is left to the recipe's own bound.
    """
    start = gates.starts_of(record.resolved)
    for name in start:
        path = gates.path_to(name, start, record)
        leaf = name not in start.values()
        source = name.partition("@")[0]
        for stage, text, bound in wanted(written):
            subject = Subject.parse(text)
            if subject is None or subject.kind == gates.FORGETTING:
                continue
            if (source != stage) if stage is not None else not leaf:
                continue
            sides = _before_and_after(subject, path if stage is None else path[-1:])
            if sides is not None:
                before, after, metric = sides
                yield Finding(source, text, bound, metric, before, after)


def _before_and_after(
    subject: Subject, path: Sequence[StageRecord]
) -> tuple[Side, Side, str] | None:
    """What is measured first and last, and the metric's name."""
    first: Side | None = None
    last: Side | None = None
    name = ""
    for stage in path:
        for side in [Side(stage, m, "before") for m in stage.before] + [
            Side(stage, m, "after") for m in stage.after
        ]:
            if side.measured.name != subject.eval:
                continue
            metric = subject.metric or side.measured.main or ""
            if side.measured.metrics.get(metric) is None:
                continue
            first, name = first or side, metric
            if side.when == "after":
                last = side
    return None if first is None or last is None else (first, last, name)
