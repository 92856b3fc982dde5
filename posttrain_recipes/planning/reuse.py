"""Which stages of a plan are reused from earlier runs, resumed, or run.

`ptl plan` tells what is decided here and why; the runner does it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from posttrain_recipes import store
from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning import depends
from posttrain_recipes.planning.plans import BASE, Plan, PlannedStage
from posttrain_recipes.plugin import Checkpoint, DataMethod, Resume
from posttrain_recipes.registry import suggest
from posttrain_recipes.store import RunRecord, StageRecord

Lost = Callable[[str], str | None]
"""Why a checkpoint cannot be used, in words that follow "its checkpoint"; None where it can be, or
where that is not known without asking the engine."""
_CANDIDATES = 20
"""Earlier tries of a stage that are compared with it to say what changed."""
_NAMED = 3
"""Stages that are named for one reason."""
_LONGEST = 40
"""Characters of a value in a reason."""


@dataclass(frozen=True)
class Scope:
    """Which stages of a plan are asked for, and whether those of earlier runs may be reused."""

    fresh: bool = False
    """Start from nothing, whatever earlier runs left."""
    first: str | None = None
    """Run this stage and those after it again, whatever earlier runs left of them."""
    last: str | None = None
    """Stop after this stage."""

    def check(self, plan: Plan) -> None:
        """Raise `UsageError` where a stage that is named is not in the plan."""
        names = [stage.name for stage in plan.stages]
        for option, name in (("--from", self.first), ("--until", self.last)):
            if name is not None and name not in names:
                raise UsageError(
                    f"{option} {name}: {plan.name} has no such stage",
                    hint=suggest(name, names),
                    code="unknown-name",
                )
        if self.first and self.last and names.index(self.last) < names.index(self.first):
            raise UsageError(f"--until {self.last} comes before --from {self.first}")

    @property
    def anew(self) -> bool:
        """Whether a new run is asked for."""
        return self.fresh or self.first is not None

    def stages(self, plan: Plan) -> Sequence[PlannedStage]:
        """The stages that are asked for."""
        names = [stage.name for stage in plan.stages]
        return plan.stages[: names.index(self.last) + 1] if self.last else plan.stages

    def left(self, plan: Plan, record: RunRecord) -> Sequence[PlannedStage]:
        """Of the stages that are asked for, those that a run has not done yet."""
        return [stage for stage in self.stages(plan) if not record.stage(stage.name).done]

    def reasons(self, plan: Plan) -> dict[str, str]:
        """For the stages that nothing is reused for: why."""
        names = [stage.name for stage in plan.stages]
        begin = 0 if self.fresh else names.index(self.first) if self.first else len(names)
        why = "--fresh asks for it" if self.fresh else f"--from {self.first} asks for it"
        return dict.fromkeys(names[begin:], why)


Action = Literal["reuse", "resume", "run", "skip"]


@dataclass(frozen=True)
class Decision:
    """Whether one stage is reused, resumed or run, and why."""

    action: Action
    why: str
    run: RunRecord | None = None
    """The run that left what is reused or gone on with, or that `why` compares with."""
    stage: StageRecord | None = None
    """What that run left of the stage."""
    done: int = 0
    """Steps, or batches of records, that are there already where it is gone on with."""
    evals: tuple[str, ...] = ()
    """What is measured of a stage that is reused: it has no result of these yet."""


@dataclass
class History:
    """The stages of earlier runs, the newest last."""

    stages: list[tuple[RunRecord, StageRecord]]
    lost: Lost
    runs_dir: Path
    """The directory that has a directory for each run."""

    @classmethod
    def of(cls, runs: Sequence[RunRecord], lost: Lost, runs_dir: Path) -> History:
        """The history that `runs`, oldest first, left."""
        return cls([(run, stage) for run in runs for stage in run.stages], lost, runs_dir)

    def __post_init__(self) -> None:
        self._finished: dict[str, list[tuple[RunRecord, StageRecord]]] = {}
        self._named: dict[str, list[tuple[RunRecord, StageRecord]]] = {}
        for run, stage in self.stages:
            self.add(run, stage)

    def add(self, run: RunRecord, stage: StageRecord) -> None:
        """One more stage of a run, which may have finished by now."""
        if stage.done:
            self._finished.setdefault(stage.fingerprint, []).append((run, stage))
        if stage.started:
            self._named.setdefault(stage.name, []).append((run, stage))

    def _unusable(self, saved: Checkpoint | Resume) -> str | None:
        """Why one of the checkpoints of what was saved cannot be used."""
        more = (*saved.samplers, *saved.beside.values()) if isinstance(saved, Resume) else ()
        found = (self.lost(uri) for uri in (saved.state_uri, saved.sampler_uri, *more) if uri)
        return next(filter(None, found), None)

    def _records_lost(self, stage: StageRecord) -> bool:
        """Whether records that the stage made are not there any more."""
        there = (self.runs_dir / stage.made_in / "provenance.json").is_file()
        return bool(stage.made_in) and not there

    def _batches(self, run: RunRecord, stage: PlannedStage) -> int:
        """How many batches of records a stage that makes data left in a run."""
        made = store.made_path(self.runs_dir / run.id, stage.name) / "batches"
        makes = isinstance(stage.method, DataMethod)
        return sum(1 for _ in made.glob("[0-9]*.jsonl")) if makes else 0

    def _made(self, run: RunRecord, stage: PlannedStage) -> bool:
        """Whether a stage that makes data has made all of it in a run that ended after that."""
        path = store.made_path(self.runs_dir / run.id, stage.name) / "provenance.json"
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        whole = isinstance(told, dict) and told.get("fingerprint") == stage.fingerprint
        return whole and isinstance(stage.method, DataMethod)

    def decide(self, stage: PlannedStage, current: RunRecord | None, recipe: str) -> Decision:
        """What becomes of `stage`.

        Args:
            current: the run that is gone on with, or None for a new one.
            recipe: the recipe's name: what it did before tells best what changed.
        """
        own = current.stage(stage.name) if current else None
        gone = ""
        if current and own:
            saved = own.checkpoint if own.done else own.resume
            if saved and (why := self._unusable(saved)):
                gone = f"its checkpoint at step {saved.step} of run {current.id} {why}"
            elif own.done and self._records_lost(own):
                gone = f"the records that it made in run {current.id} are gone"
            elif saved and own.done:
                return _reuse(f"finished in run {current.id}", stage, current, own)
            elif saved:
                why = f"from step {saved.step} of {own.total_steps} in run {current.id}"
                return Decision("resume", why, current, own, saved.step)
            elif own.status == "left_out":
                return Decision("skip", own.error or "its loop has ended")
            elif self._made(current, stage):
                why = f"its records are made in run {current.id}, and its evals are left"
                return Decision("resume", why, current, own, own.total_steps)
            elif batches := self._batches(current, stage):
                why = f"from batch {batches} of {own.total_steps} in run {current.id}"
                return Decision("resume", why, current, own, batches)
        if own and own.fresh:
            return Decision("run", gone or own.fresh)
        finished = self._finished.get(stage.fingerprint, [])[::-1]
        if stage.method is None:  # of the same weights: what has most of the results goes first
            asked = {planned.fingerprint for planned in stage.evals}
            finished.sort(key=lambda one: -len(asked & {m.fingerprint for m in one[1].before}))
        for run, earlier in finished:
            if earlier.checkpoint is None or earlier is own:
                continue
            if depends.stricter(earlier.inputs, stage.inputs):
                continue
            if self._records_lost(earlier):
                gone = gone or f"the records that it made in run {run.id} are gone"
                continue
            if not (why := self._unusable(earlier.checkpoint)):
                return _reuse(f"the same inputs as in run {run.id}", stage, run, earlier)
            gone = gone or f"the checkpoint of run {run.id} {why}"
        return Decision("run", gone) if gone else self.changed(stage, recipe)

    def _unfinished(self, stage: PlannedStage, run: RunRecord, earlier: StageRecord) -> str:
        """Why nothing is taken of an earlier try of which no input is known to differ."""
        if earlier.fingerprint != stage.fingerprint:
            return f"something that it depends on changed (against run {run.id})"
        if earlier.done:
            return f"finished in run {run.id}, but its checkpoint is not known"
        if earlier.resume:
            at = f"step {earlier.resume.step} of {earlier.total_steps}"
            return f"not finished in run {run.id}, which is of another plan and stopped at {at}"
        if batches := self._batches(run, stage):
            return (
                f"not finished in run {run.id}, which is of another plan and made {batches} batches"
            )
        return f"not finished in run {run.id}, which saved no checkpoint"

    def changed(self, stage: PlannedStage, recipe: str) -> Decision:
        """To run a stage, for what differs from the earlier try of it that differs least."""
        tried = [t for t in self._named.get(stage.name, []) if t[1].inputs]
        same_recipe = [t for t in tried if t[0].recipe == recipe]
        best: tuple[int, Decision] | None = None
        for run, earlier in reversed((same_recipe or tried)[-_CANDIDATES:]):
            found = list(differences(earlier.inputs, stage))
            if not found:
                return Decision("run", self._unfinished(stage, run, earlier), run)
            if best is None or len(found) < best[0]:
                shown = "; ".join(found[:3])
                more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
                why = f"{shown}{more} (against {_as_far(run, earlier)})"
                best = len(found), Decision("run", why, run)
        return best[1] if best else Decision("run", "first run")


def _as_far(run: RunRecord, earlier: StageRecord) -> str:
    """A run, and how far a stage had come in it where it was not finished."""
    if earlier.done or not earlier.resume:
        return f"run {run.id}"
    return f"run {run.id}, which stopped at step {earlier.resume.step} of {earlier.total_steps}"


def restarted(
    decided: Iterable[tuple[PlannedStage, Decision]], plan: Plan, scope: Scope
) -> Iterator[str]:
    """Why stages that this recipe ran before run from their beginning, a line for each reason."""
    asked = scope.reasons(plan)
    reasons: dict[str, list[str]] = {}
    for stage, decision in decided:
        own = decision.run is not None and decision.run.recipe == plan.name
        if decision.action == "run" and own and stage.name not in asked:
            reasons.setdefault(decision.why, []).append(stage.name)
    for why, names in reasons.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"from the beginning: {', '.join(names[:_NAMED])}{more}: {why}"


def differences(earlier: Mapping[str, Any], stage: PlannedStage) -> Iterator[str]:
    """Which of a stage's inputs have changed, in words."""
    inputs = stage.inputs
    if depends.other_scheme(earlier):
        yield "its fingerprint was made another way"
        return
    if earlier.get("start") != inputs["start"]:
        own = stage.start == BASE or stage.start.startswith("tinker://")
        yield f"starts from {stage.start}" if own else f"parent {stage.start} changed"
    elif earlier.get("model") != inputs["model"]:
        yield "the base model changed"
    for key in ("engine", "seed"):
        if (old := earlier.get(key)) != (new := inputs[key]):
            yield f"{key} {_show(_named(old, new))} -> {_show(_named(new, old))}"
    for key in ("lora", "renderer"):
        yield from _options(key, earlier.get(key, {}), inputs[key])
    yield from _plugin("method", earlier.get("method", {}), inputs["method"])
    yield from _data(earlier.get("dataset", {}), stage)
    before, after = earlier.get("reward", []), inputs["reward"]
    for index in range(max(len(before), len(after))):
        old = before[index] if index < len(before) else {}
        new = after[index] if index < len(after) else {}
        yield from _plugin("reward" if len(after) < 2 else f"reward.{index}", old, new)
    changed = [key for key in sorted({*earlier, *inputs}) if earlier.get(key) != inputs.get(key)]
    yield from dict.fromkeys(
        _yardstick(key, earlier, stage) or f"{key} changed" for key in changed if key not in _KNOWN
    )


def _named(engine: Any, other: Any) -> Any:
    """What results depend on of an engine, with float32, which has no name there."""
    return f"{engine} float32" if str(other).startswith(f"{engine} ") else engine


def _yardstick(key: str, earlier: Mapping[str, Any], stage: PlannedStage) -> str | None:
    """What is said where `keep` and `stop` are as they were, and what their eval measures is not
    (`ends.depends_on`)."""
    stop = stage.stop.yardstick if stage.stop else None
    yardstick = {"keep": stage.keep, "stop": stop}.get(key)
    before, after = ([*(of.get(key) or ())] for of in (earlier, stage.inputs))
    if yardstick is None or before[:1] + before[2:] != after[:1] + after[2:]:
        return None
    return f"what eval '{yardstick.eval}' measures changed"


_KNOWN = {
    "scheme",
    "start",
    "model",
    "engine",
    "seed",
    "lora",
    "renderer",
    "method",
    "dataset",
    "reward",
}


def _data(before: Mapping[str, Any], stage: PlannedStage) -> Iterator[str]:
    after = stage.inputs["dataset"]
    label = stage.data.label if stage.data else "the dataset"
    if not before or not after:
        if before or after:
            yield f"{label} is new" if after else "no dataset any more"
    elif before.get("use") != after["use"]:
        yield f"dataset {before.get('use')} -> {after['use']}"
    else:
        yield from _code("dataset", before, after)
        if before.get("digest") != after["digest"] or before.get("sources") != after["sources"]:
            yield f"{label} changed"
        if before.get("made") != after["made"]:
            yield f"the records that {', '.join(stage.data.made_by if stage.data else ())} made"
        yield from _options("dataset", before.get("config", {}), after["config"])


def _plugin(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    if before.get("use") != after.get("use"):
        yield f"{kind} {before.get('use', 'none')} -> {after.get('use', 'none')}"
        return
    yield from _code(kind, before, after)
    for option, model in after.get("models", {}).items():
        if before.get("models", {}).get(option) != model:
            yield f"the model behind {kind}.{option} changed"
    if before.get("content") != after.get("content"):
        yield f"what {kind} {after.get('use')} is made of changed"
    rest = ("use", "from", "code", "config", "models", "content")
    yield from _options(kind, before.get("config", {}), after.get("config", {}))
    old, new = ({k: v for k, v in m.items() if k not in rest} for m in (before, after))
    yield from _options(kind, old, new)


def _code(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """A plugin of another version, or edited within one."""
    if before.get("from") != after.get("from"):
        yield f"{kind} {after['use']} of {before.get('from')} -> {after['from']}"
    elif before.get("code") != after.get("code"):
        yield f"the code of {kind} {after['use']} changed ({after['from']}, edited in place)"


def _options(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for key in [*after, *(key for key in before if key not in after)]:
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _options(f"{prefix}.{key}", old, new)
        else:
            yield f"{prefix}.{key} {_show(old)} -> {_show(new)}"


def _show(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:g}"
    else:
        text = "none" if value is None else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _reuse(why: str, stage: PlannedStage, run: RunRecord, kept: StageRecord) -> Decision:
    return Decision("reuse", why, run, kept, evals=tuple(new_evals(stage, kept)))


def finished(
    decided: Iterable[tuple[PlannedStage, Decision]], asked: Sequence[PlannedStage], run: RunRecord
) -> bool:
    """Whether a run has all that is asked for: nothing is left to train, make or measure."""
    return all(
        decision.action == "skip"
        or (decision.action == "reuse" and decision.run is run and not _left(decision))
        for stage, decision in decided
        if stage in asked
    )


def _left(decision: Decision) -> bool:
    """Whether something of a stage that is reused is still to be measured, or written down."""
    ended = decision.stage is not None and decision.stage.status != "trained"
    return bool(decision.evals) or not ended


def new_evals(stage: PlannedStage, kept: StageRecord) -> list[str]:
    """Names of the stage's evals that `kept` has no result of."""
    done = [{m.fingerprint for m in measured} for measured in (kept.before, kept.after)]
    return [e.name for e in stage.evals if not all(e.fingerprint in found for found in done)]


def remade(plan: Plan, runs: Sequence[RunRecord]) -> str | None:
    """Why nothing is reused of what older versions trained of this recipe; None where nothing is
    lost, or a run since then says it all."""
    known = [stage.inputs for run in runs if run.recipe == plan.name for stage in run.stages]
    known = [inputs for inputs in known if inputs]
    return depends.scheme_words() if known and all(map(depends.other_scheme, known)) else None


def current_run(plan: Plan, scope: Scope, runs: Sequence[RunRecord]) -> RunRecord | None:
    """The run that is gone on with, of all of them, the oldest first; None for a new one."""
    if scope.anew:
        return None
    return store.latest([run for run in runs if not _left_rows_out(run, plan)], plan.fingerprint)


def _left_rows_out(run: RunRecord, plan: Plan) -> bool:
    """Whether a run of this plan may have left rows out that the plan would stop at."""
    if run.fingerprint != plan.fingerprint:
        return False
    stages = zip(run.stages, plan.stages, strict=True)
    return any(depends.stricter(one.inputs, stage.inputs) for one, stage in stages)


def decisions(
    plan: Plan, scope: Scope, runs: Sequence[RunRecord], home: Path
) -> Iterator[tuple[PlannedStage, Decision]]:
    """What a run would do with every stage, as far as that is known without an engine.

    Args:
        runs: all runs, oldest first.
        home: the directory that runs are kept in.
    """

    def lost(uri: str) -> str | None:
        return plan.engine.lost(uri, home / "engine")

    history = History.of(runs, lost, home / "runs")
    current = current_run(plan, scope, runs)
    reasons = scope.reasons(plan)
    asked = scope.stages(plan)
    for stage in plan.stages:
        if stage not in asked:
            yield stage, Decision("skip", f"--until {scope.last}")
        elif stage.name in reasons:
            yield stage, Decision("run", reasons[stage.name])
        else:
            yield stage, history.decide(stage, current, plan.name)


def take(stage: PlannedStage, kept: StageRecord, run: RunRecord, earlier: StageRecord) -> None:
    """Have `kept` say what an earlier run trained on the same inputs."""
    kept.status, kept.reused_from = "reused", earlier.reused_from or run.id
    for name in ("checkpoint", "start", "total_steps", "records", "tokens", "made_in"):
        setattr(kept, name, getattr(earlier, name))
    kept.made, kept.warnings = dict(earlier.made), list(earlier.warnings)
    kept.notes, kept.ended = list(earlier.notes), earlier.ended
    names = {planned.fingerprint: planned.name for planned in stage.evals}
    for results, found in (
        (kept.before, earlier.before),
        (kept.during, earlier.during),
        (kept.after, earlier.after),
    ):
        results += [replace(m, name=names[m.fingerprint]) for m in found if m.fingerprint in names]
        results += [m for m in found if m.fingerprint.startswith(store.OWN)]
