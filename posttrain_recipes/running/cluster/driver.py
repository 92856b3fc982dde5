"""The driver of a run whose stages are tasks of a cluster: it alone writes to home and MLflow."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes import store
from posttrain_recipes.errors import PtlError
from posttrain_recipes.options import ModelRef, references
from posttrain_recipes.planning.plans import Plan, PlannedStage
from posttrain_recipes.plugin import Checkpoint
from posttrain_recipes.running.cluster import node
from posttrain_recipes.running.cluster.node import ENGINE, Job, StageEnd
from posttrain_recipes.running.cluster.ray_tasks import Cluster, StageTask, Tasks, connected
from posttrain_recipes.running.cluster.relay import (
    Begun,
    Call,
    Event,
    StageSaved,
    Used,
    become,
    make,
)
from posttrain_recipes.running.cluster.shared import MARK, SharedHome
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.running.limits import Spending
from posttrain_recipes.running.serving import Serving
from posttrain_recipes.running.tracked import log_kept, tracked_stage
from posttrain_recipes.shown import redact
from posttrain_recipes.store import RunDirectory, RunRecord, StageRecord
from posttrain_recipes.training.judges.backends import add_verdicts, copy_verdicts
from posttrain_recipes.waiting import Interrupts

if TYPE_CHECKING:
    from posttrain_recipes.tracking.runs import RecipeRun, StageRun

PLACE = "shared"
"""The file of a run's directory that says where its nodes share, until all of it is done."""
LOOK_TICKS = 40
"""Between two looks, ten seconds, at whether any node has what a stage wants."""


@dataclass
class ClusterStages:
    """Runs each stage as a task, and takes in what it leaves. Stands in for a `StageWork`."""

    plan: Plan
    directory: RunDirectory
    serving: Serving
    reporter: Reporter
    interrupts: Interrupts
    spending: Spending
    shared: SharedHome
    tasks: Tasks
    made: Callable[[str], Path]
    """Where the records that a stage made lie."""
    first: dict[str, list[list[int]]] = field(default_factory=dict)
    """See `StageWork.first`."""

    def __post_init__(self) -> None:
        self.home = self.shared.home
        self._told: set[str] = set()
        self._queued: set[str] = set()
        self._mark = secrets.token_hex(16)
        self.shared.mark(self._mark)

    @property
    def most(self) -> int:
        """How many stages nodes may run at the same time, by now: nodes come and go."""
        least = min(stage.resources.cpus for stage in self.plan.stages)
        return max(1, min(len(self.plan.stages), int(self.tasks.cpus / least)))

    def run(
        self, stage: PlannedStage, kept: StageRecord, start: Checkpoint, tracked: RecipeRun
    ) -> None:
        """Have a node evaluate, train and evaluate again, without repeating what there is."""
        stage.check_held()
        kept.start = start
        with tracked_stage(stage, kept, tracked) as child:
            self.directory.save()
            task = self.tasks.submit(self._job(stage, kept, start), stage.resources)
            try:
                end = self._follow(task, stage, kept, child)
            except Exception as error:
                # Nobody listens any more: a node that goes on would hold what others wait for.
                with contextlib.suppress(PtlError):
                    task.stop(f"the driver cannot go on with it: {error}")
                raise
            end.check()

    def _job(self, stage: PlannedStage, kept: StageRecord, start: Checkpoint) -> Job:
        """Share what the stage needs, and say what it is to do."""
        record, home = self.directory.record, self.home
        needed = {name: self.serving.checkpoints[name] for name in stage.needs}
        weights = [start, *needed.values()]
        uris = [uri for one in weights for uri in (one.state_uri, one.sampler_uri) if uri]
        uris += [uri for uri in _named(stage) if uri.startswith("tinker://")]
        uris += node.saved_uris(kept)
        reads = [place for uri in uris for place in node.places(self.plan.engine, uri, home)]
        made = {}
        for name in sorted(stage.needs):
            there = record.stage(name)
            reads += [f"runs/{record.id}/{part}/{name}" for part in ("samples", "scores")]
            if there.reused_from:
                earlier = f"runs/{there.reused_from}"
                reads += [f"{earlier}/{part}" for part in ("run.json", "samples", "scores")]
            if there.made_in or (home / "runs" / record.id / "made" / name).is_dir():
                made[name] = str(self.made(name).relative_to(home / "runs"))
                reads.append(f"runs/{made[name]}")
        verdicts = node.verdicts_file(stage.name)
        copy_verdicts(home / node.CACHE, home / verdicts)
        self.shared.push(*reads, *node.own_files(record.id, stage.name), verdicts)
        first = {stage.model: looked} if (looked := self.first.pop(stage.model, None)) else {}
        return Job(
            record=record,
            stage=stage.name,
            shared=self.shared.url,
            mark=self._mark,
            home=str(home),
            start=start,
            checkpoints=needed,
            made=made,
            reads=tuple(dict.fromkeys(reads)),
            first=first,
        )

    def _follow(
        self, task: StageTask, stage: PlannedStage, kept: StageRecord, child: StageRun
    ) -> StageEnd:
        """Take in what a task tells until it ends."""
        asked: KeyboardInterrupt | None = None
        outcome = None
        for tick in itertools.count():
            if tick % LOOK_TICKS == 0:
                self._say_waiting(stage, queued=tick > 0 and not task.begun)
            try:
                self.interrupts.check()
            except KeyboardInterrupt as error:
                if asked is not None:
                    task.kill()
                    raise
                asked = error
                task.stop(str(error) or "it was interrupted")
                if not task.begun:
                    break
            try:
                outcome = task.outcome()
            finally:
                for event in task.events():
                    self._take(event, task, stage, kept, child)
            if outcome is not None:
                break
        if asked is not None:
            raise asked
        assert outcome is not None
        return outcome

    def _say_waiting(self, stage: PlannedStage, *, queued: bool) -> None:
        """Say once that no node has what a stage wants, as long as that is so, and once that it is
        queued behind others."""
        self.spending.jobs = self.most
        lacking = self.tasks.lacking(stage.resources)
        if queued and not lacking and stage.name not in self._queued:
            self._queued.add(stage.name)
            self.reporter.doing(f"stage '{stage.name}' waits for a node that is free")
        if lacking and lacking not in self._told:
            self.reporter.warning(
                f"no node has {lacking}: stage '{stage.name}' waits for one; Ctrl-C ends the run"
            )
        self._told = self._told | {lacking} if lacking else set()

    def _take(
        self, event: Event, task: StageTask, stage: PlannedStage, kept: StageRecord, child: StageRun
    ) -> None:
        if isinstance(event, Begun):
            if task.begun:
                self.reporter.warning(
                    f"stage '{stage.name}': its node was lost; {event.node} goes on with it from "
                    f"step {event.step}"
                )
            else:
                self.reporter.note(f"stage '{stage.name}' runs on {event.node}")
            task.begun = True
            if event.step:
                # What an earlier node had no time to tell.
                self.shared.pull(*node.own_files(self.directory.record.id, stage.name))
                log_kept(self.directory.path, stage, kept, child)
        elif isinstance(event, Call):
            make(event, self.reporter if event.of == "reporter" else child, stage, kept)
        elif isinstance(event, StageSaved):
            take_in(event.record, kept, self.plan, self.shared, self.directory.record)
            self.directory.save()
        elif isinstance(event, Used):
            kept.training, kept.evaluation, kept.lost = (
                event.training,
                event.evaluation,
                event.lost,
            )
            self.spending.step(stage, kept)


def _named(stage: PlannedStage) -> list[str]:
    """Checkpoints that options of a stage name."""
    plugins: list[Any] = [stage.method, *(reward for reward, _ in stage.rewards)]
    plugins += [planned.eval for planned in stage.evals]
    refs = [ref for one in plugins if one for _, ref in references(one.config, ModelRef)]
    return [ref.checkpoint for ref in refs if ref.checkpoint]


def take_in(
    told: StageRecord, kept: StageRecord, plan: Plan, shared: SharedHome, record: RunRecord
) -> None:
    """Bring what a node left into the home, and have the run's record say so."""
    home, engine = shared.home, plan.engine
    verdicts = node.verdicts_file(kept.name)
    shared.pull(*node.own_files(record.id, kept.name), verdicts)
    add_verdicts(home / node.CACHE, home / verdicts)
    wanted = node.saved_uris(told)
    for uri in wanted:
        files = node.places(engine, uri, home)
        shared.pull_checkpoint(files)
        if files and not (home / files[0]).exists():
            # Its node has saved the next one since, and tells of that later: what the home has
            # stays until then.
            return
    # A stage that trains nothing leaves what it started from, which is another one's.
    of_others = {uri for one in record.stages if one is not kept for uri in node.saved_uris(one)}
    if kept.start is not None:
        of_others |= {uri for uri in (kept.start.state_uri, kept.start.sampler_uri) if uri}
    for uri in (*node.saved_uris(kept), *told.superseded):
        if uri not in wanted and uri not in of_others:
            with contextlib.suppress(PtlError):  # 'ptl gc' tries it again
                engine.discard(uri, home / ENGINE)
    tracking = kept.tracking_id
    become(kept, told)
    kept.tracking_id, kept.superseded = tracking, []


def take_over(plan: Plan, directory: RunDirectory, reporter: Reporter, url: str | None) -> set[str]:
    """Take in what nodes shared of a run whose driver was killed, wherever the run is to go on.

    Args:
        url: where it will be shared from now on, None where no node takes part.

    Returns: the stages of which there was something.

    Raises:
        PtlError: what is at `url` itself cannot be read.
    """
    place = directory.path / PLACE
    before = place.read_text() if place.is_file() else url
    if before is None:
        return set()
    home, record = directory.path.parents[1], directory.record
    found: set[str] = set()
    try:
        shared = SharedHome(before, home)
        if shared.read(MARK) is None:
            if before == url:
                return set()
            raise PtlError("nothing is there any more", code="cluster")
        shared.mark(secrets.token_hex(16))  # nodes that have not ended yet leave it alone
        for kept in record.stages:
            told = None if kept.done or kept.fresh else node.told_of(shared, kept.name)
            if told is None or told.fingerprint != kept.fingerprint:
                continue
            if node.steps(told) >= node.steps(kept):
                take_in(told, kept, plan, shared, record)
                directory.save()
                found.add(kept.name)
        if before != url:
            shared.remove()
            place.unlink()
    except PtlError as error:
        if before == url:
            raise
        reporter.warning(
            f"what nodes shared below {redact(before)} is not taken in, and stages go on from what "
            f"is here: {error.why or error.what}"
        )
    return found


@contextmanager
def opened(
    cluster: Cluster,
    plan: Plan,
    directory: RunDirectory,
    serving: Serving,
    reporter: Reporter,
    spending: Spending,
    interrupts: Interrupts,
    made: Callable[[str], Path],
    first: dict[str, list[list[int]]],
) -> Iterator[ClusterStages]:
    """What runs the stages of a plan on a cluster. What nodes shared is deleted once every stage is
    done; until then a later try goes on from it.

    Raises:
        PtlError: as `connected`, and where nothing can be shared.
    """
    home, record = directory.path.parents[1], directory.record
    shared = SharedHome(place_of(record, cluster.shared, home), home)
    if redact(shared.url) == shared.url:  # a password in it is kept nowhere
        store.write_atomic(directory.path / PLACE, shared.url)
    with connected(cluster, plan, home) as tasks:
        if tasks.gpus and not any(stage.resources.gpus for stage in plan.stages):
            reporter.warning(
                f"the cluster has {tasks.gpus} GPUs and no stage asks for one: all train on "
                "CPUs: 'resources: {gpus: 1}', in the recipe or in a stage, asks for one"
            )
        yield ClusterStages(
            plan, directory, serving, reporter, interrupts, spending, shared, tasks, made, first
        )
    if all(stage.done or stage.status == "left_out" for stage in record.stages):
        shutil.rmtree(home / "verdicts", ignore_errors=True)
        shutil.rmtree(home / ".pull", ignore_errors=True)
        try:
            shared.remove()
            (directory.path / PLACE).unlink(missing_ok=True)
            if cluster.shared is None:
                (home / "shared").rmdir()
        except PtlError as error:
            reporter.warning("; ".join(filter(None, (error.what, error.why))))
        except OSError:
            pass  # another run shares there too


def place_of(record: RunRecord, url: str | None, home: Path) -> str:
    """Where all nodes see this run: runs of other homes may have its id."""
    own = hashlib.sha256(f"{record.fingerprint} {record.created} {home.resolve()}".encode())
    base = (url or str(home / "shared")).rstrip("/")
    return f"{base}/{record.id}-{own.hexdigest()[:12]}"
