"""Tells trackers what a run logs: to each in order, by a thread of its own.

Nothing here may hold training up or take it down. What a tracker raises is a warning, once for each
kind; what it has no time for is counted, and told at the end.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from posttrain_recipes.records import EvalResult, Message, Sample
from posttrain_recipes.shown import redact, redact_all
from posttrain_recipes.trackers import (
    CheckpointLogged,
    EvalLogged,
    NoteLogged,
    RunEnded,
    RunStarted,
    SamplesLogged,
    StageEnded,
    StageStarted,
    StepMetrics,
    Tracker,
)
from posttrain_recipes.tracking.mlruns import flatten

END_SECONDS = 60.0
"""How long the end of a run waits for its trackers, all of them together."""
KILLED_SECONDS = 10.0
"""How long one waits that somebody stopped, who is waiting too."""
SOON = 2.0
"""Seconds that it waits without a word."""
MOST_WAITING = 10_000
"""What may wait for one tracker: beyond it steps and samples are left out, and counted."""
_MANY = ("log_metrics", "log_samples")

Ended = Literal["finished", "failed", "killed"]


class Delivery:
    """One tracker with what waits for it."""

    def __init__(
        self, label: str, tracker: Tracker, folder: Path, warn: Callable[[str], None]
    ) -> None:
        self.label = label
        """What messages call it, and its folder: its name, numbered where another one has it."""
        self.folder = folder
        self._tracker, self._warn = tracker, warn
        self._waiting: deque[tuple[str, Any]] = deque()
        self._changed = threading.Condition()
        self._closed = self._refused = False
        self._told: set[tuple[str, str]] = set()
        self._failed: Counter[str] = Counter()
        self._left_out = 0
        self._thread = threading.Thread(target=self._deliver, name=f"tracker {label}", daemon=True)
        self._thread.start()

    def put(self, what: str, event: Any) -> None:
        """Have the method `what` called with `event`, when its turn comes."""
        with self._changed:
            if self._refused or self._closed:
                return
            if what in _MANY and len(self._waiting) >= MOST_WAITING:
                self._left_out += 1
                return
            self._waiting.append((what, event))
            self._changed.notify()

    def _deliver(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
                what, event = self._waiting[0]
            try:
                getattr(self._tracker, what)(event)
            except BaseException as error:  # a stranger's may raise anything, SystemExit too
                self._report(what, error)
            with self._changed:
                # It is gone only now: what is under way has not arrived.
                self._waiting.popleft()
                if self._refused:
                    self._waiting.clear()

    def refuse(self, error: OSError) -> None:
        """It has no folder to begin in."""
        self._report("run_started", error)

    def _report(self, what: str, error: BaseException) -> None:
        begun = what != "run_started"
        self._failed[what] += 1
        kind = (what, type(error).__name__)
        if kind in self._told:
            return
        self._told.add(kind)
        reason = next(iter(str(error).strip().splitlines()), "")
        reason = f"{kind[1]}: {reason[:600]}" if reason else kind[1]
        text = f"tracker '{self.label}' failed in {what}: {reason}"
        if not begun:
            self._refused = True
            text += "; nothing more is told to it, and the run goes on"
        self._warn(redact(text))

    def close(self, until: float, say: Callable[[str], None]) -> None:
        """Wait for it up to a time of `time.monotonic()`, and say what did not arrive."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        left = max(0.0, until - time.monotonic())
        self._thread.join(min(SOON, left))
        if self._thread.is_alive() and left > SOON:
            say(f"waiting for tracker '{self.label}', {left:.0f} s at most")
            self._thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            lost, busy = len(self._waiting), self._thread.is_alive()
            at = self._waiting[0][0] if lost else ""
        parts = [f"{sum(self._failed.values())} calls failed"] if self._failed else []
        parts += [f"{self._left_out} were left out, as too much waited"] if self._left_out else []
        if busy:
            parts += [f"{lost} were not delivered, as it is busy in {at}; the run does not wait"]
        # One failure was told in full already.
        if len(parts) > 1 or busy or self._left_out or sum(self._failed.values()) > 1:
            told = "; ".join(parts)
            self._warn(f"tracker '{self.label}' has not all of the run: {told}. MLflow has it")


class ToldStage:
    """A stage as trackers are told of it; its methods are those of a stage's run in MLflow."""

    def __init__(self, tell: Callable[[str, Any], None], stage: str) -> None:
        self._tell, self.stage = tell, stage

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of a step."""
        values = {name: float(value) for name, value in metrics.items()}
        self._tell("log_metrics", StepMetrics(stage=self.stage, step=step, values=values))

    def log_eval(
        self, name: str, when: str, result: EvalResult, step: int, **ties: str | None
    ) -> None:
        """What an eval found `before`, `during` or `after`; `ties` are for MLflow."""
        notes = tuple(map(redact, result.notes))
        found = EvalLogged(
            stage=self.stage,
            name=name,
            when=_when(when),
            step=step,
            metrics=dict(result.metrics),
            notes=notes,
        )
        self._tell("log_eval", found)

    def log_during(self, name: str, result: EvalResult, step: int) -> None:
        """What an eval found in the middle of the stage."""
        self.log_eval(name, "during", result, step)

    def log_samples(self, name: str, when: str, samples: Sequence[Sample], step: int) -> None:
        """Prompts and replies of an eval."""
        self._samples(name, _when(when), samples, step)

    def show_samples(self, name: str, samples: Sequence[Sample], step: int) -> None:
        """What the policy did at a step."""
        self._samples(name, "training", samples, step)

    def _samples(self, name: str, when: Any, samples: Sequence[Sample], step: int) -> None:
        if not samples:
            return
        shown = tuple(map(_without_secrets, samples))
        told = SamplesLogged(stage=self.stage, name=name, when=when, step=step, samples=shown)
        self._tell("log_samples", told)

    def log_checkpoint(self, uri: str, sampler_uri: str | None, step: int) -> None:
        """A checkpoint."""
        saved = CheckpointLogged(stage=self.stage, uri=uri, sampler_uri=sampler_uri, step=step)
        self._tell("log_checkpoint", saved)

    def warn(self, text: str) -> None:
        """A warning."""
        self._tell("log_note", NoteLogged(stage=self.stage, text=redact(text), warning=True))

    def note(self, text: str) -> None:
        """A note."""
        self._tell("log_note", NoteLogged(stage=self.stage, text=redact(text)))

    def ended(self, status: Ended) -> None:
        """The stage ends."""
        self._tell("stage_ended", StageEnded(stage=self.stage, status=status))


class _Untold(ToldStage):
    """Of a run without trackers: nothing is made ready for nobody."""

    def __init__(self) -> None:
        super().__init__(lambda what, event: None, "")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Nobody is told."""

    def _samples(self, name: str, when: Any, samples: Sequence[Sample], step: int) -> None:
        """Nobody is told."""


class Deliveries:
    """What the trackers of a run are told. A context: at its end they are waited for.

    Args:
        folder: where each has a folder of its own.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker] = (),
        folder: Path = Path(),
        warn: Callable[[str], None] = lambda text: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._say = say
        self.report = ""
        """The run's report as Markdown, once there is one."""
        self._each: list[Delivery] = []
        self._ended: Ended = "killed"
        names: Counter[str] = Counter()
        for tracker in trackers:
            names[tracker.name] += 1
            number = names[tracker.name]
            label = tracker.name if number == 1 else f"{tracker.name}-{number}"
            self._each.append(Delivery(label, tracker, folder / label, warn))

    def __bool__(self) -> bool:
        return bool(self._each)

    def __enter__(self) -> Deliveries:
        return self

    def __exit__(self, *_: object) -> None:
        seconds = KILLED_SECONDS if self._ended == "killed" else END_SECONDS
        until = time.monotonic() + seconds
        for one in self._each:
            one.close(until, self._say)

    def _tell(self, what: str, event: Any) -> None:
        for one in self._each:
            one.put(what, event)

    def run_started(
        self,
        *,
        run_id: str,
        recipe: str,
        resolved_yaml: str,
        description: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
    ) -> None:
        """The run begins, or goes on where a tracker's folder is there already."""
        for one in self._each:
            resumed = one.folder.is_dir()
            try:
                one.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                one.refuse(error)
                continue
            started = RunStarted(
                run_id=run_id,
                recipe=recipe,
                folder=one.folder,
                resolved_yaml=redact(resolved_yaml),
                description=redact(description),
                params=_params(params),
                tags={name: str(value) for name, value in _params(tags).items()},
                resumed=resumed,
            )
            one.put("run_started", started)

    def stage(self, name: str, index: int, params: Mapping[str, Any]) -> ToldStage:
        """A stage begins; what is told of it."""
        if not self._each:
            return _Untold()
        started = StageStarted(stage=name, index=index, params=_params(params))
        self._tell("stage_started", started)
        return ToldStage(self._tell, name)

    def run_ended(self, status: Ended, error: BaseException | None = None) -> None:
        """This try of the run ends."""
        self._ended = status
        why = redact(f"{type(error).__name__}: {error}") if error is not None else ""
        self._tell("run_ended", RunEnded(status=status, error=why, report=redact(self.report)))


def ended(status: str) -> Ended:
    """MLflow's word for an end as trackers are told it."""
    known: dict[str, Ended] = {"FINISHED": "finished", "KILLED": "killed"}
    return known.get(status, "failed")


def _when(when: str) -> Literal["before", "during", "after"]:
    """`step-40` is during."""
    return "before" if when == "before" else "after" if when == "after" else "during"


def _params(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as MLflow gets them, flat and without secrets; but numbers stay numbers."""
    return {
        key: value
        if isinstance(value, bool | int | float)
        else redact(value if isinstance(value, str) else json.dumps(value, default=str))
        for key, value in flatten(values)
    }


def _without_secrets(sample: Sample) -> Sample:
    def clean(message: Message) -> Message:
        return replace(
            message, content=redact(message.content), reasoning=redact(message.reasoning)
        )

    return replace(
        sample,
        prompt=tuple(map(clean, sample.prompt)),
        completion=redact(sample.completion),
        answer=None if sample.answer is None else redact(sample.answer),
        metadata=redact_all(dict(sample.metadata)),
        raw=redact(sample.raw),
    )
