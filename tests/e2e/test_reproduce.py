"""A run with a comparison, its report, and the same run again from MLflow alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import posttrain_recipes as ptl
from posttrain_recipes.cli.reproduce import reproduce
from posttrain_recipes.cli.run import run
from posttrain_recipes.planning.reuse import Scope, decisions

pytestmark = pytest.mark.usefixtures("quick_engines")

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"

RECIPE = """\
name: losses
model: ptl/nano
lora: {rank: 4}
stages:
  - repeat: 3
    until: {nll: "<= 10"}
    stages:
      - name: sft
        dataset: {use: jsonl, path: data/chat.jsonl, limit: 40, test_size: 8}
        method: {use: sft, batch_size: 8, max_steps: 2}
        eval:
          - {use: nll}
          - use: exact_match
            name: held_out
            dataset: {use: jsonl, path: data/held_out.jsonl, limit: 8}
  - name: losses
    seeds: [0, 1]
    budget: {steps: 2}
    eval: [held_out]
    compare:
      - name: dpo
        dataset: {use: jsonl, path: data/preferences.jsonl, limit: 24}
        method: {use: dpo, batch_size: 4}
      - name: ipo
        dataset: {use: jsonl, path: data/preferences.jsonl, limit: 24}
        method: {use: dpo, loss: ipo, batch_size: 4}
expect: {held_out: ">= 200%"}
"""


@pytest.mark.nightly
def test_a_comparison_runs_is_told_and_is_reproduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "data").mkdir()
    for name in ("chat.jsonl", "held_out.jsonl", "preferences.jsonl"):
        shutil.copy(DATA / name, tmp_path / "data")
    Path("losses.yaml").write_text(RECIPE)
    done = CliRunner().invoke(run, ["losses.yaml", "--home", "home"], standalone_mode=False)
    assert done.exception is None, done.output
    assert done.return_value == 3, "a bound was missed"
    assert "FAILED  held_out after dpo@seed=0 is" in done.output
    assert "ptl compare losses-1 " in done.output
    record = ptl.show("losses", home="home").record
    status = {stage.name: stage.status for stage in record.stages}
    assert status == {
        "sft-1": "finished",
        "sft-2": "left_out",
        "sft-3": "left_out",
        **dict.fromkeys(("dpo@seed=0", "dpo@seed=1", "ipo@seed=0", "ipo@seed=1"), "finished"),
    }
    decided = {
        stage.name: decision
        for stage, decision in decisions(
            ptl.plan("losses.yaml"), Scope(), [record], tmp_path / "home"
        )
    }
    assert decided["sft-1"].action == "reuse"
    assert (decided["sft-2"].action, decided["sft-3"].action) == ("skip", "skip")
    assert decided["sft-2"].why == record.stages[1].error
    starts = {stage.start.state_uri for stage in record.stages[3:] if stage.start}
    assert record.stages[0].checkpoint
    assert starts == {record.stages[0].checkpoint.state_uri}
    page = (tmp_path / "home" / "runs" / record.id / "report.html").read_text()
    assert "Comparison: losses" in page
    assert page.count("<polyline") >= 5

    from mlflow import MlflowClient

    client = MlflowClient(record.tracking_uri)
    tracked = client.get_run(record.tracking_id or "")
    assert tracked.data.tags["ptl.gates"] == "failed"
    kept = {artifact.path for artifact in client.list_artifacts(record.tracking_id or "")}
    assert kept >= {"report.html", "report.md", "run.json", "recipe.yaml"}
    shown = client.download_artifacts(record.stages[0].tracking_id or "", "rendered.html")
    assert "learned (marked)" in Path(shown).read_text()

    # A later run that reuses a stage shows what it found below itself too.
    again = ["losses.yaml", "--home", "home", "--until", "sft-1"]
    again += ["--set", "stages.losses.seeds=[9]"]
    done = CliRunner().invoke(run, again, standalone_mode=False)
    assert done.exception is None, done.output
    later = ptl.show("losses", home="home").record
    assert later.id != record.id
    assert later.stages[0].reused_from == record.id
    mine, theirs = (
        client.get_run(each.stages[0].tracking_id or "").data for each in (later, record)
    )
    assert mine.tags["ptl.reused_from"] == record.id
    assert mine.tags["mlflow.parentRunId"] == later.tracking_id
    for key in ("train/loss", "eval/nll/nll"):
        assert mine.metrics[key] == theirs.metrics[key]
    shown = client.get_run(later.tracking_id or "").data.metrics
    assert "stages/sft-1/held_out/exact_match_after" in shown

    # Nothing but MLflow and the data is needed.
    shutil.rmtree(tmp_path / "home" / "runs")
    Path("losses.yaml").unlink()
    arguments = [record.tracking_id or "", "--tracking-uri", str(record.tracking_uri)]
    arguments += ["--home", "again", "--json"]
    done = CliRunner().invoke(reproduce, arguments, standalone_mode=False)
    assert done.exception is None, done.output
    found = json.loads(done.stdout)
    assert found["reproduced"]
    assert done.return_value == 0
    assert {r["found"] for r in found["results"]} <= {"identical", "within"}
    assert len(found["results"]) == 4 + 4 * 2
