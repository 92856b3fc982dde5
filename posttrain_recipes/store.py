"""Runs on disk: a directory for each, with a `run.json` that is written atomically.

    .ptl/runs/sft_then_dpo-1/run.json     recipe, stages, checkpoints, evals
                             samples/     what evals saw, as JSONL
                             scores/      what each metric is the mean of, record by record
                             watch/       what `ptl watch` shows: see `watchlog`
                             engine.log
    .ptl/engine/                          checkpoints of the embedded engine
    .ptl/mlflow.db, .ptl/artifacts/       tracking

A run directory is locked while a process works on it; a run that says `running` and is not locked
was killed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain_recipes import private, runfile
from posttrain_recipes.atomic import write_atomic as write_atomic
from posttrain_recipes.errors import DISK_FULL, PtlError, UsageError, unwritable, writing
from posttrain_recipes.home import default_home as default_home
from posttrain_recipes.plugin import Resume
from posttrain_recipes.records import Checkpoint, Estimate, EvalResult, Sample, message_from
from posttrain_recipes.runfile import Unreadable, UnreadableError, in_order
from posttrain_recipes.workload import Billed, Usage

log = logging.getLogger(__name__)
LOCK_ATTEMPTS = 10
"""Tries, 50 ms apart, before a run counts as held."""


def now() -> str:
    """The time as it is stored: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


OWN = "own:"
"""What the fingerprint of a method's own measurement begins with."""


@dataclass
class Measured:
    """The result of an eval on one checkpoint; its samples are in a file of their own."""

    name: str
    eval: str
    fingerprint: str
    data: str
    metrics: dict[str, Estimate]
    higher_is_better: dict[str, bool | None] = field(default_factory=dict)
    """By metric. Older runs name only those that are not better when higher."""
    step: int | None = None
    """Of an eval during a stage: the steps that were done."""
    notes: list[str] = field(default_factory=list)
    """What has to be known to read its numbers."""
    tested: bool = True
    """Whether its changes are tested."""

    @property
    def main(self) -> str | None:
        """The metric that the eval's name alone means: its plugin's namesake, or the first."""
        return self.eval if self.eval in self.metrics else next(iter(self.metrics), None)


@dataclass
class Spent:
    """Time and tokens spent, over all attempts."""

    seconds: float = 0.0
    train: int = 0
    prefill: int = 0
    sample: int = 0
    forward: int = 0
    """Of `prefill`: see `Usage`."""

    @property
    def usage(self) -> Usage:
        """The tokens."""
        return Usage(self.train, self.prefill, self.sample, self.forward)

    def __sub__(self, other: Spent) -> Spent:
        return self._with(other, -1)

    def __add__(self, other: Spent) -> Spent:
        return self._with(other, 1)

    def _with(self, other: Spent, sign: int) -> Spent:
        added = {
            f.name: getattr(self, f.name) + sign * getattr(other, f.name) for f in fields(self)
        }
        return Spent(**added)


@dataclass(frozen=True)
class Estimated:
    """The estimate of steps, tokens and time that was made before."""

    steps: int = 0
    tokens: int = 0
    exact: bool = False
    """Whether the tokens were counted, not estimated."""
    at_most: bool = False
    """Whether the tokens are a bound."""
    usd: float | None = None
    seconds: float | None = None
    calibrated: bool = False
    """Whether the seconds are by the machine's speed alone: nothing like it was run before."""
    unknown: list[str] = field(default_factory=list)
    """Parts of it that nothing is known of: training, evals."""


@dataclass
class StageRecord:
    """One stage of a run."""

    name: str
    fingerprint: str
    method: str | None
    inputs: dict[str, Any] = field(default_factory=dict)
    """What the fingerprint is a hash of."""
    fresh: str = ""
    """Why nothing of an earlier run is reused for it; empty where it may be."""
    status: str = "waiting"
    """waiting, running, trained (its evals are under way or left), finished, reused, failed,
    killed, stopped, skipped (what it needs failed) or left_out (its loop ended before)."""
    error: str | None = None
    """Why it or its evals failed, or why it was skipped or left out."""
    started: str | None = None
    finished: str | None = None
    seconds: float = 0.0
    total_steps: int = 0
    records: int = 0
    tokens: int = 0
    """Tokens that were trained on."""
    made: dict[str, int] = field(default_factory=dict)
    """Records that it left for later stages, by the name of their type."""
    made_in: str = ""
    """Where they lie, below the directory of all runs."""
    resume: Resume | None = None
    start: Checkpoint | None = None
    checkpoint: Checkpoint | None = None
    model: str = ""
    """The base model."""
    estimate: Estimated | None = None
    training: Spent = field(default_factory=Spent)
    evaluation: Spent = field(default_factory=Spent)
    lost: Spent = field(default_factory=Spent)
    """What evals took that were interrupted and made again: paid for, and no part of `spent`."""
    watching: Spent = field(default_factory=Spent)
    """What the replies of `watch:` took: paid for, and no part of `spent`."""
    usd: float | None = None
    """What it cost; None where that is not known or nothing is billed."""
    superseded: list[str] = field(default_factory=list)
    """Saved states and samplers that no try will go on from, and that may be there still."""
    warnings: list[str] = field(default_factory=list)
    """What was seen wrong while it trained, and what to do; see `running/health.py`."""
    notes: list[str] = field(default_factory=list)
    """What else has to be known of it: which checkpoint it leaves, and why it ended early."""
    during: list[Measured] = field(default_factory=list)
    """What evals found while it trained, each with its step."""
    best: Resume | None = None
    """The best checkpoint so far, where that is what the stage leaves."""
    ended: bool = False
    """Whether evals ended it before its last step."""
    tracking_id: str | None = None
    reused_from: str | None = None
    auto: dict[str, str] = field(default_factory=dict)
    """Options of the method that the recipe has as `auto`, with what their numbers, which are in
    `inputs`, follow from."""
    before: list[Measured] = field(default_factory=list)
    after: list[Measured] = field(default_factory=list)

    @property
    def numbers(self) -> dict[str, float]:
        """Options that the recipe has as `auto`, and the numbers that they were."""
        config = self.inputs.get("method", {}).get("config", {})
        return {name: config[name] for name in self.auto if name in config}

    @property
    def spent(self) -> Spent:
        """What training and evals took together."""
        return self.training + self.evaluation

    @property
    def paid(self) -> Spent:
        """What it took with all that was interrupted and made again, and with `watch:`."""
        return self.spent + self.lost + self.watching

    @property
    def done(self) -> bool:
        """Whether its checkpoint can be built upon."""
        return self.status in ("trained", "finished", "reused")


@dataclass
class RunRecord:
    """One run of a recipe: what `run.json` holds."""

    id: str
    recipe: str
    fingerprint: str
    model: str
    engine: str
    path: str
    preset: str | None
    seed: int
    resolved: dict[str, Any]
    created: str
    stages: list[StageRecord]
    status: str = "running"
    """running, finished, failed, killed or stopped."""
    finished: str | None = None
    seconds: float = 0.0
    """How long it was worked on, all tries together."""
    error: str | None = None
    tracking_id: str | None = None
    tracking_uri: str | None = None
    version: str = ""
    order: int = 0
    """The how manieth run of its directory it is, from 1: what `last` goes by, as a clock may be
    wrong. 0 for a run that was made before there was such a number."""
    sessions: list[str] = field(default_factory=list)
    """Of a service that bills: by what it calls those in which this run asked it."""
    billed: Billed | None = None
    """What the service says that it billed; None where it was not asked."""
    told: str = ""
    """The status (`exits.EXITS`) that `on_end:` was told of last; empty where it was of none."""
    untold: str | None = None
    """Why `on_end:` was not told of the last end."""
    home: Path | None = field(default=None, compare=False)
    """The directory of runs that it lies in; not kept, and None for one that lies elsewhere."""

    def stage(self, name: str) -> StageRecord:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)


class RunDirectory:
    """A run that this process holds the lock of."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path = path
        self.record = record
        self._saving = threading.Lock()

    def save(self) -> None:
        """Write `run.json`."""
        with self._saving:  # of two stages at once, the one that is written last must know most
            write_atomic(self.path / "run.json", dump(self.record))

    def save_samples(self, stage: str, name: str, when: str, samples: tuple[Sample, ...]) -> None:
        """Keep what an eval saw, one JSON object a line."""
        lines = [json.dumps(_sample_row(sample), ensure_ascii=False) for sample in samples]
        write_atomic(samples_path(self.path, stage, name, when), "\n".join(lines) + "\n")


def _sample_row(sample: Sample) -> dict[str, Any]:
    row = asdict(replace(sample, prompt=(), metadata={}))
    row["prompt"] = [message.as_dict() for message in sample.prompt]
    if sample.raw == sample.completion:
        del row["raw"]
    return row


def samples_path(run: Path, stage: str, name: str, when: str) -> Path:
    """Where the samples of an eval lie. A directory for each stage: names may have hyphens, and
    `sft` with `dpo-held` is not `sft-dpo` with `held`."""
    return run / "samples" / stage / f"{name}-{when}.jsonl"


def artifacts_path(run: Path, stage: str) -> Path:
    """The directory of the files that a stage left to look at."""
    return run / "artifacts" / stage


def made_path(run: Path, stage: str) -> Path:
    """The directory of the records that a stage made."""
    return run / "made" / stage


def load_samples(run: Path, stage: str, name: str, when: str) -> list[Sample]:
    """The samples of an eval; none where it keeps none, or, with a warning, where the file is
    damaged."""
    path = samples_path(run, stage, name, when)
    if not path.is_file():
        path = run / "samples" / f"{stage}-{name}-{when}.jsonl"  # of runs before that
    if not path.is_file():
        return []
    try:
        # Not splitlines(): a reply may hold U+2028, which JSON leaves as it is.
        lines = map(json.loads, filter(None, path.read_text(encoding="utf-8").split("\n")))
        return [
            Sample(**{**data, "prompt": tuple(map(message_from, data["prompt"]))}) for data in lines
        ]
    except (OSError, *runfile.DAMAGED) as error:
        log.warning("%s", runfile.damaged(path, error))
        return []


def named(runs: Sequence[RunRecord], name: str) -> RunRecord | None:
    """The run of that id, else the last one of the recipe of that name: a recipe may be called as
    a run of another one is (`mini-2` beside `mini`)."""
    exact = [run for run in runs if run.id == name]
    found = exact or [run for run in runs if run.recipe == name]
    return found[-1] if found else None


def latest(runs: Sequence[RunRecord], fingerprint: str) -> RunRecord | None:
    """The newest run of a plan, of runs that are in order."""
    same = [run for run in runs if run.fingerprint == fingerprint]
    return same[-1] if same else None


class Store:
    """All runs below one directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.runs_dir = home / "runs"
        private.tighten(home)

    def runs(self) -> list[RunRecord]:
        """Every run that can be read, oldest first; `listed` tells of the others too."""
        return self.listed()[0]

    def listed(self) -> tuple[list[RunRecord], list[Unreadable]]:
        """Every run that can be read, oldest first; and every one that cannot, by name."""
        found, broken = [], []
        for path in runfile.records(self.runs_dir):
            try:
                record = read_run(path)
            except UnreadableError as error:
                broken.append(Unreadable.of(path, error))
                continue
            if record.status == "running" and not self.locked(record.id):
                record.status = "killed"
                for stage in record.stages:
                    stage.status = "killed" if stage.status == "running" else stage.status
            found.append(record)
        return in_order(found), broken

    def find(self, run_id: str) -> RunRecord:
        """The run of that id, else the last run of the recipe of that name.

        Raises:
            UsageError: there is none.
            PtlError: it is there and cannot be read.
        """
        runs, broken = self.listed()
        for one in broken:
            if run_id == one.id:
                raise one.error()
        if (record := named(runs, run_id)) is not None:
            return record
        for one in broken:
            if run_id == one.id.rpartition("-")[0]:
                raise one.error()
        recent = ", ".join(record.id for record in runs[-5:])
        raise UsageError(
            f"there is no run '{run_id}' in {self.home}",
            hint=f"the last runs: {recent}" if recent else "'ptl run RECIPE' makes one",
            code="no-such-run",
        )

    def path(self, run_id: str) -> Path:
        """The directory of a run."""
        return self.runs_dir / run_id

    def locked(self, run_id: str) -> bool:
        """Whether a process works on the run now."""
        try:
            with (self.path(run_id) / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # it is not there, or is no file: then nobody holds it
            return False
        return False

    def latest(self, fingerprint: str) -> RunRecord | None:
        """The newest run of the same plan."""
        return latest(self.runs(), fingerprint)

    @contextmanager
    def open(self, record: RunRecord) -> Iterator[RunDirectory]:
        """Hold a run while working on it.

        Raises:
            PtlError: another process holds it.
        """
        with ExitStack() as held:
            held.enter_context(private.files())
            try:
                held.enter_context(self._lock(record.id))
            except BlockingIOError:
                holder = (self.path(record.id) / "lock").read_text(errors="replace").strip()
                raise PtlError(
                    f"run {record.id} is being worked on by process {holder or 'that just began'}",
                    hint="wait for it, stop it, or start another with --fresh",
                    code="run-busy",
                ) from None
            except PtlError:  # the disk is full
                if not (self.path(record.id) / "run.json").exists():
                    shutil.rmtree(self.path(record.id), ignore_errors=True)
                raise
            record.home = self.runs_dir
            if not record.order and not (self.path(record.id) / "run.json").is_file():
                record.order = 1 + max((run.order for run in self.runs()), default=0)
            kept = self.path(record.id) / "run.json"
            if kept.exists():
                try:
                    read_run(kept)  # damaged since it was listed: that is kept
                except UnreadableError as error:
                    raise Unreadable.of(kept, error).error() from None
            yield RunDirectory(self.path(record.id), record)

    @contextmanager
    def _lock(self, run_id: str) -> Iterator[None]:
        path = self.path(run_id) / "lock"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b", buffering=0)
        with file:
            # The kernel drops the lock with the process, so a crash leaves none behind. Whoever
            # lists runs holds a shared one for an instant; a run holds its own for long.
            for attempt in range(LOCK_ATTEMPTS):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == LOCK_ATTEMPTS - 1:
                        raise
                    time.sleep(0.05)
            with writing(path):
                file.truncate(0)
                file.write(f"{os.getpid()} since {now()}".encode())
            yield

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Lock out other processes that are choosing a run, so that two of them do not both begin
        one."""
        try:
            with private.files():
                self.runs_dir.mkdir(parents=True, exist_ok=True)
                lock = (self.runs_dir / ".lock").open("a")
        except OSError as error:
            if error.errno in DISK_FULL:
                raise unwritable(self.runs_dir, error) from None
            why = f"{error.filename or self.runs_dir}: {error.strerror}"
            hint = "name another directory with --home or PTL_HOME"
            raise UsageError(
                f"no run can be kept in {self.home}", why=why, hint=hint, code="not-writable"
            ) from None
        with lock as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def next_id(self, recipe: str) -> str:
        """A new run's id, `<recipe>-<n>`; its directory is made, so that nobody else takes it."""
        pattern = re.compile(re.escape(recipe) + r"-(\d+)")
        names = [path.name for path in self.runs_dir.glob(f"{recipe}-*")]
        taken = [int(match.group(1)) for name in names if (match := pattern.fullmatch(name))]
        number = max(taken, default=0) + 1
        while True:
            path = self.runs_dir / f"{recipe}-{number}"
            try:
                with private.files():
                    path.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                return path.name


def dump(record: RunRecord) -> str:
    """A run as `run.json` holds it."""
    kept = {"format": runfile.FORMAT, **asdict(replace(record, home=None))}
    return json.dumps({k: v for k, v in kept.items() if k != "home"}, indent=1, ensure_ascii=False)


def parse(data: Any) -> RunRecord:
    """A run from what `dump` wrote, now or in an older format.

    Raises:
        UnreadableError: it is anything else.
    """
    record = runfile.build(RunRecord, runfile.migrated(data))
    runfile.check(record)
    return record


def read_run(path: Path) -> RunRecord:
    """The run in a `run.json`. Raises `UnreadableError` where that cannot be read."""
    record = replace(parse(runfile.load(path)), home=path.parents[1])
    if record.id != path.parent.name:
        raise UnreadableError(f"it is the record of another run, {record.id}", runfile.COPIED)
    return record


def read(path: Path) -> RunRecord | None:
    """The run in a `run.json`; None where there is none, or where it cannot be read."""
    try:
        return read_run(path)
    except UnreadableError:
        return None


def measured(
    name: str, eval_name: str, fingerprint: str, data: str, result: EvalResult
) -> Measured:
    """An eval's result as it is kept, with the direction of every metric."""
    kept = Measured(name, eval_name, fingerprint, data, dict(result.metrics))
    kept.notes, kept.tested = list(result.notes), result.tested
    for metric in result.metrics:
        unnamed = True if metric == kept.main else None
        kept.higher_is_better[metric] = result.higher_is_better.get(metric, unnamed)
    return kept
