"""Progress of a run in a notebook: a line for each stage, which moves, in the cell's output."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from posttrain_recipes.planning.plans import Plan, PlannedEval, PlannedStage
from posttrain_recipes.planning.pricing import duration
from posttrain_recipes.plugin import Resume
from posttrain_recipes.progress.lines import headline, how_far
from posttrain_recipes.progress.pace import BetweenSteps, StageProgress
from posttrain_recipes.records import EvalResult
from posttrain_recipes.reporting import report
from posttrain_recipes.running.events import Reporter, SamplingProgress
from posttrain_recipes.shown import plain, redact
from posttrain_recipes.store import RunRecord, StageRecord
from posttrain_recipes.waiting import worker

EVERY_S = 0.3
"""Seconds between two updates: each is a message to the browser."""
SHOWN_WARNINGS = 20


def is_notebook() -> bool:
    """Whether this is a kernel that shows HTML: Jupyter, VS Code or Colab."""
    import sys

    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


@dataclass
class _Row:
    """A stage, as its line tells it."""

    name: str
    how: str
    state: str = ""
    step: int = 0
    total: int = 0
    told: str = ""
    results: dict[str, dict[str, str]] = field(default_factory=dict)
    """Eval and metric -> when -> value."""


class Notebook(Reporter):
    """Shows a run in the output of the cell that runs it."""

    def __init__(
        self,
        update: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._update = _displayed() if update is None else update
        self._clock = clock
        self._last = float("-inf")
        self._lock = threading.RLock()
        self._head = ""
        self._doing = ""
        self._rows: dict[str, _Row] = {}
        self._now: dict[str, str] = {}
        """The stage of each worker."""
        self._pauses = BetweenSteps(clock)
        self._stages: dict[str, StageProgress] = {}
        self._warned: list[str] = []
        self._noted: list[str] = []

    def close(self) -> None:
        """Show the last state."""
        with self._lock:
            self._doing = ""
        self._show(at_once=True)

    def run_started(self, plan: Plan, record: RunRecord, resumed: bool) -> None:
        verb = "goes on" if resumed else "begins"
        if record.status == "finished":
            verb = "was finished with these inputs"
        self._head = f"<b>{_text(record.id)}</b> {verb}: {_text(headline(plan))}"
        self._show(at_once=True)

    def doing(self, what: str) -> None:
        self._doing = what
        self._show()

    def sampling(self, progress: SamplingProgress) -> None:
        self._doing = f"{progress.what}: {how_far(progress)}"
        self._show()

    def stage_started(self, stage: PlannedStage, record: StageRecord, count: int) -> None:
        how = stage.method.name if stage.method else "evaluation"
        with self._lock:
            self._now[worker()] = stage.name
            self._pauses.known(stage, record)
            self._rows[stage.name] = _Row(stage.name, f"{how} from {stage.start}")
        self._show(at_once=True)

    def stage_reused(self, stage: PlannedStage, record: StageRecord) -> None:
        how = stage.method.name if stage.method else "evaluation"
        self._rows[stage.name] = _Row(stage.name, f"{how} from {stage.start}", "reused")
        self._show()

    def training(self, stage: PlannedStage, done: int, total: int) -> None:
        with self._lock:
            self._stages[stage.name] = StageProgress(done, stage, self._pauses)
            row = self._row(stage)
            row.step, row.total = done, total
        self._show()

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        with self._lock:
            name = self._now.get(worker(), "")
            if (row := self._rows.get(name)) is None:
                return
            training = self._stages.setdefault(name, StageProgress(pauses=self._pauses))
            training.add(metrics)
            row.step, row.total = number, total
            parts = [training.told(metrics)]
            parts += [f"{training.tokens:,.0f} tokens/s"] if training.tokens else []
            parts += [f"{left} left"] if (left := training.left(number, total)) else []
            row.told = ", ".join(parts)
            self._doing = ""
        self._show()

    def saved(self, resume: Resume) -> None:
        with self._lock:
            if (training := self._stages.get(self._now.get(worker(), ""))) is not None:
                training.saved(resume.step)

    def evaluating(self, planned: PlannedEval, when: str, what: str) -> None:
        self._pauses.evaluating()
        super().evaluating(planned, when, what)

    def evaluated(
        self, stage: PlannedStage, planned: PlannedEval, when: str, r: EvalResult
    ) -> None:
        with self._lock:
            self._doing = ""
            self._pauses.evaluated(planned)
            if (training := self._stages.get(stage.name)) is not None:
                training.evaluated()
            for name, estimate in r.metrics.items():
                label = report.metric_label(planned.name, planned.eval.name, name)
                value = report.show(estimate, name in report.SHARES)
                self._row(stage).results.setdefault(label, {})[when] = value
        self._show()

    def stage_finished(self, stage: PlannedStage, record: StageRecord) -> None:
        self._row(stage).state = f"done in {duration(record.seconds)}"
        self._show(at_once=True)

    def stage_failed(self, stage: PlannedStage, record: StageRecord) -> None:
        self._row(stage).state = f"failed: {record.error}"
        self._show(at_once=True)

    def stage_skipped(self, stage: PlannedStage, record: StageRecord) -> None:
        word = "left out" if record.status == "left_out" else "skipped"
        self._row(stage).state = f"{word}: {record.error}"
        self._show()

    def note(self, text: str) -> None:
        self._say(self._noted, text)

    def warning(self, text: str) -> None:
        self._say(self._warned, f"warning: {text}")

    def run_finished(self, record: RunRecord) -> None:
        self.close()

    def _row(self, stage: PlannedStage) -> _Row:
        how = stage.method.name if stage.method else "evaluation"
        return self._rows.setdefault(stage.name, _Row(stage.name, f"{how} from {stage.start}"))

    def _say(self, among: list[str], text: str) -> None:
        with self._lock:
            among.append(text)
        self._show()

    def _show(self, *, at_once: bool = False) -> None:
        with self._lock:
            now = self._clock()
            if at_once or now - self._last >= EVERY_S:
                self._last = now
                self._update(self.html())

    def html(self) -> str:
        """What the cell shows now."""
        rows = "".join(map(_line, self._rows.values()))
        doing = f"<div><i>{_text(self._doing)} …</i></div>" if self._doing else ""
        # Warnings first: no note takes the place of one.
        texts = [*self._warned, *self._noted]
        hidden = len(texts) - SHOWN_WARNINGS
        said = "".join(f"<div>{_text(text)}</div>" for text in texts[:SHOWN_WARNINGS])
        if hidden > 0:
            said += f"<div>and {hidden} more: result.record has them</div>"
        return (
            f'<div class="ptl-progress">{self._head}<table>{rows}</table>{doing}'
            f"<small>{said}</small></div>"
        )


def _line(row: _Row) -> str:
    bar = f'<progress value="{row.step}" max="{row.total}"></progress> ' if row.total else ""
    steps = f"step {row.step}/{row.total}" if row.total else ""
    results = "; ".join(
        f"{label} {' → '.join(values.values())}" for label, values in row.results.items()
    )
    told = ". ".join(text for text in (row.told, results, row.state) if text)
    cells = (f"<b>{_text(row.name)}</b>", _text(row.how), f"{bar}{steps}", _text(told))
    return "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"


def _text(text: str) -> str:
    return escape(plain(redact(text)))


def _displayed() -> Callable[[str], None]:
    """What replaces one output of the present cell by other HTML."""
    from IPython.display import HTML, display

    handle: Any = display(HTML(""), display_id=True)
    return lambda html: handle.update(HTML(html))
