"""What a tracker hears of a run, and its base class. `plugin` has all of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posttrain_recipes.base import Plugin
from posttrain_recipes.records import Estimate, Sample


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """A run begins, or goes on after it was interrupted."""

    run_id: str
    """Its name, as `sft_then_dpo-3`: the same one when it goes on."""
    recipe: str
    """The recipe's name."""
    folder: Path
    """A folder of the run's directory that is this tracker's own; it is there, and kept."""
    resolved_yaml: str = ""
    """The resolved recipe; `${env:NAME}` stands in it as written."""
    description: str = ""
    """The recipe's `description:`."""
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What the run is called by: numbers and texts, such as `model` and `seed`."""
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    resumed: bool = False
    """Whether this tracker heard of the run before, in an earlier try."""


@dataclass(frozen=True, kw_only=True)
class StageStarted:
    """A stage begins, or goes on; of one that was done before, what is known is told again."""

    stage: str
    """The stage's name."""
    index: int
    """Its place in the recipe, from 1."""
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Its options: numbers and texts; nested ones have dotted names."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Metrics of an optimizer step."""

    stage: str
    """The stage's name."""
    step: int
    """Counted from 1, in each stage."""
    values: Mapping[str, float]
    """By name, as `train/loss`; one that diverged is NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class EvalLogged:
    """What an eval found, with its 95% intervals."""

    stage: str
    """The stage's name."""
    name: str
    """The eval's, as the recipe has it."""
    when: Literal["before", "during", "after"]
    """Of the stage's training."""
    step: int
    """0 before; the step of the checkpoint during; the number of steps after."""
    metrics: Mapping[str, Estimate]
    """By name, the main one first."""
    notes: Sequence[str] = ()
    """What has to be known to read the numbers."""


@dataclass(frozen=True, kw_only=True)
class SamplesLogged:
    """Prompts and replies for people to read."""

    stage: str
    """The stage's name."""
    name: str
    """The eval that they are of; of `training`, what the method calls them."""
    when: Literal["before", "during", "after", "training"]
    """Which eval, or rollouts that were trained on."""
    step: int
    """As of `EvalLogged`, and of `training` the optimizer step."""
    samples: Sequence[Sample]
    """All of them, which may be thousands."""


@dataclass(frozen=True, kw_only=True)
class CheckpointLogged:
    """A checkpoint that a stage leaves."""

    stage: str
    """The stage's name."""
    uri: str
    """Restores training."""
    sampler_uri: str | None
    """Is sampled from."""
    step: int
    """Optimizer steps of the stage that are in it."""


@dataclass(frozen=True, kw_only=True)
class NoteLogged:
    """A sentence that whoever looks at a stage has to know."""

    stage: str
    """The stage's name."""
    text: str
    """One or more sentences."""
    warning: bool = False
    """Whether it is one."""


@dataclass(frozen=True, kw_only=True)
class StageEnded:
    """A stage ends."""

    stage: str
    """The stage's name."""
    status: Literal["finished", "failed", "killed"]
    """`killed`: Ctrl-C or SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """This try of a run ends; after `failed` and `killed` it may go on."""

    status: Literal["finished", "failed", "killed"]
    """`finished`: it did all that was asked for; `failed`: a stage or its bounds; `killed`: Ctrl-C
    or SIGTERM. Of a process that is gone without a word nothing is told."""
    error: str = ""
    """Why it did not finish."""
    report: str = ""
    """Its report as Markdown, where there is one: of a run that did all that was asked for."""


class Tracker(Plugin):
    """Hears what a run logs, beside MLflow, and keeps it elsewhere.

    It is called in order, by one thread of its own: it may be slow, and holds up no training. At
    the end of a run it is waited for, a minute at most. What it raises is a warning, once for each
    kind, and fails no run. Where `run_started` raises, nothing more is told.

    Nothing may be told for the first time only. Where a run was interrupted and goes on, the same
    stages, steps, evals and checkpoints may be told again, from the first, before what is new: keep
    what you have, or replace it, by stage, name and step. Steps up to the last checkpoint are the
    same ones; those after it are done again, and may end in other last digits.

    With `--jobs` several stages are under way at a time: what belongs to one names it.
    """

    def check(self) -> None:
        """Raise `UsageError` where it is known not to work, as a key that is not set.

        Called before anything is spent, by the thread that starts the run. Cheap, and offline.
        """
        return

    @abstractmethod
    def run_started(self, run: RunStarted) -> None:
        """A run begins or goes on: told once, first."""

    def stage_started(self, stage: StageStarted) -> None:
        """A stage begins or goes on."""
        return

    def log_metrics(self, found: StepMetrics) -> None:
        """Metrics of a step."""
        return

    def log_eval(self, found: EvalLogged) -> None:
        """An eval's result."""
        return

    def log_samples(self, shown: SamplesLogged) -> None:
        """Prompts and replies."""
        return

    def log_checkpoint(self, saved: CheckpointLogged) -> None:
        """A checkpoint."""
        return

    def log_note(self, note: NoteLogged) -> None:
        """A note or a warning; the same one may be told again."""
        return

    def stage_ended(self, stage: StageEnded) -> None:
        """A stage ends; it may begin again where it failed, or where evals were missing."""
        return

    def run_ended(self, run: RunEnded) -> None:
        """This try of the run ends: told once, last. Close what is open."""
        return
