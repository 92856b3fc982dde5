"""Progress of a run in a terminal: a bar, a spinner, and a table."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from posttrain_recipes.planning.plans import Plan, PlannedEval, PlannedStage
from posttrain_recipes.planning.pricing import duration
from posttrain_recipes.progress import terminal
from posttrain_recipes.progress.bar import Bar
from posttrain_recipes.progress.lines import (
    Lines,
    estimate_told,
    headline,
    how_far,
    shortened,
    speed,
)
from posttrain_recipes.progress.pace import StageProgress
from posttrain_recipes.progress.streams import Lasting
from posttrain_recipes.records import EvalResult
from posttrain_recipes.reporting import report
from posttrain_recipes.running.events import SamplingProgress
from posttrain_recipes.store import Estimated, RunRecord, StageRecord
from posttrain_recipes.waiting import worker

if TYPE_CHECKING:
    from rich.live import Live as Shown
    from rich.status import Status
    from rich.text import Text


def _text(*parts: str | tuple[str, str]) -> Text:
    """Text in styles; what stands in it is no markup."""
    from rich.text import Text

    return Text.assemble(*parts)


class Live(Lines):
    """A progress bar while training, a spinner while something else is under way, and a table.

    Evals beside what trains, the only named workers here, have lines of their own, and the spinner
    as long as nothing of what trains is told.
    """

    def __init__(self, out: Lasting) -> None:
        super().__init__(out)
        self.console = terminal.console(out)
        self.lock = threading.RLock()
        """Held while the bar or the spinner changes: a terminal has one."""
        self.status: Status | None = None
        self.whose = ""
        """The worker of what the spinner says."""
        self.bar: Bar | None = None
        """Of the stage that trains."""
        self.shown: Shown | None = None
        """Shows the bar; None where the spinner is in its place, as during an eval."""

    def line(self, text: str = "") -> None:
        whose = f"  {worker()}: " if worker() else ""
        self.console.print(f"{whose}{text.lstrip() if whose else text}", soft_wrap=True)

    def close(self) -> None:
        with self.lock:
            self._stop_spinner()
            self._hide_bar(leave=True)
            self.bar = None

    def _stop_spinner(self) -> None:
        if self.status is not None:
            self.status.stop()
            self.status = None

    def _hide_bar(self, leave: bool) -> None:
        """Make room for a spinner. The bar stays in its place where it is to be left, or full."""
        if self.shown is None:
            return
        full = self.bar is not None and self.bar.step >= self.bar.total
        self.shown.transient = not (leave or full)
        self.shown.stop()
        self.shown = None
        if full:
            self.bar = None

    def _show_bar(self) -> None:
        """Show the bar of the stage that trains, in the place of a spinner: what that said is
        over."""
        from rich.live import Live as Shown

        with self.lock:
            if self.bar is None or self.shown is not None:
                return
            self._stop_spinner()
            self.shown = Shown(self.bar, console=self.console)
            self.shown.start(refresh=True)
            terminal.guard()  # rich has put streams of its own in place

    def _over(self) -> None:
        """What this worker said to be under way is over."""
        with self.lock:
            if self.whose == worker():
                self._stop_spinner()
            if not worker():
                self._show_bar()

    def doing(self, what: str) -> None:
        with self.lock:
            busy = self.bar is not None or (self.status is not None and not self.whose)
            if worker() and busy:
                return
            self._hide_bar(leave=False)
            if self.status is None:
                self.status = self.console.status("", spinner="dots")
                self.status.start()
                terminal.guard()
            self.whose = worker()
            self.status.update(_text((what, "dim")))

    def sampling(self, progress: SamplingProgress) -> None:
        with self.lock:
            if self.shown is not None and self.bar is not None:
                if progress.answered and not self.now.stepped and not worker():
                    self.bar.told = f"{progress.answered:,} of {progress.asked:,} requests"
                    self.bar.speed = speed(progress)
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
        self._begun(stage, record)
        how = stage.method.name if stage.method else "evaluation"
        head = f"\n{stage.index}/{count} {stage.name} "
        self.console.print(_text((head, "bold"), (f"({how} from {stage.start})", "dim")))

    def stage_reused(self, stage: PlannedStage, record: StageRecord) -> None:
        self._over()
        super().stage_reused(stage, record)

    def stage_skipped(self, stage: PlannedStage, record: StageRecord) -> None:
        self._over()
        super().stage_skipped(stage, record)

    def training(self, stage: PlannedStage, done: int, total: int) -> None:
        self.stages[worker()] = StageProgress(done, stage, self.pauses)
        with self.lock:
            self.close()
            self.bar = Bar(done, total)
            self._show_bar()

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        training = self.now
        training.add(metrics)
        left = training.left(number, total)
        with self.lock:
            bar = self.bar = self.bar or Bar(number, total)
            bar.step, bar.total = number, total
            bar.told = training.told(metrics)
            bar.speed = f"{training.tokens:,.0f} tokens/s" if training.tokens else ""
            bar.left = f"{left} left" if left else ""
            self._show_bar()

    def evaluating(self, planned: PlannedEval, when: str, what: str) -> None:
        self._trained(when)
        super().evaluating(planned, when, what)

    def evaluated(
        self, stage: PlannedStage, planned: PlannedEval, when: str, r: EvalResult
    ) -> None:
        self._trained(when)
        self._over()
        super().evaluated(stage, planned, when, r)

    def _trained(self, when: str) -> None:
        """A stage that is evaluated `after` it has trained, which may be before its last step:
        what its bar said stays, and it does not come back."""
        if when == "after" and not worker():
            if self.bar is not None:
                self.bar.left = ""
            self.close()

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

    def estimated(self, plan: Plan, ahead: Estimated, prices: str) -> None:
        self.note(estimate_told(plan, ahead, prices))

    def note(self, text: str) -> None:
        fold = textwrap.TextWrapper(
            self.console.width,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in fold.wrap(text):
            self.line(line)

    def warning(self, text: str) -> None:
        # At once: of a line without its end a spinner leaves nothing.
        self.console.print(_text(("warning: ", "yellow"), text))

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
