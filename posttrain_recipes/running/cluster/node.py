"""A stage on a node of a cluster: as on one machine, in a home that lasts as long as the task.

What later tries and the driver need of it is copied below the shared URL before it is told, so that
nothing is lost with the node.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from posttrain_recipes import private, registry, store
from posttrain_recipes.errors import PtlError, UsageError
from posttrain_recipes.planning import pricing
from posttrain_recipes.planning.plans import Limits, Plan, PlannedStage
from posttrain_recipes.planning.reuse import differences
from posttrain_recipes.plugin import Checkpoint, Engine
from posttrain_recipes.reporting.reproduction import plan_again
from posttrain_recipes.running import activity, death
from posttrain_recipes.running.cluster.relay import (
    Begun,
    Link,
    Outbox,
    RelayChild,
    StageSaved,
    relay_reporter,
)
from posttrain_recipes.running.cluster.shared import MARK, SharedHome
from posttrain_recipes.running.limits import Spending
from posttrain_recipes.running.serving import Serving, locations
from posttrain_recipes.running.stages import StageWork
from posttrain_recipes.store import RunDirectory, RunRecord, StageRecord
from posttrain_recipes.training.judges.backends import add_verdicts, copy_verdicts
from posttrain_recipes.waiting import EngineLostError, EngineWaiter, Interrupts

if TYPE_CHECKING:
    from posttrain_recipes.tracking.runs import RecipeRun, StageRun

CACHE = "cache"
"""Where a home keeps answers of judges."""
ENGINE = "engine"
"""Where a home keeps the checkpoints of an engine of this machine."""


@dataclass(frozen=True)
class Job:
    """One stage to be run elsewhere: what the driver knows that its recipe does not say."""

    record: RunRecord
    stage: str
    shared: str
    """The URL of what all nodes see of the run."""
    mark: str
    """What `SharedHome.check` has to find there."""
    home: str
    """The driver's home, for messages."""
    start: Checkpoint
    checkpoints: Mapping[str, Checkpoint]
    """Of the stages that it needs."""
    made: Mapping[str, str]
    """Where these left records, below the directory of runs."""
    reads: tuple[str, ...]
    """Files and directories of the home that it reads."""
    first: dict[str, list[list[int]]] = field(default_factory=dict)
    """See `StageWork.first`."""


@dataclass(frozen=True)
class Here:
    """The node that a job has come to."""

    name: str
    folder: Path
    """What relative paths of the recipe start from."""


@dataclass(frozen=True)
class StageEnd:
    """How a stage ended: well, where nothing is said."""

    what: str = ""
    why: str | None = None
    hint: str | None = None
    of_recipe: bool = False
    stopped: bool = False
    """Whether the driver asked for the end."""

    def check(self) -> None:
        """Raise what the stage failed with."""
        if self.what:
            raise (UsageError if self.of_recipe else PtlError)(
                self.what, why=self.why, hint=self.hint
            )


def own_files(run_id: str, stage: str) -> list[str]:
    """What a stage writes beside a run, below the home."""
    parts = [f"{part}/{stage}" for part in ("samples", "scores", "made", "artifacts", "watch")]
    parts += [f"curves/{stage}.jsonl", f"{ENGINE}-{stage}.log"]
    return [f"runs/{run_id}/{part}" for part in parts]


def verdicts_file(stage: str) -> str:
    """Where a node leaves what judges told it."""
    return f"verdicts/{stage}.sqlite"


def record_file(stage: str) -> str:
    """Where a node leaves what is known of the stage."""
    return f"records/{stage}.json"


def saved_uris(kept: StageRecord) -> list[str]:
    """The checkpoints that a stage goes on from, or leaves."""
    found: list[str | None] = []
    for saved in (kept.resume, kept.best):
        found += [saved.state_uri, saved.sampler_uri, *saved.samplers] if saved else []
        found += saved.beside.values() if saved and not kept.done else ()
    if kept.checkpoint is not None:
        found += [kept.checkpoint.state_uri, kept.checkpoint.sampler_uri]
    return [*dict.fromkeys(filter(None, found))]


def places(engine: Engine, uri: str, home: Path) -> list[str]:
    """The files of a checkpoint, below the home."""
    data = home / ENGINE
    return [str(path.relative_to(home)) for path in engine.files(uri, data)]


def run(job: Job, link: Link, here: Here) -> StageEnd:
    """Run a stage, or go on with it where an earlier try of it was lost."""
    interrupts = Interrupts()
    outbox = Outbox(link, interrupts.ask)
    with private.files(), tempfile.TemporaryDirectory(prefix="ptl-") as place:
        home = Path(place)
        shared = SharedHome(job.shared, home)
        end = StageEnd()
        try:
            _work(job, here, home, shared, outbox, interrupts)
        except KeyboardInterrupt:
            end = StageEnd(stopped=True)
        except PtlError as error:
            end = _failed(error, home, job)
        except Exception as error:
            import traceback

            end = StageEnd(
                f"stage '{job.stage}' failed on {here.name}: {type(error).__name__}: {error}",
                why=_elsewhere("".join(traceback.format_exception(error)).rstrip(), home, job),
            )
        try:
            if outbox.flush() and ours(shared, job.mark):
                shared.push(*own_files(job.record.id, job.stage))
        except PtlError as error:
            # Where the stage itself failed, that is what has to be told.
            end = end if end.what or end.stopped else _failed(error, home, job)
        finally:
            outbox.close()
    return end


def _failed(error: PtlError, home: Path, job: Job) -> StageEnd:
    return StageEnd(
        error.what.replace(str(home), job.home),
        _elsewhere(error.why, home, job),
        _elsewhere(error.hint, home, job),
        of_recipe=error.exit_code == 2,
    )


def ours(shared: SharedHome, mark: str) -> bool:
    """Whether what is shared is still this driver's: it may have been killed, and the next one have
    begun, before its nodes ended."""
    return shared.read(MARK) == mark.encode()


def _elsewhere(text: str | None, home: Path, job: Job) -> str | None:
    """A message of the node with the places where the driver has the same files."""
    return text and text.replace(str(home), job.home)


def _work(
    job: Job, here: Here, home: Path, shared: SharedHome, outbox: Outbox, interrupts: Interrupts
) -> None:
    shared.check(job.mark)
    record, kept = _known(job, home, shared)
    outbox.add(Begun(here.name, steps(kept)))
    plan, stage = _planned(job, here, record, kept)
    engine = plan.engine
    shared.pull(*job.reads, *own_files(record.id, stage.name))
    for uri in saved_uris(kept):
        shared.pull_checkpoint(places(engine, uri, home))
    shared.pull(verdicts_file(stage.name))
    add_verdicts(home / CACHE, home / verdicts_file(stage.name))
    reporter = relay_reporter(outbox, kept)
    directory = _Directory(home, record, kept, engine, shared, outbox, job.mark)
    log_path = directory.path / f"{ENGINE}-{stage.name}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    spending = Spending(plan, record, pricing.load(home), interrupts)
    with (
        spending.meter.installed(),
        engine.connect(locations(plan), home / ENGINE, log_path) as connection,
    ):
        wait = EngineWaiter(
            connection.alive,
            interrupts,
            lambda: death.explain(connection),
            connection.trouble,
            reporter.warning,
            activity.tick,
        )
        serving = Serving(plan, connection, wait, home / ENGINE)
        serving.checkpoints.update(job.checkpoints)
        made = {name: store.Store(home).runs_dir / place for name, place in job.made.items()}
        work = StageWork(plan, directory, serving, reporter, spending, made.__getitem__, job.first)
        tracked = cast("RecipeRun", _Tracked(RelayChild(outbox, kept.tracking_id or "")))
        try:
            work.run(stage, kept, job.start, tracked)
        except EngineLostError as error:  # this stage's own: the others have theirs
            raise PtlError(error.what, why=error.why, hint=error.hint, code=error.code) from error


def _known(job: Job, home: Path, shared: SharedHome) -> tuple[RunRecord, StageRecord]:
    """What is known of the run, and of the stage: by an earlier try of this job, if there was one
    that got so far."""
    record = replace(job.record, home=home / "runs", stages=list(job.record.stages))
    kept = record.stage(job.stage)
    told = told_of(shared, job.stage)
    if told is not None and steps(told) >= steps(kept):
        tracking = kept.tracking_id
        record.stages[record.stages.index(kept)] = kept = told
        kept.tracking_id = tracking
    return record, kept


def steps(kept: StageRecord) -> int:
    """How far a stage has come, by its last checkpoint. A node tells of one before it shares the
    record, and may die in between: the driver can know more than what is shared."""
    return kept.resume.step if kept.resume else 0


def told_of(shared: SharedHome, stage: str) -> StageRecord | None:
    """What the last node that ran a stage has left of it; None where none did."""
    text = shared.read(record_file(stage))
    if text is None:
        return None
    told = store.parse(json.loads(text)).stage(stage)
    # Of one that is done the driver missed the end: it is told once more.
    told.status = "killed" if told.done else told.status
    return told


def _planned(
    job: Job, here: Here, record: RunRecord, kept: StageRecord
) -> tuple[Plan, PlannedStage]:
    """The plan of the run, made anew of the files that are on this node.

    Raises:
        PtlError: they are not what the driver has.
    """
    hint = (
        "keep what a recipe reads in its folder, which is sent to every node, or where each node "
        "has the same; set there the environment variables that it names, which are not sent; and "
        "install the same versions of ptl and of plugins on all of them"
    )
    try:
        plan = plan_again(record, registry.load(), here.folder)
    except PtlError as error:
        raise PtlError(
            f"on {here.name} the recipe cannot be planned",
            why=str(error),
            hint=hint,
            code="cluster",
        ) from None
    stage = next(one for one in plan.stages if one.name == job.stage)
    if stage.fingerprint != kept.fingerprint:
        changed = "; ".join(differences(kept.inputs, stage)) or "something that it depends on"
        raise PtlError(
            f"on {here.name} stage '{stage.name}' would not be the same",
            why=changed,
            hint=hint,
            code="cluster",
        )
    # The driver keeps the run within its bounds, and says when to stop.
    return replace(plan, limits=Limits()), stage


class _Directory(RunDirectory):
    """The run as one node has it. To save is to share: checkpoints and files, then to tell the
    driver, and then to share the record, from which a later try goes on."""

    def __init__(
        self,
        home: Path,
        record: RunRecord,
        kept: StageRecord,
        engine: Engine,
        shared: SharedHome,
        outbox: Outbox,
        mark: str,
    ) -> None:
        super().__init__(home / "runs" / record.id, record)
        self._mark = mark
        self.home, self.kept = home, kept
        self._engine, self._shared, self._outbox = engine, shared, outbox
        self._there: dict[str, list[str]] = {}
        self._sharing = threading.Lock()

    def save(self) -> None:
        """Share what there is of the stage by now, and tell of it."""
        with self._sharing:
            if not self._outbox.flush() or not ours(self._shared, self._mark):
                return  # another node has the stage: what is shared is its own by now
            stage = self.kept.name
            wanted = {uri: places(self._engine, uri, self.home) for uri in saved_uris(self.kept)}
            for files in wanted.values():
                self._shared.push(*files)
            copy_verdicts(self.home / CACHE, self.home / verdicts_file(stage))
            self._shared.push(*own_files(self.record.id, stage), verdicts_file(stage))
            self._outbox.add(StageSaved(self.kept))
            # What the record has was told before, or a later try would leave it untold.
            if not self._outbox.flush():
                return
            store.write_atomic(self.home / record_file(stage), store.dump(self.record))
            self._shared.push(record_file(stage))
            for uri in self._there.keys() - wanted.keys():
                with suppress(PtlError):  # the driver deletes all of it in the end
                    self._shared.remove(self._there[uri][0])
            self._there = wanted


class _Tracked:
    """The recipe's run in MLflow, as far as a stage asks for it."""

    def __init__(self, child: RelayChild) -> None:
        self._child = child

    @contextmanager
    def stage(self, **_: Any) -> Iterator[StageRun]:
        """The stage's run, which the driver has opened."""
        yield cast("StageRun", self._child)
