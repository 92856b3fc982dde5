"""What a run found, as rows, Markdown and JSON."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict, dataclass
from typing import Any

from posttrain_recipes.records import Estimate
from posttrain_recipes.store import Measured, RunRecord, StageRecord

SHARES = ("exact_match", "preference_accuracy", "cut_off")
"""Metrics that are shares and read best in percent."""


@dataclass(frozen=True)
class Row:
    """One metric of one eval, before and after a stage."""

    stage: str
    eval: str
    metric: str
    label: str
    """The eval's name; the metric's too where it is not the eval's main one."""
    before: Estimate | None
    after: Estimate | None
    higher_is_better: bool
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
        """better, worse, or same: within the noise of the two intervals."""
        if self.before is None or self.after is None or self.change is None:
            return ""
        noise = math.hypot(_half(self.before), _half(self.after))
        if not abs(self.change) > noise:
            return "same"
        return "better" if (self.change > 0) == self.higher_is_better else "worse"


def _half(estimate: Estimate) -> float:
    half = (estimate.high - estimate.low) / 2
    return 0.0 if math.isnan(half) else half


def show(estimate: Estimate | None, percent: bool) -> str:
    """`72.3% ±5.4`, or `1.842 ±0.051`; a dash where there is nothing."""
    if estimate is None:
        return "-"
    half = _half(estimate)
    if percent:
        return f"{100 * estimate.value:.1f}% ±{100 * half:.1f}"
    return f"{estimate.value:.3f} ±{half:.3f}"


def show_change(row: Row) -> str:
    """`+34.4`, in points for shares."""
    if row.change is None:
        return ""
    return f"{100 * row.change:+.1f}" if row.percent else f"{row.change:+.3f}"


def rows(record: RunRecord) -> list[Row]:
    """Every metric of every stage, in the recipe's order."""
    return [row for stage in record.stages for row in stage_rows(stage)]


def stage_rows(stage: StageRecord) -> list[Row]:
    """Every metric of one stage."""
    before = {m.fingerprint: m for m in stage.before}
    after = {m.fingerprint: m for m in stage.after}
    found = []
    for fingerprint, measured in {**before, **after}.items():
        for metric in measured.metrics:
            found.append(
                Row(
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
    return data


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
