"""The report of a run: what stands on the page, and that nothing a model wrote becomes markup."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy import stats

from posttrain_recipes import store
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.planning.pricing import duration
from posttrain_recipes.records import Checkpoint, Estimate, EvalResult, Message, Sample
from posttrain_recipes.reporting import comparisons, plots, statistics
from posttrain_recipes.reporting.comparing import Comparison
from posttrain_recipes.reporting.page import Pages
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import RunRecord, Spent, Store
from posttrain_recipes.tracking import curves
from posttrain_recipes.tracking.curves import CurveWriter
from posttrain_recipes.training.intervals import proportion
from posttrain_recipes.training.rl.metrics import batch_metrics
from posttrain_recipes.training.rl.rollout import Group, Rollout, Segment
from tests.conftest import Project

RECIPE = """\
name: demo
description: Two <i>losses</i>.
model: ./model
stages:
  - name: losses
    seeds: [0, 1, 2]
    eval: [{use: exact_match, name: held_out, dataset: {use: jsonl, path: questions.jsonl}}]
    compare:
      - name: dpo
        dataset: {use: jsonl, path: pairs.jsonl}
        method: {use: dpo}
      - name: ipo
        dataset: {use: jsonl, path: pairs.jsonl}
        method: {use: dpo, loss: ipo}
"""
HOSTILE = "<script>alert(1)</script><img src=x onerror=y>\n| `[a](http://x) \u2028"


def samples(right: list[bool], reply: str = "4") -> tuple[Sample, ...]:
    return tuple(
        Sample((Message("user", f"2+{i}?"),), reply, "4", {"exact_match": float(hit)})
        for i, hit in enumerate(right)
    )


def finish(home: Path, plan: Plan, shares: dict[str, list[bool]], reply: str = "4") -> RunRecord:
    """A run as it would stand had its stages found these hits on `held_out`."""
    kept = Store(home)
    record = new_record(plan, kept.next_id(plan.name))
    with kept.open(record) as directory:
        for stage, planned in zip(record.stages, plan.stages, strict=True):
            stage.status, stage.total_steps, stage.tokens, stage.seconds = "finished", 3, 100, 2.0
            stage.checkpoint = Checkpoint("m", "tinker://a/weights/b", "tinker://a/s/b", 3)
            stage.training, stage.usd = Spent(2.0, 100, 0, 2000), 0.25
            right = shares[stage.name]
            for when, hits in (("before", [False] * len(right)), ("after", right)):
                found = samples(hits, reply)
                result = EvalResult({"exact_match": proportion(sum(hits), len(hits))}, found)
                directory.save_samples(stage.name, "held_out", when, found)
                (e,) = planned.evals
                kind = store.measured(e.name, e.eval.name, e.fingerprint, "q.jsonl", result)
                getattr(stage, when).append(kind)
            writer = CurveWriter(directory.path, stage.name)
            for step in (1, 2, 3):
                writer.add(step, {"train/loss": 1 / step, "kl": math.nan})
            writer.close()
        record.status = "finished"
        directory.save()
    return record


@pytest.fixture
def home(project: Project) -> Path:
    return project.path / "home"


@pytest.fixture
def run(project: Project, home: Path) -> RunRecord:
    plan = project.plan(RECIPE)
    rates = {"dpo": (5, 6, 7), "ipo": (7, 8, 9)}
    shares = {
        f"{name}@seed={seed}": [i < hits for i in range(10)]
        for name, found in rates.items()
        for seed, hits in enumerate(found)
    }
    return finish(home, plan, shares, HOSTILE)


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.outside += [v or "" for k, v in attrs if k in ("src", "href", "style", "onerror")]


def test_what_a_model_wrote_stays_text(home: Path, run: RunRecord) -> None:
    html = Pages(home, run).html()
    tags = Tags(html)
    assert not {"script", "img", "link", "iframe"} & set(tags.found)
    assert tags.outside == [], "nothing is fetched"
    assert "&lt;script&gt;alert(1)" in html
    assert "Two &lt;i&gt;losses&lt;/i&gt;." in html
    assert not re.search(r"url\(|@import|https?://(?!x\))", html)
    lines = Pages(home, run).markdown().split("\n")
    replies = [line for line in lines if "alert(1)" in line]
    assert replies
    assert all("<script" not in line and line.count(" | ") == 2 for line in replies)
    assert all("\\[a](http" in line for line in replies)


def test_the_page_tells_all_of_a_run(home: Path, run: RunRecord) -> None:
    html, markdown = (path.read_text() for path in Pages(home, run).write())
    for text in (html, markdown):
        assert "Comparison: losses" in text
        assert "dpo@seed=0" in text
        assert "50.0% ±26.3" in text, "before and after with intervals"
        assert "80.0% ±24.8" in text, "over seeds: t(2) times the standard error"
        assert "sign test, 3 seeds, all alike" in text
        assert "ptl reproduce demo-1" in text
        assert "12,000" in text, "tokens sampled in all"
        assert "$1.50" in text
        assert "2,100 tokens, 2 s, $0.25" in text
    assert html.count("<polyline") == 6 + 6, "of each stage, and of all of them over one another"
    assert "kl" not in html.split("<h2>Stages</h2>")[1].split("options")[0]
    assert json.loads((Store(home).path("demo-1") / "environment.json").read_text())["python"]


def test_arms_are_compared_over_seeds(home: Path, run: RunRecord) -> None:
    (group,) = comparisons.groups(run)
    assert {arm: list(seeds) for arm, seeds in group.arms.items()} == {
        "dpo": ["0", "1", "2"],
        "ipo": ["0", "1", "2"],
    }
    (table,) = comparisons.tables(group, Pages(home, run).scores)
    first, second = table.cells
    assert (first.arm, first.seeds, first.against) == ("dpo", 3, None)
    assert second.estimate.value == pytest.approx(0.8)
    assert second.against
    assert second.against.difference == pytest.approx(0.2)
    assert second.against.p == pytest.approx(0.25), "all differences are equal: the sign test"
    assert table.verdict(second) == "same"
    assert table.best == "", "a number that is a little higher wins nothing"
    told = replace(table, cells=(first, replace(second, adjusted=0.01)))
    assert (told.best, told.verdict(told.cells[1])) == ("ipo", "better")


def test_arms_with_one_seed_are_compared_over_records(project: Project, home: Path) -> None:
    plan = project.plan(RECIPE.replace("    seeds: [0, 1, 2]\n", ""))
    shares = {"dpo": [True] * 4 + [False] * 8, "ipo": [False] + [True] * 11}
    record = finish(home, plan, shares)
    (group,) = comparisons.groups(record)
    (table,) = comparisons.tables(group, Pages(home, record).scores)
    found = table.cells[1].against
    assert found
    assert found.test == "McNemar exact, 12 records"
    assert found.p == pytest.approx(stats.binomtest(1, 9).pvalue)
    assert found.difference == pytest.approx(7 / 12)


def test_cells_of_a_grid_are_arms(project: Project, home: Path) -> None:
    text = RECIPE.replace("    seeds: [0, 1, 2]\n", "")
    text = text[: text.index("  - name: losses")] + (
        "  - name: dpo\n"
        "    dataset: {use: jsonl, path: pairs.jsonl}\n"
        "    method: {use: dpo}\n"
        "    eval: [{use: exact_match, name: held_out,"
        " dataset: {use: jsonl, path: questions.jsonl}}]\n"
        "matrix: {stages.dpo.method.beta: [0.1, 0.2], seed: [0, 1]}\n"
    )
    plan = project.plan(text)
    record = finish(home, plan, {s.name: [True, False] for s in plan.stages})
    (group,) = comparisons.groups(record)
    assert {arm: list(seeds) for arm, seeds in group.arms.items()} == {
        "beta=0.1": ["0", "1"],
        "beta=0.2": ["0", "1"],
    }


# --- statistics ----------------------------------------------------------------------------------


def test_statistics_are_those_of_scipy() -> None:
    a, b = [0.8, 0.9, 0.7, 0.95], [0.6, 0.85, 0.72, 0.7]
    found = statistics.paired_t(a, b, "seeds")
    expected = stats.ttest_rel(a, b)
    assert found.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    mean = statistics.over_seeds(a)
    low, high = stats.t.interval(0.95, 3, loc=mean.value, scale=stats.sem(a))
    assert (mean.low, mean.high) == pytest.approx((low, high))
    pairs = [(True, False)] * 9 + [(False, True)] * 2 + [(True, True)] * 5
    exact = statistics.on_records([float(x) for x, _ in pairs], [float(y) for _, y in pairs])
    assert exact.p == pytest.approx(stats.binomtest(2, 11).pvalue)
    assert statistics.mcnemar([True], [True], "records").p == 1.0


def test_several_tests_are_adjusted() -> None:
    assert statistics.holm([0.01, math.nan, 0.04, 0.03])[::2] == pytest.approx([0.03, 0.06])
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


# --- curves --------------------------------------------------------------------------------------


def test_a_resumed_stage_replaces_the_steps_that_it_does_again(tmp_path: Path) -> None:
    first = CurveWriter(tmp_path, "a@b=1")
    for step in (1, 2, 3):
        first.add(step, {"loss": step})
    first.close()
    with curves.curve_path(tmp_path, "a@b=1").open("a") as file:
        file.write('{"step": 4, "lo')
    again = CurveWriter(tmp_path, "a@b=1")
    again.add(3, {"loss": 30})
    again.add(4, {"loss": 40})
    assert curves.read(tmp_path, "a@b=1") == {"loss": [(1, 1), (2, 2), (3, 30), (4, 40)]}
    assert curves.read(tmp_path, "none") == {}


def test_a_learned_reward_is_drawn_over_what_it_stands_for(home: Path, run: RunRecord) -> None:
    stage = run.stages[0].name
    writer = CurveWriter(Store(home).path(run.id), stage)
    for step in (4, 5):
        writer.add(step, {"reward/parts/reward_model": step, "reward/parts/score": -step})
    writer.close()
    html = Pages(home, run).html()
    drawing = re.search(r"<figcaption>reward/parts<.*?</figcaption>(.*?)</svg>", html, re.S)
    assert drawing
    assert drawing[0].count("<polyline") == 2
    assert re.findall(r"</span> (\w+)", drawing[0]) == ["reward_model", "score"]


def test_the_main_curves_of_rl_are_shown_at_once_and_compared(home: Path, run: RunRecord) -> None:
    """By the names that its loop logs."""
    segment = Segment.reply([1], [2, 3], [-0.5, -0.7])
    group = Group([Rollout([segment], Sample((), "", None), [], reward=1.0, reference=[[-0.1]])])
    stage = run.stages[0].name
    writer = CurveWriter(Store(home).path(run.id), stage)
    for step in (1, 2):
        writer.add(step, {**batch_metrics([group]), "train/loss": 0.5})
    writer.close()
    page, _, rest = Pages(home, run).html().partition("more curves</summary>")
    found = re.findall(r"<figcaption>([\w/]+)", page.partition("<h2>Stages</h2>")[2])
    main = [
        *("reward/mean", "groups/zero_variance_share", "completions/clipped_ratio", "train/loss"),
        *("policy/kl_reference", "policy/entropy", "completions/mean_length"),
    ]
    assert found[: len(main)] == main
    assert "<figcaption>rollouts/tokens<" in rest
    compared = dict(Comparison(home, [run]).curves())[stage]
    assert [name for name, _ in compared] == main


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (0.13, 0.87, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (5.0, 5.0, [4.5, 4.75, 5.0, 5.25, 5.5]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert plots.nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("low", [-1.7e308, 0.0, 1.7e308])
@pytest.mark.parametrize("high", [1.7e308, 5e-324])
def test_a_drawing_holds_every_number(low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert all(map(math.isfinite, plots.nice_ticks(low, high)))
    ends = plots.scale([Estimate(low, low, high, 3)], share=False)
    assert math.isfinite(ends[1] - ends[0])
    assert ends[1] > ends[0]


def test_long_curves_are_thinned_and_smoothed() -> None:
    points = [(step, math.sin(1.7 * step)) for step in range(10_000)]
    drawn = plots.curves({"loss": points})
    assert drawn.count("<polyline") == 2
    assert len(drawn) < 12_000
    assert plots.curves({"loss": []}) == ""
    assert 'cy="nan"' not in plots.intervals([Estimate(math.nan, 0, 0, 0), None], 0, 1)


def test_a_learning_rate_is_drawn_as_it_is() -> None:
    # Warmed up and taken down: a mean of it stays below its top.
    rates = [(step, min(step / 10, (100 - step) / 90)) for step in range(101)]
    assert plots.curves({"learning_rate": rates}).count("<polyline") == 1
    noisy = [(step, rate + 0.1 * math.sin(1.7 * step)) for step, rate in rates]
    assert plots.curves({"loss": noisy}).count("<polyline") == 2


def test_a_curve_has_a_gap_where_its_value_is_no_number() -> None:
    inf = float("inf")
    whole = plots.curves({"a": [(1, 1.0), (2, 2.0)]})
    assert plots.curves({"a": [(1, 1.0), (3, inf), (4, -inf), (2, 2.0)]}) == whole
    assert plots.curves({"a": [(1, inf)]}) == ""
    assert duration(inf) == "?"
