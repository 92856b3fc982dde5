"""Progress of a run in a terminal: a bar, a spinner, and a table."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from posttrain_recipes.planning.plans import Plan, PlannedStage
from posttrain_recipes.planning.pricing import duration
from posttrain_recipes.progress import terminal
from posttrain_recipes.progress.lines import Lines, StageProgress, headline, how_far, shortened
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.reporting import report
from posttrain_recipes.running.events import SamplingProgress
from posttrain_recipes.store import RunRecord, StageRecord
from posttrain_recipes.waiting import worker

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.status import Status
    from rich.text import Text


def _text(*parts: str | tuple[str, str]) -> Text:
    """Text in styles; what stands in it is no markup."""
    from rich.text import Text

    return Text.assemble(*parts)


class Live(Lines):
    """A progress bar while training, a spinner while something else is under way, and a table.

    Evals beside what trains, the only named workers here, have lines of their own, and the spinner
    as long as no bar is there.
    """

    def __init__(self, out: Lasting) -> None:
        super().__init__(out)
        self.console = terminal.console(out)
        self.lock = threading.RLock()
        """Held while the bar or the spinner changes: a terminal has one."""
        self.status: Status | None = None
        self.progress: Progress | None = None

    def line(self, text: str = "") -> None:
        whose = f"  {worker()}: " if worker() else ""
        self.console.print(f"{whose}{text.lstrip() if whose else text}", soft_wrap=True)

    def close(self) -> None:
        with self.lock:
            if self.status is not None:
                self.status.stop()
                self.status = None
            if self.progress is not None:
                self.progress.stop()
                self.progress = None

    def doing(self, what: str) -> None:
        with self.lock:
            if self.progress is not None:
                if worker():
                    return
                self.close()
            if self.status is None:
                self.status = self.console.status("", spinner="dots")
                self.status.start()
                terminal.guard()  # rich has put streams of its own in place
            self.status.update(_text((what, "dim")))

    def sampling(self, progress: SamplingProgress) -> None:
        if self.progress is not None:
            if worker():
                return
            if progress.answered and not self.now.stepped:
                told = f"{progress.answered:,} of {progress.asked:,} requests"
                rate = f"{progress.written / max(progress.seconds, 1e-9):,.0f}"
                self.progress.update(self.task, told=told, rate=rate)
            return
        told = how_far(progress)
        room = self.console.width - len(told) - 5  # the spinner, a colon and spaces
        self.doing(f"{shortened(progress.what, room)}: {told}")

    def run_started(self, plan: Plan, record: RunRecord, resumed: bool) -> None:
        self.path = plan.path
        if record.status == "finished":
            super().run_started(plan, record, resumed)
            return
        verb = "goes on" if resumed else "begins"
        self.console.print(_text((record.id, "bold"), f" {verb} ", (headline(plan), "dim")))

    def stage_started(self, stage: PlannedStage, record: StageRecord, count: int) -> None:
        self.close()
        self.stages[worker()] = StageProgress(record.resume.step if record.resume else 0)
        how = stage.method.name if stage.method else "evaluation"
        head = f"\n{stage.index}/{count} {stage.name} "
        self.console.print(_text((head, "bold"), (f"({how} from {stage.start})", "dim")))

    def training(self, stage: PlannedStage, done: int, total: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self.stages[worker()] = StageProgress(done)
        bar = Progress(
            TextColumn("  step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[told]}", markup=False),
            TextColumn("{task.fields[rate]} tok/s", style="dim", markup=False),
            TextColumn("{task.fields[left]} left", style="dim", markup=False),
            console=self.console,
            expand=True,
        )
        self.task = bar.add_task("", total=total, completed=done, told="", rate="-", left="?")
        with self.lock:
            self.close()
            self.progress = bar
            bar.start()
            terminal.guard()

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        training = self.now
        training.add(metrics)
        if self.progress is not None:
            self.progress.update(
                self.task,
                completed=number,
                total=total,
                told=training.told(metrics),
                rate=f"{training.tokens:,.0f}",
                left=training.left(number, total),
            )

    def stage_trained(self, stage: PlannedStage, record: StageRecord) -> None:
        self.close()
        super().stage_trained(stage, record)

    def stage_finished(self, stage: PlannedStage, record: StageRecord) -> None:
        if worker():
            super().stage_finished(stage, record)
            return
        self.close()
        self.console.print(_text((f"  done in {duration(record.seconds)}", "dim")))

    def stage_failed(self, stage: PlannedStage, record: StageRecord) -> None:
        if not worker():
            self.close()
        super().stage_failed(stage, record)

    def warning(self, text: str) -> None:
        self.console.print("warning: ", style="yellow", end="")
        self.console.print(text)

    def run_finished(self, record: RunRecord) -> None:
        self.close()
        super().run_finished(record)

    def table(self, record: RunRecord) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for name in ("stage", "eval"):
            table.add_column(name, overflow="fold")
        for name in ("n", "before", "after", "change"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        colours = {"better": "green", "worse": "red", "same": "dim"}
        rows = report.rows(record)
        for row in rows:
            colour = colours.get(row.verdict, "")
            table.add_row(
                row.stage,
                row.label,
                str(row.count),
                report.show(row.before, row.percent),
                report.show(row.after, row.percent),
                Text(report.show_change(row), colour),
                Text(row.verdict, colour),
            )
        self.console.print()
        self.console.print(table)
        for note in report.notes(rows):
            self.console.print(Text(note, "dim"))

    def interrupted(self, command: str) -> None:
        self.close()
        super().interrupted(command)
