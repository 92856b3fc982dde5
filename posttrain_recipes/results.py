"""What a run left, for notebooks and programs: tables, curves and samples as pandas frames, and the
before/after table with its intervals drawn."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from posttrain_recipes.planning import gates
from posttrain_recipes.planning.gates import Gate
from posttrain_recipes.records import Checkpoint, Estimate, Sample
from posttrain_recipes.reporting import plots, report
from posttrain_recipes.reporting.page import Pages
from posttrain_recipes.store import RunRecord, default_home

if TYPE_CHECKING:
    import pandas as pd

_STYLE = (
    "<style>.ptl-table .spread{width:150px}.ptl-table .grid{stroke:#9995}"
    ".ptl-table .whisker{stroke-width:2}.ptl-table .old{stroke:#888;fill:#888}"
    ".ptl-table .new{stroke:#2563eb;fill:#2563eb}.ptl-table td{white-space:nowrap}</style>"
)


@dataclass(frozen=True)
class StageResult:
    """What one stage left."""

    name: str
    checkpoint: Checkpoint | None
    before: Mapping[str, Mapping[str, Estimate]]
    """Eval name -> metric -> estimate, before training."""
    after: Mapping[str, Mapping[str, Estimate]]
    """The same after training, on the same records."""

    def __repr__(self) -> str:
        left = "no checkpoint" if self.checkpoint is None else f"step {self.checkpoint.step}"
        known = ", ".join(dict.fromkeys((*self.before, *self.after))) or "none"
        return f"StageResult({self.name}: {left}; evals: {known})"


@dataclass(frozen=True)
class Result:
    """What a run left. `result["sft"]` is a stage; printed, or shown in a notebook, it is the
    before/after table."""

    record: RunRecord

    @property
    def run_id(self) -> str:
        """The run's id, as `ptl show` takes it."""
        return self.record.id

    @property
    def status(self) -> str:
        """running, finished, failed, killed or stopped."""
        return self.record.status

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The last stage's checkpoint."""
        return self.record.stages[-1].checkpoint

    @property
    def stages(self) -> dict[str, StageResult]:
        """Every stage by name, in the recipe's order."""
        return {
            s.name: StageResult(
                s.name,
                s.checkpoint,
                {m.name: m.metrics for m in s.before},
                {m.name: m.metrics for m in s.after},
            )
            for s in self.record.stages
        }

    @property
    def gates(self) -> list[Gate]:
        """The bounds that the recipe sets with `expect:`, and whether they hold."""
        return gates.check(self.record)

    @cached_property
    def _pages(self) -> Pages:
        runs = self.record.home
        return Pages(default_home(None) if runs is None else runs.parent, self.record)

    def to_frame(self) -> pd.DataFrame:
        """The before/after table: a row for each stage, eval and metric.

        Columns: stage, eval, metric, n, before, before_low, before_high, after, after_low,
        after_high (95% intervals), change, p (of the paired test, adjusted by Holm; NaN without
        one) and verdict.
        """
        import pandas as pd

        rows = [
            {
                "stage": row.stage,
                "eval": row.eval,
                "metric": row.metric,
                "n": row.count,
                **_estimate("before", row.before),
                **_estimate("after", row.after),
                "change": row.change,
                "p": row.p,
                "verdict": row.verdict,
            }
            for row in report.rows(self.record)
        ]
        return pd.DataFrame(rows, columns=_COLUMNS)

    @property
    def curves(self) -> pd.DataFrame:
        """Metrics of every training step, one row each: stage, step, metric, value.

        `curves.pivot(index="step", columns="metric", values="value")` of one stage draws them.
        """
        import pandas as pd

        rows = [
            (stage.name, step, metric, value)
            for stage in self.record.stages
            for metric, series in self._pages.curves(stage).items()
            for step, value in series
        ]
        return pd.DataFrame(rows, columns=["stage", "step", "metric", "value"])

    @property
    def samples(self) -> pd.DataFrame:
        """The replies that evals kept: stage, eval, when (before or after), prompt, reply, answer,
        truncated and, for each score of a reply, a column `score/NAME`."""
        import pandas as pd

        columns = ["stage", "eval", "when", "prompt", "reply", "answer", "truncated"]
        rows = list(self._samples())
        scores = sorted({name for row in rows for name in row if name.startswith("score/")})
        return pd.DataFrame(rows, columns=[*columns, *scores])

    def _samples(self) -> Iterator[dict[str, Any]]:
        for stage in self.record.stages:
            for name in dict.fromkeys(m.name for m in (*stage.before, *stage.after)):
                for when in ("before", "after"):
                    for sample in self._pages.samples(stage, name, when):
                        yield {"stage": stage.name, "eval": name, "when": when, **_row(sample)}

    def __getitem__(self, stage: str) -> StageResult:
        found = self.stages
        if stage not in found:
            raise KeyError(f"{self.run_id} has no stage {stage!r}; there is: {', '.join(found)}")
        return found[stage]

    def __hash__(self) -> int:
        return hash(self.run_id)

    def __str__(self) -> str:
        table = report.rows(self.record)
        lines = [report.table(self.record), *report.notes(table)]
        if not table:
            lines = [report.nothing(self.record)]
        lines += [f"{'passed' if gate.passed else 'FAILED'}  {gate}" for gate in self.gates]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Result({self.run_id}: {self.status})"

    def _repr_html_(self) -> str:
        """The before/after table, its intervals drawn, for a notebook."""
        table = report.rows(self.record)
        cells = "".join(
            f"<tr><td>{html.escape(row.stage)}</td><td>{html.escape(row.label)}</td>"
            f"<td>{row.count}</td><td>{report.show(row.before, row.percent)}</td>"
            f"<td>{report.show(row.after, row.percent)}</td><td>{_drawn(row)}</td>"
            f"<td>{html.escape(report.show_change(row))}</td><td>{row.verdict}</td></tr>"
            for row in table
        )
        head = "".join(f"<th>{name}</th>" for name in _HEAD)
        said = report.notes(table) if table else [report.nothing(self.record)]
        notes = "".join(f"<div>{html.escape(note)}</div>" for note in said)
        drawn = f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>"
        named = html.escape(f"{self.run_id}: {self.status}")
        return (
            f'{_STYLE}<div class="ptl-table"><b>{named}</b>'
            f"{drawn if table else ''}"
            f"<small>{notes}</small></div>"
        )


_HEAD = ("stage", "eval", "n", "before", "after", "", "change", "verdict")
_COLUMNS = [
    *("stage", "eval", "metric", "n", "before", "before_low", "before_high"),
    *("after", "after_low", "after_high", "change", "p", "verdict"),
]


def _estimate(when: str, found: Estimate | None) -> dict[str, float | None]:
    values = (None, None, None) if found is None else (found.value, found.low, found.high)
    return dict(zip((when, f"{when}_low", f"{when}_high"), values, strict=True))


def _row(sample: Sample) -> dict[str, Any]:
    return {
        "prompt": "\n".join(message.content for message in sample.prompt),
        "reply": sample.completion,
        "answer": sample.answer,
        "truncated": sample.truncated,
        **{f"score/{name}": value for name, value in sample.scores.items()},
    }


def _drawn(row: report.TableRow) -> str:
    both = (row.before, row.after)
    return plots.intervals(both, *plots.scale(both, share=row.percent and row.metric != "cut_off"))
