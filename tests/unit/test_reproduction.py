"""Runs compared and done again: what differs, what has changed, what came out."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from posttrain_recipes import registry, store
from posttrain_recipes.cli.compare import compare
from posttrain_recipes.records import Estimate
from posttrain_recipes.reporting import plots, reproduction
from posttrain_recipes.reporting.comparing import Comparison
from posttrain_recipes.reporting.overlaid import overlaid
from posttrain_recipes.reporting.page import Pages
from posttrain_recipes.store import RunRecord
from tests.conftest import Project
from tests.unit.test_page import finish

RECIPE = """\
name: demo
model: ./model
stages:
  - name: dpo
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo, beta: 0.1}
    eval: [{use: exact_match, name: held_out, dataset: {use: jsonl, path: questions.jsonl}}]
"""


@pytest.fixture
def home(project: Project) -> Path:
    return project.path / "home"


def run(project: Project, home: Path, text: str, right: int) -> RunRecord:
    plan = project.plan(text)
    return finish(home, plan, {"dpo": [i < right for i in range(12)]})


def test_runs_are_compared_by_what_differs(project: Project, home: Path) -> None:
    first = run(project, home, RECIPE, 4)
    second = run(project, home, RECIPE.replace("beta: 0.1", "beta: 0.5, loss: ipo"), 11)
    found = Comparison(home, [first, second])
    assert found.differing == [
        ("stages.dpo.method.beta", "0.1", "0.5"),
        ("stages.dpo.method.loss", "-", "ipo"),
    ]
    ((title, (table,)),) = found.sections
    assert title == ""
    assert [cell.arm for cell in table.cells] == ["demo-1", "demo-2"]
    assert table.best == "demo-2"
    assert table.cells[1].against
    assert table.cells[1].against.test == "McNemar exact, 12 records"
    page = found.html()
    assert page.count("<polyline") == 2, "one chart with the curves of both"
    assert "stages.dpo.method.loss" in page


MATRIX = RECIPE + "matrix:\n  stages.dpo.method.beta: [0.1, 0.2]\n  seed: [1, 2]\n"


def matrix(project: Project, home: Path, text: str, least: int) -> RunRecord:
    plan = project.plan(text)
    hits = {s.name: least + 2 * place for place, s in enumerate(plan.stages)}
    return finish(home, plan, {name: [i < n for i in range(12)] for name, n in hits.items()})


def test_runs_of_a_matrix_are_compared_way_by_way(
    project: Project, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = matrix(project, home, MATRIX, 1)
    second = matrix(project, home, MATRIX.replace("{use: dpo,", "{use: dpo, loss: ipo,"), 4)
    found = Comparison(home, [first, second])
    assert found.differing == [("stages.dpo.method.loss", "-", "ipo")]
    (_, tables), *_ = found.sections
    assert [(t.of, [(c.arm, c.seeds) for c in t.cells]) for t in tables] == [
        (f"beta={beta}", [("demo-1", 2), ("demo-2", 2)]) for beta in ("0.1", "0.2")
    ]
    assert found.html().count("beta=0.2, demo-2") == 1
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(
        compare, [first.id, second.id, "--home", str(home)], standalone_mode=False
    )
    assert max(map(len, done.output.splitlines())) <= 80
    assert done.output.count("better, worse, changed") == 1
    assert "\n-: the recipe does not say it\n" in done.output


def test_a_stage_in_the_middle_is_compared_where_it_alone_is_measured_so(
    project: Project, home: Path
) -> None:
    second = RECIPE.partition("stages:\n")[2].replace("name: dpo", "name: more", 1)
    longer = RECIPE + second.replace("name: held_out", "name: other")
    record = matrix(project, home, longer + MATRIX.removeprefix(RECIPE), 1)
    found = Comparison(home, [record]).sections
    assert [(title, tables[0].eval, len(tables[0].cells)) for title, tables in found] == [
        ("demo-1, dpo, by what varies", "held_out", 2),
        ("demo-1, more, by what varies", "other", 2),
    ]
    alike = RECIPE + second + MATRIX.removeprefix(RECIPE)
    found = Comparison(home, [matrix(project, home, alike, 1)]).sections
    assert [title for title, _ in found] == ["demo-2, more, by what varies"]


def test_runs_of_other_ways_are_all_compared_with_the_first(project: Project, home: Path) -> None:
    first = matrix(project, home, MATRIX, 1)
    second = matrix(project, home, MATRIX.replace("[0.1, 0.2]", "[0.3, 0.4]"), 4)
    single = run(project, home, RECIPE, 4)
    found = Comparison(home, [first, second])
    assert found.differing == [("stages.dpo.method.beta", "0.1, 0.2", "0.3, 0.4")]
    (_, (table,)), *_ = found.sections
    ways = [f"demo-{run}, beta={beta}" for run, beta in ((1, 0.1), (1, 0.2), (2, 0.3), (2, 0.4))]
    assert [cell.arm for cell in table.cells] == ways
    (_, (table,)), *_ = Comparison(home, [single, first]).sections
    assert [cell.arm for cell in table.cells] == ["demo-3", *ways[:2]]
    assert {cell.why for cell in table.cells[1:]} == {"no two seeds in common"}


def test_a_matrix_is_drawn_over_one_another(project: Project, home: Path) -> None:
    record = matrix(project, home, MATRIX, 1)
    pages = Pages(home, record)
    (drawn,) = overlaid(record, pages.curves, ["train/loss", "kl"])
    assert (drawn.title, drawn.ways, drawn.seeds) == (
        "dpo", (("beta=0.1", "s0"), ("beta=0.2", "s1")), True
    )  # fmt: skip
    ((metric, drawing),) = drawn.drawings  # of kl nothing is finite
    assert metric == "train/loss"
    assert [drawing.count(f'class="line s{n}"') for n in range(3)] == [2, 2, 0]
    page = pages.html()
    assert page.index("Curves of each way") < page.index(drawing) < page.index("Before and after")
    assert "demo-1, curves of each way" in Comparison(home, [record]).html()
    assert plots.colour(7) == "s1 d1"


def test_results_on_other_records_are_not_tested(project: Project, home: Path) -> None:
    first = run(project, home, RECIPE, 4)
    project.write("questions.jsonl", '{"question": "3+3?", "answer": "6"}\n')
    second = run(project, home, RECIPE, 11)
    ((_, (table,)),) = Comparison(home, [first, second]).sections
    assert table.cells[1].against is None


def test_the_command_prints_and_writes(project: Project, home: Path) -> None:
    run(project, home, RECIPE, 4)
    run(project, home, RECIPE.replace("beta: 0.1", "beta: 0.5"), 11)
    arguments = ["demo-1", "demo-2", "--home", str(home)]
    done = CliRunner().invoke(compare, [*arguments, "-o", "page.html"], standalone_mode=False)
    assert done.exception is None
    lines = done.output.splitlines()
    assert lines[0].split() == ["demo-1", "demo-2"]
    assert lines[1].split() == ["stages.dpo.method.beta", "0.1", "0.5"]
    assert any("demo-2 *" in line and "+58.3" in line and "0.016" in line for line in lines)
    assert Path("page.html").read_text().startswith("<!doctype html>")
    done = CliRunner().invoke(compare, [*arguments, "--json"], standalone_mode=False)
    assert json.loads(done.output)["differing"]["stages.dpo.method.beta"]["demo-2"] == "0.5"


# --- reproduce -----------------------------------------------------------------------------------


def test_what_is_kept_is_planned_again(project: Project, home: Path) -> None:
    text = RECIPE + "presets: {small: {stages: {dpo: {method: {max_steps: 2}}}}}\n"
    plan = project.plan(text, preset="small", overrides=["seed=3"])
    record = finish(home, plan, {"dpo": [True] * 12})
    again = store.parse(json.loads(store.dump(record)))
    assert again == record
    planned = reproduction.plan_again(again, registry.load())
    assert planned.fingerprint == plan.fingerprint
    assert planned.preset == "small"
    assert list(reproduction.changes(again, planned)) == []


def test_what_has_changed_is_told(project: Project, home: Path) -> None:
    record = run(project, home, RECIPE, 4)
    for name in ("pairs.jsonl", "questions.jsonl"):
        path = project.path / name
        path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    planned = reproduction.plan_again(record, registry.load())
    assert list(reproduction.changes(record, planned)) == [
        "dpo: pairs.jsonl changed",
        "dpo: eval 'held_out' or questions.jsonl changed",
    ]


def test_data_may_have_moved(project: Project, home: Path) -> None:
    record = run(project, home, RECIPE, 4)
    models = ("model/config.json", "model/tokenizer.json", "model/chat_template.jinja")
    for name in ("pairs.jsonl", "questions.jsonl", *models):
        project.write(f"moved/{name}", (project.path / name).read_text())
    planned = reproduction.plan_again(record, registry.load(), project.path / "moved")
    assert list(reproduction.changes(record, planned)) == []


def changed(record: RunRecord, value: Estimate | None) -> RunRecord:
    again = copy.deepcopy(record)
    (measured,) = again.stages[0].after
    measured.metrics = {} if value is None else {"exact_match": value}
    return again


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (0.0, "identical"),
        (0.05, "within"),
        (0.5, "outside"),
        (None, "missing"),
    ],
)
def test_verdicts(project: Project, home: Path, now: float | None, found: Any) -> None:
    record = run(project, home, RECIPE, 4)
    estimate = record.stages[0].after[0].metrics["exact_match"]
    shifted = None
    if now is not None:
        high, low = estimate.high + now, estimate.low + now
        shifted = replace(estimate, value=estimate.value + now, high=high, low=low)
    again = changed(record, shifted)
    verdicts = {v.when: v for v in reproduction.verdicts(record, again)}
    assert verdicts["before"].found == "identical"
    assert verdicts["after"].found == found
    assert verdicts["after"].reproduced == (found in ("identical", "within"))
    shown = reproduction.Reproduction(record, again, []).as_json()
    assert shown["reproduced"] == (found in ("identical", "within"))
