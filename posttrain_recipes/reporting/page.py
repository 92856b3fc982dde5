"""Writes `report.html` and `report.md`: a self-contained page of a run's results."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_recipes import shown, store
from posttrain_recipes.language.expansion import origins
from posttrain_recipes.planning import costs, gates
from posttrain_recipes.planning.pricing import duration, show_usd
from posttrain_recipes.records import PerRecord, Sample
from posttrain_recipes.reporting import comparisons, plots, report, scores
from posttrain_recipes.reporting.billed import told
from posttrain_recipes.reporting.comparisons import Cell, Table
from posttrain_recipes.reporting.overlaid import overlaid
from posttrain_recipes.reporting.report import TableRow
from posttrain_recipes.shown import plain
from posttrain_recipes.store import Measured, RunRecord, StageRecord, Store
from posttrain_recipes.tracking import curves
from posttrain_recipes.tracking.mirror import remote_id

if TYPE_CHECKING:
    from jinja2 import Environment

SHOWN_SAMPLES = 8
"""Prompts of an eval that are shown; those whose score changed come first."""
LONGEST_REPLY = 1200
"""Characters of a reply that are shown."""
ENVIRONMENT = "environment.json"
PACKAGES = ("posttrain-recipes", "tinker", "torch", "transformers", "mlflow", "numpy")
MAIN_CURVES = (
    "reward/mean",
    "groups/zero_variance_share",
    "completions/clipped_ratio",
    "train/loss",
    "rewards/margins",
    "rewards/accuracies",
    "kl",
    "policy/kl_reference",
    "policy/entropy",
    "entropy",
    "completions/mean_length",
    "train/grad_norm",
    "train/learning_rate",
)
"""Curves that are shown at once; the others are folded away."""
PARTS = "reward/parts/"
"""Curves that are drawn together: a learned reward that goes on rising while another part does not
is one that is being over-optimized."""


def environment() -> dict[str, str]:
    """What a run runs in, for whoever repeats it."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cpu = _cpu()
    return {**found, "processor": cpu} if cpu else found


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


@dataclass(frozen=True)
class Exchange:
    """One prompt and what was replied to it before and after a stage."""

    prompt: str
    answer: str | None
    before: Sample | None
    after: Sample | None
    metric: str | None = None
    """The score that tells which is better; None: the sum of all of them."""
    higher_is_better: bool | None = True

    @property
    def change(self) -> str:
        """better, worse, changed or same, by the score and then by the words."""
        if self.before is None or self.after is None:
            return ""
        old, new = self._score(self.before), self._score(self.after)
        if old is not None and new is not None and self.higher_is_better is not None and old != new:
            return "better" if (new > old) == self.higher_is_better else "worse"
        return "same" if self.before.completion == self.after.completion else "changed"

    def _score(self, sample: Sample) -> float | None:
        if self.metric and self.metric in sample.scores:
            return sample.scores[self.metric]
        return sum(sample.scores.values()) if sample.scores else None


class Pages:
    """The pages of one run."""

    def __init__(self, home: Path, record: RunRecord) -> None:
        self.home = home
        self.record = record
        self.store = Store(home)
        self.path = self.store.path(record.id)

    def write(self) -> tuple[Path, Path]:
        """Write both beside the run; returns where they are."""
        remembered = self.path / ENVIRONMENT
        if not remembered.is_file():
            store.write_atomic(remembered, json.dumps(environment(), indent=1))
        paths = self.path / "report.html", self.path / "report.md"
        for path, text in zip(paths, (self.html(), self.markdown()), strict=True):
            store.write_atomic(path, text)
        return paths

    def html(self) -> str:
        """The page."""
        return plain(templates().get_template("report.html").render(**self._content()))

    def markdown(self) -> str:
        """The same in Markdown, without drawings."""
        return plain(templates().get_template("report.md").render(**self._content()))

    def samples(self, stage: StageRecord, name: str, when: str = "after") -> Sequence[Sample]:
        """What an eval saw before or after a stage, wherever that was measured."""
        for measured in (m for m in (*stage.after, *stage.before) if m.name == name):
            for run, stage_name, eval_name in scores.places(self.record, stage, measured):
                found = store.load_samples(run, stage_name, eval_name, when)
                if found:
                    return found
        return []

    def scores(self, stage: StageRecord, measured: Measured) -> Mapping[str, PerRecord]:
        """What the metrics of an eval after a stage are the means of, record by record."""
        return scores.load(self.record, stage, measured, "after")

    def curves(self, stage: StageRecord) -> dict[str, curves.Series]:
        """A stage's metrics over its steps, wherever it was trained."""
        found = curves.read(self.path, stage.name)
        if not found and stage.reused_from:
            return curves.read(self.store.path(stage.reused_from), stage.name)
        return found

    def _content(self) -> dict[str, Any]:
        record = self.record
        known = {origin.name: origin for origin in origins(record.resolved)}
        remembered = self.path / ENVIRONMENT
        made_in = (
            json.loads(remembered.read_text(encoding="utf-8"))
            if remembered.is_file()
            else environment()
        )
        table = report.rows(record)
        groups = [(g, comparisons.tables(g, self.scores)) for g in comparisons.groups(record)]
        return {
            "record": record,
            "description": record.resolved.get("description", ""),
            "rows": table,
            "notes": report.notes(table),
            "nothing": report.nothing(record),
            "gates": gates.check(record),
            "groups": groups,
            "overlaid": list(overlaid(record, self.curves, MAIN_CURVES)),
            "stages": [self._stage(stage, known) for stage in record.stages],
            "totals": self._totals(),
            "environment": made_in,
            "recipe": report.resolved_yaml(record.resolved),
            "command": command(record),
            "tracked": remote_id(self.path) or (record.tracking_id, record.tracking_uri),
            "folded": len(record.stages) > 6,
        }

    def _totals(self) -> dict[str, str]:
        stages = self.record.stages
        own = [stage for stage in stages if stage.status != "reused"]
        found = {
            "stages": str(len(stages)),
            "steps": f"{sum(stage.total_steps for stage in stages):,}",
            "tokens trained on": f"{sum(stage.tokens for stage in stages):,}",
            "time": duration(sum(stage.seconds for stage in own)),
        }
        used = [stage.spent for stage in own]
        sampled = sum(spent.sample for spent in used)
        if sampled:
            found["tokens sampled"] = f"{sampled:,}"
        billed = [stage.usd for stage in own if stage.usd is not None]
        if billed:
            found["cost, by the table of prices"] = show_usd(sum(billed))
        if account := told(self.record):
            found["billed"] = account
        return found

    def _stage(self, stage: StageRecord, known: Mapping[str, Any]) -> dict[str, Any]:
        measured = measured_during(stage)
        series = {**measured, **self.curves(stage)}
        first = [*measured, *(name for name in MAIN_CURVES if name in series)]
        first += [n for n in series if n.startswith(("reward/", "eval/")) and n not in first]
        rest = [name for name in series if name not in first]
        origin = known.get(stage.name)
        return {
            "record": stage,
            "label": origin.label if origin else "",
            "took": costs.took(stage),
            "options": _options(stage),
            "curves": list(_drawings({name: series[name] for name in first})),
            "more_curves": [(name, plots.curves({name: series[name]})) for name in rest],
            "exchanges": list(self._exchanges(stage)),
        }

    def _exchanges(self, stage: StageRecord) -> Iterator[tuple[str, int, list[Exchange]]]:
        for measured in stage.after or stage.before:
            before, after = (self.samples(stage, measured.name, w) for w in ("before", "after"))
            if not before and not after:
                continue
            pairs = [
                Exchange(
                    (new or old).prompt[-1].content if (new or old).prompt else "",
                    (new or old).answer,
                    old,
                    new,
                    measured.main,
                    measured.higher_is_better.get(measured.main or "", True),
                )
                for old, new in _zip(before, after)
            ]
            order = {"better": 0, "worse": 0, "changed": 1, "same": 2, "": 3}
            # Of those that changed, both directions: a page that shows gains alone misleads.
            pairs.sort(key=lambda pair: order[pair.change])
            yield measured.name, len(pairs), _mixed(pairs)


def measured_during(stage: StageRecord) -> dict[str, curves.Series]:
    """What evals in the middle of a stage found, by metric, from its start to its last step."""
    found: dict[str, dict[int, float]] = {}
    names = {one.fingerprint for one in stage.during}
    at_end = stage.checkpoint is not None and stage.checkpoint.step == stage.total_steps
    ends = [(one, stage.total_steps) for one in stage.after] if at_end else []
    for one, step in (
        *((one, 0) for one in stage.before),
        *((one, one.step or 0) for one in stage.during),
        *ends,
    ):
        for metric, estimate in one.metrics.items() if one.fingerprint in names else ():
            label = report.metric_label(one.name, one.eval, metric)
            found.setdefault(f"eval/{label}", {})[step] = estimate.value
    return {name: sorted(points.items()) for name, points in found.items()}


def _drawings(series: Mapping[str, curves.Series]) -> Iterator[tuple[str, list[str], str]]:
    """Of each drawing its title, the names of its curves if it has several, and itself."""
    parts = [name for name in series if name.startswith(PARTS)]
    together = parts if len(parts) > 1 else []
    for name in series:
        if name not in together:
            yield name, [], plots.curves({name: series[name]})
        elif name == together[0]:
            keys = [part.removeprefix(PARTS) for part in together]
            drawing = plots.curves({part: series[part] for part in together})
            yield PARTS.rstrip("/"), keys, drawing


def _zip(before: Sequence[Sample], after: Sequence[Sample]) -> Iterator[tuple[Any, Any]]:
    if before and after:
        yield from zip(before, after, strict=False)
    else:
        for sample in before or after:
            yield (sample, None) if before else (None, sample)


def _mixed(pairs: Sequence[Exchange]) -> list[Exchange]:
    """The first few, with at least some of what got worse where anything did."""
    worse = [pair for pair in pairs if pair.change == "worse"][: SHOWN_SAMPLES // 4]
    others = [pair for pair in pairs if pair not in worse][: SHOWN_SAMPLES - len(worse)]
    return [*others, *worse]


def _options(stage: StageRecord) -> dict[str, str]:
    method = stage.inputs.get("method") or {}
    found = {**(method.get("config") or {})}
    found |= {f"lora {k}": v for k, v in (stage.inputs.get("lora") or {}).items()}
    if "seed" in stage.inputs:
        found["seed"] = stage.inputs["seed"]
    return {key: report.plain(value) for key, value in found.items() if value is not None}


def command(record: RunRecord) -> str:
    """What runs the recipe's file again; empty for one that came from a program or a pipe."""
    if record.path == "-":
        return ""
    preset = f" --preset {record.preset}" if record.preset else ""
    return f"ptl run {record.path}{preset} --fresh"


# --- what templates call -------------------------------------------------------------------------


@cache
def templates() -> Environment:
    """The templates of all pages, with what they call."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Everything that is put into the page is escaped: replies are whatever a model wrote.
    made = Environment(
        loader=PackageLoader("posttrain_recipes"),
        autoescape=lambda name: bool(name) and str(name).endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        estimate=report.show,
        comparison_notes=comparisons.notes,
        together=comparisons.together,
        change=report.show_change,
        duration=duration,
        cut=_cut,
        cell=shown.cell,
        words=shown.markdown,
        code=shown.code,
        fenced=lambda text: shown.line(text).replace("`", "'"),
        row_spread=_row_spread,
        cell_spread=_cell_spread,
        tests_of=_tests_of,
        p_value=report.show_p,
        paired=lambda cell, percent: report.show_paired(cell.against, percent),
        percent=lambda metric: metric in report.SHARES,
    )
    return made


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_REPLY else text[:LONGEST_REPLY] + " …"


def _row_spread(row: TableRow) -> Any:
    from markupsafe import Markup

    both = (row.before, row.after)
    low, high = plots.scale(both, share=row.percent and row.metric != "cut_off")
    return Markup(plots.intervals(both, low, high))


def _tests_of(tables: Sequence[Table]) -> list[str]:
    found = (c.against.test for table in tables for c in table.cells if c.against)
    return list(dict.fromkeys(found))


def _cell_spread(cell: Cell, tables: Sequence[Table]) -> Any:
    """Drawn to one scale with all that stands in one table of the page."""
    from markupsafe import Markup

    every = [other.estimate for table in tables for other in table.cells]
    low, high = plots.scale(every, share=False)
    return Markup(plots.intervals([cell.estimate], low, high))
