"""Bounds on what a run finds: `expect` fails a run, `until` ends a loop.

    held_out                      the eval's main metric, after the stage
    held_out/exact_match          one metric of the eval
    held_out change               after minus before
    held_out forgetting           max(a_1, ..., a_{k-1}) - a_k, where a_i is the value after the
                                  i-th of k stages that measure it; a_k - min(a_1, ..., a_{k-1})
                                  for a metric of which less is better (Chaudhry et al. 2018,
                                  arXiv 1801.10112, section 3.2)
    forgetting                    the largest of those over all evals measured at least twice

In a stage's `expect` these are the values of that stage. In the recipe's they are those of each
path through the stages, from the base model to a stage that no other starts from: the value after
the last stage, the change from before the first to after the last. Forgetting is always along such
a path, up to the stage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from posttrain_recipes.errors import Fault
from posttrain_recipes.language.expansion import expand
from posttrain_recipes.language.flat import Origin
from posttrain_recipes.language.nodes import Key, Node
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.planning.plans import PlannedEval, PlannedStage
from posttrain_recipes.registry import suggest
from posttrain_recipes.store import Measured, RunRecord, StageRecord

_BOUND = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(%?)\s*")
_SUBJECT = re.compile(r"([A-Za-z][\w-]*)(?:/([^\s]+))?(?: +(change|forgetting))?")
FORGETTING = "forgetting"


@dataclass(frozen=True)
class Bound:
    """`>= 0.8`, or `>= 80%`: kept by what is shown of a value, so that what a person reads is what
    was decided. 0.45 - 0.40 is shown as 5.0% and keeps `>= 5%`, and what is shown as 10.0% does not
    keep `> 10%`.
    """

    operator: str
    number: Decimal
    """As it was written: 80 in `>= 80%`."""
    percent: bool = False

    @classmethod
    def parse(cls, text: str) -> Bound | None:
        """The bound in `text`; None if it is not one."""
        match = _BOUND.fullmatch(text)
        try:
            return None if match is None else cls(match[1], Decimal(match[2]), bool(match[3]))
        except InvalidOperation:
            return None

    @property
    def value(self) -> float:
        """What a value is compared with: 0.8 for 80%."""
        return float(self.number) / (100 if self.percent else 1)

    def shown(self, value: float) -> str:
        """A value as it is told beside the bound: `46.1%` where that is one of percent, else four
        digits; more where the bound has more."""
        places = max(0, -int(self.number.as_tuple().exponent))
        if self.percent:
            return f"{100 * value:.{max(1, places)}f}%"
        return f"{value:.{places}f}" if places > 3 else f"{value:.4g}"

    def holds(self, value: float) -> bool:
        """Whether a value is within the bound, as it is shown; NaN never is."""
        if math.isnan(value):
            return False
        found = Decimal(self.shown(value).rstrip("%"))
        return {
            ">=": found >= self.number,
            "<=": found <= self.number,
            ">": found > self.number,
            "<": found < self.number,
        }[self.operator]


@dataclass(frozen=True)
class Subject:
    """What a bound is on: an eval's value, change or forgetting."""

    eval: str
    """Empty for `forgetting` alone."""
    metric: str | None = None
    kind: str = "value"
    """value, change or forgetting."""

    @classmethod
    def parse(cls, text: str) -> Subject | None:
        """The subject in `text`; None if it has another form."""
        if text.strip() == FORGETTING:
            return cls("", None, FORGETTING)
        match = _SUBJECT.fullmatch(text.strip())
        return cls(match[1], match[2], match[3] or "value") if match else None


@dataclass(frozen=True)
class Gate:
    """A bound of `expect`, and what the run found."""

    stage: str
    """The stage that it was found at."""
    subject: str
    bound: str
    value: float | None
    """None where the run has no such number."""
    passed: bool

    def __str__(self) -> str:
        bound = Bound.parse(self.bound)
        if self.value is None or bound is None:
            found = "was not measured"
        else:
            found = f"is {bound.shown(self.value)}"
        return f"{self.subject} after {self.stage} {found}, expected {self.bound}"


# --- values --------------------------------------------------------------------------------------


def _value(found: Sequence[Measured], subject: Subject) -> float | None:
    for measured in found:
        if measured.name == subject.eval:
            metric = subject.metric or measured.main
            if metric in measured.metrics:
                return measured.metrics[metric].value
    return None


def measure(subject: Subject, path: Sequence[StageRecord]) -> float | None:
    """The value of `subject` along `path`, stages each started from the one before; None if not
    measured."""
    if subject.kind == FORGETTING:
        return _forgetting(subject, path)
    after = [v for stage in path if (v := _value(stage.after, subject)) is not None]
    if subject.kind == "value" or not after:
        return after[-1] if after else None
    before = [v for stage in path if (v := _value(stage.before, subject)) is not None]
    return after[-1] - before[0] if before else None


def _forgetting(subject: Subject, path: Sequence[StageRecord]) -> float | None:
    values: dict[tuple[str, str], list[tuple[float, bool]]] = {}
    for stage in path:
        for measured in stage.after:
            metric = subject.metric or measured.main
            if metric in measured.metrics and subject.eval in ("", measured.name):
                better = measured.higher_is_better.get(metric, True)
                if better is None:
                    continue
                value = measured.metrics[metric].value
                values.setdefault((measured.fingerprint, metric), []).append((value, better))
    lost = []
    for found in values.values():
        signed = [value if better else -value for value, better in found]
        if len(signed) > 1 and not any(map(math.isnan, signed)):
            lost.append(max(signed[:-1]) - signed[-1])
    return max(lost) if lost else None


# --- what a recipe asks for ----------------------------------------------------------------------


def starts(stages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By stage of a flat recipe: what it starts from."""
    found: dict[str, str] = {}
    above = "base"
    for stage in stages:
        found[stage["name"]] = stage.get("init_from") or above
        above = stage["name"]
    return found


def starts_of(resolved: Mapping[str, Any]) -> dict[str, str]:
    """By stage of a resolved recipe, as it is stored: what it starts from."""
    return starts(expand(Recipe(Node.of(resolved), Path()))[0].data.get("stages", []))


def path_to(name: str, start: Mapping[str, str], record: RunRecord) -> list[StageRecord]:
    """The stages of a run that lead to one, which is the last; `start` is that of `starts_of`."""
    known = {stage.name: stage for stage in record.stages}
    path: list[StageRecord] = []
    while name in known:
        path.insert(0, known[name])
        name = start.get(name, "")
    return path


def faults(
    recipe: Recipe, origins: Sequence[Origin], stages: Sequence[PlannedStage]
) -> list[Fault]:
    """The faults of bounds whose subject no eval measures.

    Args:
        recipe: the flat recipe that `stages` were planned from.
    """
    every = [planned for stage in stages for planned in stage.evals]
    found = list(_unknown(recipe, ("expect",), recipe.root.child("expect"), every))
    written = recipe.source or recipe
    for stage, origin in zip(stages, origins, strict=True):
        key: Key = ("stages", stage.index - 1)
        node = recipe.root.child("stages")
        for part in key[1:]:
            node = node.child(part) if node else None
        asked = node.child("expect") if node else None
        found += _unknown(recipe, (*key, "expect"), asked, stage.evals)
        if origin.until:
            # The block around the stage: its place in the list, and the list.
            block = origin.key[:-2]
            twins = [s for s, o in zip(stages, origins, strict=True) if o.key[:-2] == block]
            inside = [planned for twin in twins for planned in twin.evals]
            until = Node.of(dict(origin.until))
            found += _unknown(written, (*block, "until"), until, inside)
    return found


def _unknown(
    recipe: Recipe, key: Key, asked: Node | None, evals: Sequence[PlannedEval]
) -> Iterator[Fault]:
    """Faults of the keys below `key`, which is a mapping of subjects to bounds."""
    names = list(dict.fromkeys(planned.name for planned in evals))
    for text in asked.value if asked and isinstance(asked.value, dict) else ():
        subject = Subject.parse(text)
        message = ""
        if subject is None:
            message = (
                "names no result; write EVAL, EVAL/METRIC, 'EVAL change', 'EVAL forgetting' "
                "or forgetting"
            )
        elif subject.eval and subject.eval not in names:
            message = f"no eval here is named '{subject.eval}'; {suggest(subject.eval, names)}"
        elif subject.metric:
            known = {m for e in evals if e.name == subject.eval for m in e.eval.measures()}
            if known and subject.metric not in known:
                near = suggest(subject.metric, sorted(known))
                message = f"eval '{subject.eval}' has no metric '{subject.metric}'; {near}"
        elif not names:
            message = "nothing is measured here; give it an 'eval:'"
        if message:
            yield recipe.fault((*key, text), message, of_key=True)


def check(record: RunRecord) -> list[Gate]:
    """Every bound that the recipe of a run sets, with what the run found."""
    flat = expand(Recipe(Node.of(record.resolved), Path()))[0].data
    stages = flat.get("stages", [])
    start = starts(stages)
    found = [
        gate
        for stage in stages
        for gate in _gates(stage.get("expect"), path_to(stage["name"], start, record), alone=True)
    ]
    leaves = [name for name in start if name not in start.values()]
    for name in leaves:
        found += _gates(flat.get("expect"), path_to(name, start, record), alone=False)
    return list(dict.fromkeys(found))


def _gates(
    expect: Mapping[str, str] | None, path: Sequence[StageRecord], *, alone: bool
) -> Iterator[Gate]:
    if not path or path[-1].status == "left_out":
        return
    for text, bound in (expect or {}).items():
        subject, limit = Subject.parse(text), Bound.parse(str(bound))
        if subject is None or limit is None:
            continue
        over = path if not alone or subject.kind == FORGETTING else path[-1:]
        if alone and subject.kind == FORGETTING and not path[-1].after:
            over = []
        value = measure(subject, over)
        stage = next(
            (s.name for s in reversed(over) if _value(s.after, subject) is not None), path[-1].name
        )
        yield Gate(stage, text, str(bound), value, value is not None and limit.holds(value))


def ended(origin: Origin, origins: Sequence[Origin], record: RunRecord) -> str | None:
    """Why a loop ends before this stage's round, in words: the `until` bounds that the round before
    met; None if it goes on."""
    if not origin.until:
        return None
    round_before = [
        record.stage(other.name)
        for other in origins
        if (other.loop, other.round) == (origin.loop, origin.round - 1)
        and (other.comparison, other.branch) == (origin.comparison, origin.branch)
        and set(other.labels) <= set(origin.labels)
    ]
    if any(stage.status == "left_out" for stage in round_before):
        return "the loop has ended"
    reasons = []
    for text, bound in origin.until:
        subject, limit = Subject.parse(text), Bound.parse(bound)
        value = measure(subject, round_before) if subject else None
        if limit is None or value is None or not limit.holds(value):
            return None
        reasons.append(f"{text} is {limit.shown(value)} ({bound})")
    return ", ".join(reasons)
