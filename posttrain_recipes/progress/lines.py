"""Progress of a run on the command line: live in a terminal, plain lines in a pipe."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, TextIO, cast

from posttrain_recipes.planning import costs, gates
from posttrain_recipes.planning.plans import Plan, PlannedEval, PlannedStage
from posttrain_recipes.planning.pricing import duration
from posttrain_recipes.plugin import Resume
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.progress.terminal import folded
from posttrain_recipes.records import EvalResult
from posttrain_recipes.reporting import report
from posttrain_recipes.reporting.comparisons import groups
from posttrain_recipes.running.events import Reporter, SamplingProgress
from posttrain_recipes.store import Estimated, RunRecord, StageRecord
from posttrain_recipes.waiting import worker

if TYPE_CHECKING:
    pass

LINE_SECONDS = 5.0
"""In a pipe, steps are printed this far apart."""
NO_EVALS = (
    "No eval has a result: nothing tells what the training changed. 'eval:' of a stage names what "
    "is measured before and after it."
)
QUIET_SECONDS = 15.0
"""In a pipe, what is under way is told of after so long a silence."""


def headline(plan: Plan) -> str:
    """What runs where: model, engine and preset."""
    preset = f", preset {plan.preset}" if plan.preset else ""
    return f"{plan.model} on engine {plan.engine.name}{preset}"


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
        self.stages: dict[str, StageProgress] = defaultdict(StageProgress)
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
        note = f" ({prices})" if plan.engine.billed else ""
        self.line(f"  ahead: {costs.describe(ahead, plan.engine.billed)}{note}")

    def doing(self, what: str) -> None:
        self.line(f"  {what}")

    def sampling(self, progress: SamplingProgress) -> None:
        if self.clock() - self.told[worker()] >= QUIET_SECONDS:
            self.line(f"  {progress.what}: {how_far(progress)}")

    def stage_started(self, stage: PlannedStage, record: StageRecord, count: int) -> None:
        self.stages[worker()] = StageProgress(record.resume.step if record.resume else 0)
        how = stage.method.name if stage.method else "evaluation"
        self.line(f"[{stage.index}/{count}] {stage.name} ({how} from {stage.start})")

    def stage_reused(self, stage: PlannedStage, record: StageRecord) -> None:
        source = f" of run {record.reused_from}" if record.reused_from else ""
        self.line(f"[{stage.index}] {stage.name}: reused, finished on the same inputs{source}")

    def training(self, stage: PlannedStage, done: int, total: int) -> None:
        self.stages[worker()] = StageProgress(done)
        self.line(f"  training from step {done} to {total}")

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        training, now = self.now, time.monotonic()
        training.add(metrics)
        if now - training.last >= LINE_SECONDS or number == total:
            training.last = now
            speed = f"{training.tokens:,.0f} tokens/s  " if training.tokens else ""
            self.line(
                f"  step {number}/{total}  {training.told(metrics)}  {speed}"
                f"{training.left(number, total)} left"
            )

    def made(self, stage: PlannedStage, batch: int) -> None:
        self.now.kept = batch

    def saved(self, resume: Resume) -> None:
        self.now.kept = resume.step

    def evaluated(
        self, stage: PlannedStage, planned: PlannedEval, when: str, r: EvalResult
    ) -> None:
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
    """`64 of 200 replies, 1,234 tokens/s, 25 s left`."""
    parts = []
    if progress.total:
        parts.append(f"{progress.done:,} of {progress.total:,} {progress.unit}")
    # Beside n of N only once those are there, and a judge is asked of them.
    judged = progress.done >= progress.total and progress.answered > progress.done
    if judged or not progress.total:
        asked = f" of {progress.asked:,}" if progress.asked > progress.answered else ""
        parts.append(f"{progress.answered:,}{asked} requests answered")
    tokens, verb = (progress.written, "") if progress.written else (progress.read, " read")
    if tokens and progress.seconds:
        parts.append(f"{tokens / progress.seconds:,.0f} tokens/s{verb}")
    if 0 < progress.done < progress.total:
        left = progress.seconds / progress.done * (progress.total - progress.done)
        parts.append(f"{duration(left)} left")
    else:
        parts.append(duration(progress.seconds))
    return ", ".join(parts)


SLOPE_STEPS = 20
"""Of RL, steps that the slope of the reward is taken over."""


class StageProgress:
    """The progress of a stage in training: steps saved, and its smoothed speed."""

    def __init__(self, done: int = 0) -> None:
        self.began = time.monotonic()
        self.first = 0.0
        """When its first step here was done."""
        self.done = done
        self.kept = done
        """Steps that a next run need not do again."""
        self.stepped = False
        """Whether a step was done."""
        self.last = 0.0
        """When a step was told of."""
        self.tokens = 0.0
        """Tokens a second."""
        self.rewards: deque[float] = deque(maxlen=SLOPE_STEPS)
        """The mean rewards of the last steps of RL."""

    def add(self, metrics: Mapping[str, float]) -> None:
        """A step is done."""
        self.first = self.first or time.monotonic()
        self.stepped = True
        now = metrics.get("train/tokens_per_second", 0.0)
        self.tokens = now if not self.tokens else 0.9 * self.tokens + 0.1 * now
        if "reward/mean" in metrics:
            self.rewards.append(metrics["reward/mean"])

    def told(self, metrics: Mapping[str, float]) -> str:
        """The numbers of a step that people look at first."""
        if "reward/mean" in metrics:
            return "  ".join(self._rollouts(metrics))
        if "train/loss" in metrics:
            return f"loss {metrics['train/loss']:z.4f}"
        if "merge/norm" in metrics:
            return f"norm {metrics['merge/norm']:.3g}  lost {metrics['merge/lost']:.0%} of it"
        return f"{metrics.get('data/kept', 0):,.0f} records"

    def _rollouts(self, metrics: Mapping[str, float]) -> Iterator[str]:
        """Of RL, whose loss is 0 by its making: what the replies got, how many groups taught
        nothing, how many were cut at max_tokens, how far the policy went, how long they are. Where
        it is what is said of them that teaches, also the loss and how many were learned."""
        reward = f"reward {metrics['reward/mean']:z.3f}"
        if len(self.rewards) >= 3:
            slope = statistics.linear_regression(range(len(self.rewards)), self.rewards).slope
            reward += f" ({slope:+z.3f}/step)"
        yield reward
        if (share := metrics.get("feedback/learned_share")) is not None:
            yield f"loss {metrics.get('train/loss', 0):z.4f}  learned {share:.0%}"
        if (share := metrics.get("groups/zero_variance_share")) is not None:
            yield f"zero-var {share:.0%}"
        if (share := metrics.get("completions/clipped_ratio")) is not None:
            yield f"cut {share:.0%}"
        if (kl := metrics.get("policy/kl_reference")) is not None:
            yield f"kl {kl:z.3f}"
        if (length := metrics.get("completions/mean_length")) is not None:
            yield f"len {length:.0f}"

    def left(self, number: int, total: int) -> str:
        """Time until the last step, as a person says it."""
        steps, now = number - self.done, time.monotonic()
        if steps <= 0:
            return "?"
        # The first one starts up what the others find running.
        took = (now - self.first) / (steps - 1) if steps > 1 and self.first else now - self.began
        return duration(took * (total - number))
