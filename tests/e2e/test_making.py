"""Stages that make data, through the real SDK and engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

import posttrain_recipes as ptl
from posttrain_recipes.planning.plans import PlannedEval, PlannedStage
from posttrain_recipes.planning.reuse import Scope, decisions
from posttrain_recipes.records import EvalResult
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.store import Store

pytestmark = pytest.mark.usefixtures("quick_engines")

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"
RECIPE = f"""\
name: maker
model: ptl/nano
lora: {{rank: 4}}
stages:
  - name: samples
    dataset: {{use: jsonl, path: {DATA}/held_out.jsonl, limit: 40}}
    method: {{use: teacher_samples, teacher: {{model: ptl/tiny}}, samples: 2, batch_size: 8}}
    reward: {{use: exact_match}}
  - name: student
    dataset: {{use: collected, stage: samples}}
    method: {{use: sft, batch_size: 16, max_steps: 2}}
"""


class Crash(Reporter):
    """Fails once the third batch is safe."""

    def made(self, stage: PlannedStage, batch: int) -> None:
        if batch == 3:
            raise SystemExit("crash")


def lines(home: Path, run: str) -> list[str]:
    return (home / "runs" / run / "made/samples/conversation.jsonl").read_text().splitlines()


def test_what_was_made_is_kept_told_of_and_reused(tmp_path: Path) -> None:
    recipe, home = tmp_path / "maker.yaml", tmp_path / "home"
    recipe.write_text(RECIPE)
    with pytest.raises(SystemExit, match="crash"):
        ptl.run(recipe, home=home, reporter=Crash())
    batches = home / "runs/maker-1/made/samples/batches"
    kept = {path.name: path.stat().st_mtime_ns for path in batches.glob("*.jsonl")}
    assert sorted(kept) == ["000001.jsonl", "000002.jsonl", "000003.jsonl"]

    runs = Store(home).runs()
    _, ahead = next(decisions(ptl.plan(recipe), Scope(), runs, home))
    assert (ahead.action, ahead.why) == ("resume", "from batch 3 of 5 in run maker-1")

    done = ptl.run(recipe, home=home).record
    samples, student = done.stages
    assert done.id == "maker-1"
    assert samples.total_steps == 5
    assert samples.checkpoint == samples.start, "nothing was trained"
    assert student.records == samples.made["conversation"] == len(lines(home, "maker-1"))
    whole = ptl.run(recipe, home=tmp_path / "other").record
    assert lines(home, "maker-1") == lines(tmp_path / "other", whole.id), "as without the crash"

    told = json.loads((home / "runs/maker-1/made/samples/provenance.json").read_text())
    assert told["method"]["use"] == "teacher_samples"
    assert told["dataset"]["name"].endswith("held_out.jsonl")
    assert told["files"]["conversation.jsonl"]["records"] == samples.made["conversation"]

    changed = ptl.run(recipe, home=home, overrides=["stages.student.method.max_steps=1"]).record
    assert [stage.status for stage in changed.stages] == ["reused", "finished"]
    assert changed.stages[0].made_in == "maker-1/made/samples"
    assert changed.stages[1].records == student.records

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    inputs = client.get_run(samples.tracking_id or "").inputs.dataset_inputs
    assert "samples/conversation.jsonl" in [item.dataset.name for item in inputs]

    from click.testing import CliRunner

    from posttrain_recipes.cli.show import show

    shown = CliRunner().invoke(show, ["maker-1", "--home", str(home)]).output
    assert f"made {samples.made['conversation']} conversation records" in shown


GOOD_ROLLOUTS = f"""\
name: good
model: ptl/tiny
watch: false
lora: {{rank: 4}}
stages:
  - name: rl
    dataset: {{use: jsonl, path: {DATA}/sums.jsonl, limit: 40}}
    method:
      {{use: grpo, batch_size: 4, group_size: 4, max_tokens: 8, max_steps: 5, save_every: 2,
        collect: {{min_reward: 1}}}}
    reward: {{use: exact_match}}
  - name: again
    init_from: base
    dataset: {{use: collected, stage: rl}}
    method: {{use: sft, batch_size: 4, max_steps: 2}}
"""


class Killed(Reporter):
    """Fails after the third step, of which the first two are safe."""

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == 3:
            raise SystemExit("crash")


@pytest.mark.nightly
def test_good_rollouts_are_kept_and_trained_on(tmp_path: Path) -> None:
    recipe, home = tmp_path / "good.yaml", tmp_path / "home"
    recipe.write_text(GOOD_ROLLOUTS)
    with pytest.raises(SystemExit, match="crash"):
        ptl.run(recipe, home=home, reporter=Killed())
    made = home / "runs/good-1/made/rl"
    assert [path.name for path in (made / "batches").glob("*")] == ["000002.jsonl"]
    done = ptl.run(recipe, home=home).record
    rl, again = done.stages
    assert rl.made["conversation"] == again.records > 0
    whole = ptl.run(recipe, home=tmp_path / "other", overrides=["stages.again.method.max_steps=1"])
    for name in ("conversation.jsonl", "preference.jsonl"):
        other = tmp_path / "other" / "runs" / whole.record.id / "made/rl" / name
        assert (made / name).read_text() == other.read_text(), "as without the crash"
    told = json.loads((made / "provenance.json").read_text())
    assert told["method"]["config"]["collect"] == {"min_reward": 1, "keep": 1}
    rows = [json.loads(line) for line in (made / "preference.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["chosen"] != row["rejected"]


class KilledInEval(Reporter):
    """Fails in the evals after a stage; hears of batches that are made."""

    def __init__(self, fails: bool = True) -> None:
        self.fails = fails
        self.batches: list[int] = []

    def evaluated(
        self, stage: PlannedStage, planned: PlannedEval, when: str, result: EvalResult
    ) -> None:
        if self.fails and when == "after":
            raise SystemExit("crash")

    def made(self, stage: PlannedStage, batch: int) -> None:
        self.batches.append(batch)

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.batches.append(done)


WATCH = f"""\
    eval:
      - {{use: nll, name: watch, dataset: {{use: jsonl, path: {DATA}/held_out.jsonl, limit: 4}}}}
"""
MADE_AND_MEASURED = {
    "samples": RECIPE.replace("  - name: student", f"{WATCH}  - name: student").replace(
        "limit: 40", "limit: 8"
    ),
    "rl": GOOD_ROLLOUTS.replace("  - name: again", f"{WATCH}  - name: again"),
}


@pytest.mark.parametrize("stage", MADE_AND_MEASURED)
def test_what_was_made_is_not_made_again_where_an_eval_after_it_was_killed(
    stage: str, tmp_path: Path
) -> None:
    recipe, home = tmp_path / "recipe.yaml", tmp_path / "home"
    recipe.write_text(MADE_AND_MEASURED[stage])
    with pytest.raises(SystemExit, match="crash"):
        ptl.run(recipe, home=home, until=stage, reporter=KilledInEval())
    (run,) = Store(home).runs()
    provenance = home / "runs" / run.id / "made" / stage / "provenance.json"
    before, paid = provenance.read_text(), run.stages[0].training.usage.tokens
    assert json.loads(before)["files"]
    _, ahead = next(decisions(ptl.plan(recipe), Scope(), [run], home))
    assert ahead.action == "resume"

    again = KilledInEval(fails=False)
    done = ptl.run(recipe, home=home, until=stage, reporter=again).record
    assert again.batches == [], "nothing is made or trained twice"
    assert provenance.read_text() == before
    kept = done.stages[0]
    assert kept.training.usage.tokens == paid
    files = json.loads(before)["files"]
    assert kept.made == {Path(name).stem: file["records"] for name, file in files.items()}
    assert kept.status == "finished"
    assert [m.name for m in kept.after] == ["watch"]
