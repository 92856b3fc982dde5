"""The results of a run: table rows, Markdown, JSON, and MLflow's parameters and tags."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from posttrain_recipes.planning import gates
from posttrain_recipes.records import Estimate
from posttrain_recipes.reporting.statistics import Paired
from posttrain_recipes.store import Measured, RunRecord, StageRecord

SHARES = ("exact_match", "preference_accuracy", "reward_accuracy", "win_rate", "cut_off", "success")
"""Metrics that are shares and read best in percent."""


@dataclass(frozen=True)
class TableRow:
    """One metric of one eval, before and after a stage."""

    stage: str
    eval: str
    metric: str
    label: str
    """The eval's name; the metric's too where it is not the eval's main one."""
    before: Estimate | None
    after: Estimate | None
    higher_is_better: bool | None
    percent: bool

    @property
    def count(self) -> int:
        """Records that it was measured on."""
        estimate = self.after or self.before
        return estimate.count if estimate else 0

    @property
    def change(self) -> float | None:
        """After minus before."""
        if self.before is None or self.after is None:
            return None
        return self.after.value - self.before.value

    @property
    def verdict(self) -> str:
        """better, worse, changed (neither way is better) or same (within both intervals' noise)."""
        if self.before is None or self.after is None or self.change is None:
            return ""
        noise = math.hypot(half(self.before), half(self.after))
        if not abs(self.change) > noise:
            return "same"
        if self.higher_is_better is None:
            return "changed"
        return "better" if (self.change > 0) == self.higher_is_better else "worse"


def half(estimate: Estimate) -> float:
    """Half of its 95% interval; 0 where that is not known."""
    spread = (estimate.high - estimate.low) / 2
    return 0.0 if math.isnan(spread) else spread


def show(estimate: Estimate | None, percent: bool) -> str:
    """`72.3% ±5.4`, or `1.842 ±0.051`; a dash where there is nothing."""
    if estimate is None:
        return "-"
    spread = half(estimate)
    if percent:
        return f"{100 * estimate.value:.1f}% ±{100 * spread:.1f}"
    return f"{estimate.value:.3f} ±{spread:.3f}"


def show_paired(found: Paired | None, percent: bool) -> str:
    """`+3.1 ±2.0`, in points for shares; empty where nothing was tested."""
    if found is None:
        return ""
    factor, digits = (100, 1) if percent else (1, 3)
    spread = (found.high - found.low) / 2
    tail = "" if math.isnan(spread) else f" ±{factor * spread:.{digits}f}"
    return f"{factor * found.difference:+.{digits}f}{tail}"


def show_p(p: float) -> str:
    """A p value; a dash where no test can judge."""
    if math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def plain(value: Any) -> str:
    """A value of a recipe as a person writes it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def columns(table: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of text under one another; the columns `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join(lines)


def show_change(row: TableRow) -> str:
    """`+34.4`, in points for shares."""
    if row.change is None:
        return ""
    return f"{100 * row.change:+.1f}" if row.percent else f"{row.change:+.3f}"


def rows(record: RunRecord) -> list[TableRow]:
    """Every metric of every stage, in the recipe's order."""
    return [row for stage in record.stages for row in stage_rows(stage)]


def stage_rows(stage: StageRecord) -> list[TableRow]:
    """Every metric of one stage."""
    before = {m.fingerprint: m for m in stage.before}
    after = {m.fingerprint: m for m in stage.after}
    found = []
    for fingerprint, measured in {**before, **after}.items():
        for metric in measured.metrics:
            found.append(
                TableRow(
                    stage.name,
                    measured.name,
                    metric,
                    metric_label(measured.name, measured.eval, metric),
                    _estimate(before.get(fingerprint), metric),
                    _estimate(after.get(fingerprint), metric) if stage.method else None,
                    measured.higher_is_better.get(metric, True),
                    metric in SHARES,
                )
            )
    return found


def metric_label(name: str, eval_name: str, metric: str) -> str:
    """What tables call a metric: an eval's main metric has the plugin's own name."""
    return name if metric in (name, eval_name) else f"{name} {metric}"


def _estimate(measured: Measured | None, metric: str) -> Estimate | None:
    return measured.metrics.get(metric) if measured else None


def markdown(record: RunRecord) -> str:
    """The before/after table, results first."""
    lines = ["| stage | eval | n | before | after | change | |", "|---|---|--:|--:|--:|--:|---|"]
    for row in rows(record):
        lines.append(
            f"| {row.stage} | {row.label} | {row.count} | {show(row.before, row.percent)} "
            f"| {show(row.after, row.percent)} | {show_change(row)} | {row.verdict} |"
        )
    if len(lines) == 2:
        lines = ["This recipe has no evals."]
    for gate in gates.check(record):
        lines += ["", f"{'Passed' if gate.passed else '**Failed**'}: {gate}."]
    lines += [
        "",
        "± is half of a 95% confidence interval; *same* means within the noise of both.",
        f"Recipe `{record.recipe}`, model `{record.model}`, engine `{record.engine}`, "
        f"seed {record.seed}" + (f", preset `{record.preset}`" if record.preset else "") + ".",
        f"Again: `ptl run {record.path}"
        + (f" --preset {record.preset}`" if record.preset else "`"),
    ]
    return "\n".join(lines)


def as_json(record: RunRecord) -> dict[str, Any]:
    """Everything about a run, as `--json` prints it."""
    data = asdict(record)
    data["table"] = [
        {**asdict(row), "change": row.change, "verdict": row.verdict} for row in rows(record)
    ]
    checked = gates.check(record)
    data["gates"] = [asdict(gate) for gate in checked]
    data["passed"] = all(gate.passed for gate in checked)
    return data


def spent(stage: StageRecord) -> dict[str, float]:
    """What a stage took, as metrics: tokens by what was done with them, and dollars if billed."""
    used = stage.spent
    found = {f"usage/{kind}_tokens": getattr(used, kind) for kind in ("train", "prefill", "sample")}
    if stage.usd is not None:
        found["usage/usd"] = stage.usd
    return found


def resolved_yaml(resolved: dict[str, Any]) -> str:
    """The resolved recipe as YAML; `${env:NAME}` stands in it as written."""
    import yaml

    return yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)


def run_params(record: RunRecord) -> dict[str, Any]:
    """What the parent run of a recipe is called by in MLflow."""
    return {
        "recipe": record.recipe,
        "model": record.model,
        "engine": record.engine,
        "seed": record.seed,
        "preset": record.preset or "-",
        "stages": " -> ".join(stage.name for stage in record.stages),
    }


def run_tags(record: RunRecord) -> dict[str, str]:
    """What a run can be searched for by in MLflow."""
    return {
        "ptl.run": record.id,
        "ptl.version": record.version,
        "ptl.fingerprint": record.fingerprint,
        "ptl.python": platform.python_version(),
    }


def gate_tags(record: RunRecord) -> dict[str, str]:
    """Whether the recipe's bounds hold, to search for in MLflow; nothing where it sets none."""
    checked = gates.check(record)
    if not checked:
        return {}
    failed = "; ".join(str(gate) for gate in checked if not gate.passed)
    return {"ptl.gates": "failed" if failed else "passed", "ptl.gates.failed": failed or "-"}


def stage_params(stage: Any) -> dict[str, Any]:
    """A stage's options as parameters: the method's own names, the adapter's with `lora_`."""
    params: dict[str, Any] = {"seed": stage.seed, "init_from": stage.start}
    if stage.method is not None:
        params["method"] = stage.method.name
        params.update(stage.method.config.model_dump(mode="json"))
        # What came from the environment is told by its name, never by its value.
        params.update({k: v for k, v in stage.written.items() if "${env:" in str(v)})
    params.update({f"lora_{key}": value for key, value in stage.lora.model_dump().items()})
    return params
