"""Progress of a run on the command line: live in a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TextIO, cast

from posttrain_recipes.planning import costs, gates
from posttrain_recipes.planning.plans import Plan, PlannedEval, PlannedStage
from posttrain_recipes.planning.pricing import duration
from posttrain_recipes.plugin import Resume
from posttrain_recipes.progress.pace import BetweenSteps, StageProgress
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.progress.terminal import folded
from posttrain_recipes.records import EvalResult
from posttrain_recipes.reporting import report
from posttrain_recipes.reporting.comparisons import groups
from posttrain_recipes.running.events import Reporter, SamplingProgress
from posttrain_recipes.store import Estimated, RunRecord, StageRecord
from posttrain_recipes.waiting import worker

LINE_SECONDS = 5.0
"""In a pipe, steps are printed this far apart."""
NO_EVALS = (
    "No eval has a result: nothing tells what the training changed. 'eval:' of a stage names what "
    "is measured before and after it."
)
TELLING = 10
"""Once one of so many requests is answered, the answers tell how fast it goes."""
QUIET_SECONDS = 15.0
"""In a pipe, what is under way is told of after so long a silence."""


def headline(plan: Plan) -> str:
    """What runs where: model, engine and preset."""
    preset = f", preset {plan.preset}" if plan.preset else ""
    return f"{plan.model} on engine {plan.engine.name}{preset}"


def estimate_told(plan: Plan, ahead: Estimated, prices: str) -> str:
    """What a run is going to take, and how old the prices are that it is by."""
    note = f" ({prices})" if plan.engine.billed else ""
    return f"ahead: {costs.describe(ahead, plan.engine.billed)}{note}"


def _after(record: RunRecord) -> list[str]:
    """What a person may want to do next."""
    commands = {
        f"ptl show {record.id}": "samples, checkpoints, options",
        f"ptl report {record.id} --open": "all of it on one page",
    }
    if record.tracking_id:
        commands["ptl ui"] = "curves and samples in MLflow"
    if groups(record):
        commands = {f"ptl compare {record.id}": "means over seeds, paired tests", **commands}
    width = max(map(len, commands)) + 3
    return [command.ljust(width) + what for command, what in commands.items()]


class Lines(Reporter):
    """Plain lines, one for each thing that happened; stages side by side are told by their name."""

    def __init__(self, out: TextIO | Lasting, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = out
        self.clock = clock
        self.told: dict[str, float] = defaultdict(clock)
        """When each worker printed a line the last time."""
        self.path = Path()
        self.pauses = BetweenSteps(clock)
        self.stages: dict[str, StageProgress] = defaultdict(
            lambda: StageProgress(pauses=self.pauses)
        )
        """By worker."""

    @property
    def now(self) -> StageProgress:
        """The stage that is told of."""
        return self.stages[worker()]

    def line(self, text: str = "") -> None:
        """Print one line now."""
        self.told[worker()] = self.clock()
        whose = f"{worker()}: " if worker() else ""
        print(
            f"{whose}{text.lstrip() if whose else text}", file=cast("IO[str]", self.out), flush=True
        )

    def close(self) -> None:
        """Nothing is left open."""

    def run_started(self, plan: Plan, record: RunRecord, resumed: bool) -> None:
        self.path = plan.path
        if record.status == "finished":
            self.line(f"{record.id}: already finished with these inputs; --fresh runs it again")
        else:
            verb = "goes on" if resumed else "begins"
            self.line(f"{record.id} {verb}: {headline(plan)}")

    def estimated(self, plan: Plan, ahead: Estimated, prices: str) -> None:
        self.line(f"  {estimate_told(plan, ahead, prices)}")

    def doing(self, what: str) -> None:
        self.line(f"  {what}")

    def sampling(self, progress: SamplingProgress) -> None:
        if self.clock() - self.told[worker()] >= QUIET_SECONDS:
            self.line(f"  {progress.what}: {how_far(progress)}")

    def stage_started(self, stage: PlannedStage, record: StageRecord, count: int) -> None:
        self._begun(stage, record)
        how = stage.method.name if stage.method else "evaluation"
        self.line(f"[{stage.index}/{count}] {stage.name} ({how} from {stage.start})")

    def _begun(self, stage: PlannedStage, record: StageRecord) -> None:
        self.pauses.known(stage, record)
        done = record.resume.step if record.resume else 0
        self.stages[worker()] = StageProgress(done, stage, self.pauses)

    def stage_reused(self, stage: PlannedStage, record: StageRecord) -> None:
        source = f" of run {record.reused_from}" if record.reused_from else ""
        self.line(f"[{stage.index}] {stage.name}: reused, finished on the same inputs{source}")

    def training(self, stage: PlannedStage, done: int, total: int) -> None:
        self.stages[worker()] = StageProgress(done, stage, self.pauses)
        self.line(f"  training from step {done} to {total}")

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        training, now = self.now, self.clock()
        training.add(metrics)
        if now - training.last >= LINE_SECONDS or number == total:
            training.last = now
            left = training.left(number, total)
            parts = [f"  step {number}/{total}", training.told(metrics)]
            parts += [f"{training.tokens:,.0f} tokens/s"] if training.tokens else []
            parts += [f"{left} left"] if left else []
            self.line("  ".join(parts))

    def made(self, stage: PlannedStage, batch: int) -> None:
        self.now.kept = batch

    def saved(self, resume: Resume) -> None:
        self.now.saved(resume.step)

    def evaluating(self, planned: PlannedEval, when: str, what: str) -> None:
        self.pauses.evaluating()
        super().evaluating(planned, when, what)

    def evaluated(
        self, stage: PlannedStage, planned: PlannedEval, when: str, r: EvalResult
    ) -> None:
        self.pauses.evaluated(planned)
        if worker() in self.stages:
            self.now.evaluated()
        if stage.method is None and when == "after":
            return  # the same as before: nothing was trained
        told = f"{when:6} " if stage.method else ""
        for name, estimate in r.metrics.items():
            label = report.metric_label(planned.name, planned.eval.name, name)
            value = report.show(estimate, name in report.SHARES)
            self.line(f"  {told}{label}: {value} (n={estimate.count})")

    def stage_trained(self, stage: PlannedStage, record: StageRecord) -> None:
        self.stages.pop(worker(), None)
        self.line(f"  {stage.name} is trained; its evals go on beside what comes next")

    def stage_finished(self, stage: PlannedStage, record: StageRecord) -> None:
        self.stages.pop(worker(), None)
        self.line(f"  {stage.name} done in {duration(record.seconds)}")

    def stage_failed(self, stage: PlannedStage, record: StageRecord) -> None:
        kept = f"; kept up to step {record.resume.step}" if record.resume else ""
        self.line(f"[{stage.index}] {stage.name} failed: {record.error}{kept}")

    def stage_skipped(self, stage: PlannedStage, record: StageRecord) -> None:
        word = "left out" if record.status == "left_out" else "skipped"
        self.line(f"[{stage.index}] {stage.name} {word}: {record.error}")

    def note(self, text: str) -> None:
        self.line(f"  {text}")

    def warning(self, text: str) -> None:
        self.line(f"warning: {text}")

    def run_finished(self, record: RunRecord) -> None:
        self.table(record)
        self.gates(record)
        self.line()
        for text in _after(record):
            self.line(text)

    def table(self, record: RunRecord) -> None:
        """Every metric before and after its stage."""
        self.line()
        table = report.table(record)
        if not table:
            self.line(folded(NO_EVALS))
            return
        for text in table.split("\n"):
            self.line(text)
        for note in report.notes(report.rows(record)):
            self.line(folded(note))

    def gates(self, record: RunRecord) -> None:
        """Every bound that the recipe sets, and whether it holds."""
        for gate in gates.check(record):
            self.line(f"{'passed' if gate.passed else 'FAILED'}  {gate}")

    def interrupted(self, command: str) -> None:
        """Say what was kept and which command goes on."""
        what = ", ".join(
            f"{name or 'the current stage'} is kept up to step {training.kept}"
            for name, training in self.stages.items()
            if training.kept
        )
        none = "nothing of the current stage was trained yet"
        if not self.stages:
            none = "no stage was under way; what was done is kept"
        self.line(f"\nstopped; {what or none}")
        self.line(f"go on with: {command}")


def shortened(text: str, room: int) -> str:
    """`text` in so many characters, without its middle: variants differ in how they end."""
    if len(text) <= room:
        return text
    end = max(room - 1, 0) * 2 // 3
    return f"{text[: max(room - 1 - end, 0)]}…{text[len(text) - end :]}"


def how_far(progress: SamplingProgress) -> str:
    """`64 of 200 replies, 1,234 tokens/s, 21 s left`."""
    parts = []
    if progress.total:
        parts.append(f"{progress.done:,} of {progress.total:,} {progress.unit}")
    # Beside n of N only once those are there, and a judge is asked of them.
    judged = progress.done >= progress.total and progress.answered > progress.done
    if judged or not progress.total:
        asked = f" of {progress.asked:,}" if progress.asked > progress.answered else ""
        parts.append(f"{progress.answered:,}{asked} requests answered")
    if told := speed(progress):
        parts.append(told)
    if 0 < progress.done < progress.total and _tells(progress):
        left = progress.seconds / progress.done * (progress.total - progress.done)
        parts.append(f"{duration(left)} left")
    else:
        parts.append(duration(progress.seconds))
    return ", ".join(parts)


def speed(progress: SamplingProgress) -> str:
    """`1,234 tokens/s`; empty where nothing tells it yet."""
    tokens, verb = (progress.written, "") if progress.written else (progress.read, " read")
    if not (tokens and progress.seconds and _tells(progress)):
        return ""
    return f"{tokens / progress.seconds:,.0f} tokens/s{verb}"


def _tells(progress: SamplingProgress) -> bool:
    """Whether so much was answered that it tells of the rest: an engine works at many requests at
    once, and the tokens of one are known only when it is answered."""
    return progress.answered * TELLING >= progress.asked
