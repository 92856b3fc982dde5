"""The results of a run: table rows, Markdown, JSON, and MLflow's parameters and tags."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from posttrain_recipes.planning import gates
from posttrain_recipes.records import Estimate
from posttrain_recipes.reporting import scores, statistics
from posttrain_recipes.reporting.statistics import Compared, Paired
from posttrain_recipes.shown import cell, code, line
from posttrain_recipes.shown import markdown as words
from posttrain_recipes.store import Measured, RunRecord, StageRecord

SHARES = frozenset((
    "exact_match", "preference_accuracy", "reward_accuracy", "win_rate", "cut_off", "success",
    "acc", "acc_norm", "prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose",
    "safety", "refusal", "over_refusal", *(f"pass_at_{k}" for k in range(1, 1025)),
))  # fmt: skip
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
    judged: Compared | None = None
    """The test of after against before; None: what the two tell, unpaired."""
    adjusted: float | None = None
    """Its p value, adjusted for the other tests of the table."""
    told: tuple[str, ...] = ()
    """What the eval says has to be known to read its numbers."""

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
    def said(self) -> Compared:
        """What the test says, or why there is none."""
        if self.judged is not None:
            return self.judged
        if self.before is None or self.after is None:
            return Compared(None)
        return statistics.compare(self.after, self.before, None, None)

    @property
    def tested(self) -> Paired | None:
        """The test of after against before, if there is one."""
        return self.said.tested

    @property
    def p(self) -> float:
        """The p value that decides, adjusted for the other tests of the table; NaN without one."""
        if self.adjusted is not None:
            return self.adjusted
        return self.tested.p if self.tested else math.nan

    @property
    def verdict(self) -> str:
        """better, worse, changed (neither way is better), same (not told apart) or, where nothing
        was tested, nothing."""
        return statistics.verdict(self.tested, self.p, self.higher_is_better)


def half(estimate: Estimate) -> float:
    """Half of its 95% interval; 0 where that is not known."""
    spread = (estimate.high - estimate.low) / 2
    return 0.0 if math.isnan(spread) else spread


def show(estimate: Estimate | None, percent: bool) -> str:
    """`72.3% ±5.4`, or `1.842 ±0.051`; a dash where there is nothing. A single record has no ±.

    A share of none or of all has an interval to one side: `0.0% +4.6`, `100.0% -4.6`.
    """
    if estimate is None:
        return "-"
    value = show_value(estimate.value, percent)
    if math.isnan(estimate.low):
        return value
    spread = half(estimate)
    if percent and estimate.value in (0, 1) and spread:
        return f"{value} {'-' if estimate.value else '+'}{200 * spread:.1f}"
    return f"{value} ±{100 * spread:.1f}" if percent else f"{value} ±{spread:.3f}"


def show_value(value: float, percent: bool) -> str:
    """`72.3%`, or `1.842`."""
    return f"{100 * value:.1f}%" if percent else f"{value:.3f}"


def show_paired(found: Paired | None, percent: bool) -> str:
    """`+3.1 ±2.0`, in points for shares; empty where nothing was tested."""
    if found is None:
        return ""
    factor, digits = (100, 1) if percent else (1, 3)
    spread = (found.high - found.low) / 2
    tail = "" if math.isnan(spread) else f" ±{factor * spread:.{digits}f}"
    return f"{factor * found.difference:+.{digits}f}{tail}"


def show_p(p: float) -> str:
    """A p value; a dash where nothing was tested."""
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
    table = [[line(cell) for cell in row] for row in table]
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
    """`+34.4 ±5.1`, in points for shares; a dash where before and after are of other records."""
    if row.change is None:
        return ""
    if row.tested:
        return show_paired(row.tested, row.percent)
    if row.said.why == statistics.OTHER_RECORDS:
        return "-"
    return f"{100 * row.change:+.1f}" if row.percent else f"{row.change:+.3f}"


def rows(record: RunRecord) -> list[TableRow]:
    """Every metric of every stage, in the recipe's order, with what is to be said of its change;
    p values are adjusted for all tests of the table (Holm)."""
    found = [row for stage in record.stages for row in stage_rows(record, stage)]
    return [
        replace(row, adjusted=None if math.isnan(p) else p)
        for row, p in zip(found, statistics.holm([row.p for row in found]), strict=True)
    ]


def stage_rows(record: RunRecord, stage: StageRecord) -> list[TableRow]:
    """Every metric of one stage."""
    before = {m.fingerprint: m for m in stage.before}
    after = {m.fingerprint: m for m in stage.after} if stage.method else {}
    found = []
    for fingerprint in dict.fromkeys((*before, *after)):
        old, new = before.get(fingerprint), after.get(fingerprint)
        measured = [one for one in (old, new) if one]
        olds, news = (
            scores.load(record, stage, one, when) if old and new and one else {}
            for one, when in ((old, "before"), (new, "after"))
        )
        for metric in dict.fromkeys(metric for one in measured for metric in one.metrics):
            then, now = _estimate(old, metric), _estimate(new, metric)
            judged = Compared(None)
            if not all(one.tested for one in measured):
                judged = Compared(None, statistics.READ)
            elif then and now:
                judged = statistics.compare(now, then, news.get(metric), olds.get(metric))
            found.append(
                TableRow(
                    stage.name,
                    measured[0].name,
                    metric,
                    metric_label(measured[0].name, measured[0].eval, metric),
                    then,
                    now,
                    measured[-1].higher_is_better.get(metric, True),
                    metric in SHARES,
                    judged,
                    told=tuple(dict.fromkeys(text for one in measured for text in one.notes)),
                )
            )
    return found


def nothing(record: RunRecord) -> str:
    """Why a run has no table."""
    if record.status == "finished":
        return "This recipe has no evals."
    return f"Nothing was measured: the run is {record.status}."


def notes(table: Sequence[TableRow]) -> list[str]:
    """What has to be known to read the table: sentences for below it."""
    stages: dict[str, set[str]] = {}
    for row in table:
        stages.setdefault(row.label, set()).add(row.stage)

    def named(some: Sequence[TableRow]) -> str:
        return ", ".join(
            f"{row.label} of {row.stage}" if len(stages[row.label]) > 1 else row.label
            for row in some
        )

    tested = [row.tested for row in table if row.tested]
    found = ["± is half of a 95% confidence interval."]
    if any(
        e and row.percent and e.value in (0, 1) for row in table for e in (row.before, row.after)
    ):
        found.append("+ or - after a share of 0% or 100% is its interval, which goes one way.")
    if tested:
        pairs = "in pairs, record by record" if any(t.paired for t in tested) else "unpaired"
        several = f", adjusted for the {len(tested)} tests of this table (Holm)"
        found.append(
            f"A change is tested {pairs}. better, worse, changed: p < 0.05"
            f"{several if len(tested) > 1 else ''}; same: not told apart."
        )
    if alone := [row for row in table if row.tested and not row.tested.paired]:
        found.append(
            f"Unpaired, which sees less, because the run kept no scores by record: {named(alone)}."
        )
    for row in table:
        if row.tested and row.tested.left_out:
            found.append(
                f"{named([row])}: tested on {row.tested.count} records; "
                f"{row.tested.left_out} have no value before or after."
            )
    found += dict.fromkeys(f"{row.eval}: {text}." for row in table for text in row.told)
    untested: dict[str, list[TableRow]] = {}
    if read := dict.fromkeys(row.eval for row in table if row.said.why == statistics.READ):
        found.append(f"Replies to read, not tested: {', '.join(read)}.")
    for row in table:
        if row.said.why not in ("", statistics.READ):
            untested.setdefault(row.said.why, []).append(row)
    return found + [f"No verdict ({why}): {named(there)}." for why, there in untested.items()]


def metric_label(name: str, eval_name: str, metric: str) -> str:
    """What tables call a metric: an eval's main metric has the plugin's own name."""
    return name if metric in (name, eval_name) else f"{name} {metric}"


def _estimate(measured: Measured | None, metric: str) -> Estimate | None:
    return measured.metrics.get(metric) if measured else None


def table(record: RunRecord) -> str:
    """The before/after table as plain text, as `ptl run` prints it; empty where there is none."""
    lines: list[tuple[str, ...]] = [("stage", "eval", "n", "before", "after", "change", "")]
    for row in rows(record):
        before, after = (show(e, row.percent) for e in (row.before, row.after))
        change = show_change(row)
        lines.append((row.stage, row.label, str(row.count), before, after, change, row.verdict))
    if len(lines) == 1:
        return ""
    if not any(stage.method for stage in record.stages):
        lines = [("stage", "eval", "n", "value"), *(row[:4] for row in lines[1:])]
    return columns(lines, right=(2, 3, 4, 5, 6))


def markdown(record: RunRecord) -> str:
    """The before/after table, results first."""
    lines = [
        "| stage | eval | n | before | after | change | p | |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    found = rows(record)
    for row in found:
        lines.append(
            f"| {cell(row.stage)} | {cell(row.label)} | {row.count} "
            f"| {show(row.before, row.percent)} | {show(row.after, row.percent)} "
            f"| {show_change(row)} | {show_p(row.p)} | {row.verdict} |"
        )
    if len(lines) == 2:
        lines = [nothing(record)]
    for gate in gates.check(record):
        lines += ["", f"{'Passed' if gate.passed else '**Failed**'}: {words(str(gate))}."]
    lines += [
        "",
        *(["\n".join(map(words, notes(found))), ""] if found else []),
        f"Recipe {code(record.recipe)}, model {code(record.model)}, engine {code(record.engine)}, "
        f"seed {record.seed}" + (f", preset {code(record.preset)}" if record.preset else "") + ".",
        "Again: " + code(f"ptl reproduce {record.id}"),
    ]
    return "\n".join(lines)


def as_json(record: RunRecord) -> dict[str, Any]:
    """Everything about a run, as `--json` prints it."""
    data = asdict(record)
    del data["home"]
    found = rows(record)
    data["table"] = [
        {**asdict(row), "change": row.change, "p": row.p, "verdict": row.verdict} for row in found
    ]
    data["notes"] = notes(found)
    checked = gates.check(record)
    data["gates"] = [asdict(gate) for gate in checked]
    data["passed"] = all(gate.passed for gate in checked)
    return known(data)


def known(value: Any) -> Any:
    """The same as JSON can hold it: null for a number that is not one, such as an end of an
    interval that is not known."""
    if isinstance(value, dict):
        return {key: known(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [known(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        params.update({f"{name}_from": f"auto: {why}" for name, why in stage.auto.items()})
    params.update({f"lora_{key}": value for key, value in stage.lora.model_dump().items()})
    for planned in stage.evals:  # whose length may follow from the data, where no recipe tells it
        if (tokens := getattr(planned.eval.config, "max_tokens", None)) is not None:
            params[f"{planned.name}.max_tokens"] = tokens
    return params
