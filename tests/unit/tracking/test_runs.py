"""What the runs of a recipe and its stages leave in MLflow, and how they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.tracking import mlruns, mlstore, runs
from posttrain_recipes.tracking.runs import RecipeRun, StageRun
from posttrain_recipes.tracking.tracker import MlflowTracker
from tests.conftest import ROOT
from tests.tracked import history, recipe_run, result, sample

# --- structure -----------------------------------------------------------------------------------


def test_a_stage_is_a_child_of_its_recipe(tracker: MlflowTracker, client: Any) -> None:
    params = {"method": "sft", "learning_rate": 1e-4, "lora": {"rank": 8, "mlp": True}}
    with recipe_run(tracker) as run:
        with run.stage(name="sft", index=1, params=params, tags={"ptl.stage": "sft"}) as stage:
            stage.log_dataset("chat", "data/chat.jsonl", "sha256:" + "ab" * 32, "train", count=7)
            stage.log_dataset("owner/set", "owner/set", None, "test", "main", context="eval")
        run.summary("| eval | after |\n|---|---|\n| qa | 0.9 |")
    assert tracker.problems == []

    parent, child = client.get_run(run.run_id), client.get_run(stage.run_id)
    assert parent.info.run_name == "sft_then_dpo-1"
    assert child.info.run_name == "sft_then_dpo-1/1-sft"
    assert child.data.tags["mlflow.parentRunId"] == run.run_id
    assert {parent.info.status, child.info.status} == {"FINISHED"}
    assert child.data.params == {
        "method": "sft",
        "learning_rate": "0.0001",
        "lora.rank": "8",
        "lora.mlp": "true",
    }
    assert parent.data.params["model"] == "tiny"
    assert parent.data.params["sft/lora.rank"] == "8"
    assert parent.data.tags["mlflow.note.content"].startswith("| eval")
    assert parent.data.tags["mlflow.note.content"].endswith("Imitate, then prefer.")
    for each in (parent, child):
        inputs = {i.dataset.name: i.dataset for i in each.inputs.dataset_inputs}
        assert inputs["chat"].digest == "abababababab"
        assert json.loads(inputs["chat"].profile) == {"num_rows": 7}
        assert inputs["owner/set"].source_type == "hugging_face"
    artifact = client.download_artifacts(run.run_id, "recipe.yaml")
    assert Path(artifact).read_text() == "name: sft_then_dpo\n"


def test_links_lead_to_the_page_with_charts(
    opened: tuple[RecipeRun, StageRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = opened
    path = f"/#/experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"
    assert run.url() == path
    assert run.url("http://127.0.0.1:5000/") == f"http://127.0.0.1:5000{path}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:password@mlflow.example")
    assert run.url() == f"https://***@mlflow.example{path}"


# --- metrics -------------------------------------------------------------------------------------


def test_metrics_are_written_in_batches(
    opened: tuple[RecipeRun, StageRun], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 1e9)
    _, stage = opened
    for step in range(1, 16):
        stage.log_metrics({"train/loss": 1 / step, "train/tokens": step}, step)
    written = [(step, 1 / step) for step in range(1, 11)]
    assert history(client, stage.run_id, "train/loss") == written
    stage.flush()
    assert history(client, stage.run_id, "train/tokens") == [(s, float(s)) for s in range(1, 16)]


def test_metrics_do_not_wait_for_a_slow_step(
    opened: tuple[RecipeRun, StageRun], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.0)
    _, stage = opened
    stage.log_metrics({"train/loss": 2.0}, 1)
    assert history(client, stage.run_id, "train/loss") == [(1, 2.0)]


def test_evals_in_the_middle_are_a_curve_of_their_own(
    opened: tuple[RecipeRun, StageRun], client: Any
) -> None:
    parent, stage = opened
    stage.log_eval("qa", "before", result(0.2), 0)
    for step, value in ((0, 0.2), (10, 0.7), (10, 0.7), (20, 0.1)):  # 10 by two tries
        stage.log_during("qa", result(value), step)
    stage.log_eval("qa", "after", result(0.7), 20)
    stage.note("leaves step 10")
    stage.flush()
    assert history(client, stage.run_id, "during/qa/accuracy") == [(0, 0.2), (10, 0.7), (20, 0.1)]
    # What stands at the end is the result of what is left, not that of the last step.
    assert history(client, stage.run_id, "eval/qa/accuracy") == [(0, 0.2), (20, 0.7)]
    note = client.get_run(stage.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("leaves step 10\n\n")


def test_a_resumed_stage_logs_each_step_once(tracker: MlflowTracker, client: Any) -> None:
    def interrupted() -> None:
        with recipe_run(tracker) as run, run.stage(name="sft", index=1, params={"a": 1}) as stage:
            ids.extend([run.run_id, stage.run_id])
            stage.log_eval("qa", "before", result(0.2), 0)
            for step in range(1, 8):
                stage.log_metrics({"train/loss": float(step)}, step)
            stage.log_checkpoint("tinker://a/weights/4", "tinker://a/sampler/4", 4)
            raise RuntimeError("the engine died")

    ids: list[str] = []
    with pytest.raises(RuntimeError):
        interrupted()
    assert client.get_run(ids[1]).data.tags["ptl.error"] == "RuntimeError: the engine died"

    again = MlflowTracker(tracker.home)
    with (
        recipe_run(again, run_id=ids[0], params={"model": "tiny", "new": 1}) as run,
        run.stage(name="sft", index=1, params={"a": 2}, run_id=ids[1]) as stage,
    ):
        assert client.get_run(ids[1]).info.status == "RUNNING"
        # It goes on from the checkpoint at step 4; metrics were written up to step 7.
        for step in range(5, 11):
            stage.log_metrics({"train/loss": float(step), "train/late": 1.0}, step)
        stage.log_checkpoint("tinker://a/weights/4", "tinker://a/sampler/4", 4)
        stage.log_eval("qa", "after", result(0.8), 10, checkpoint_uri="tinker://a/sampler/4")
    assert again.problems == []
    assert (run.run_id, stage.run_id) == tuple(ids)
    assert history(client, ids[1], "train/loss") == [(s, float(s)) for s in range(1, 11)]
    assert history(client, ids[1], "eval/qa/accuracy") == [(0, 0.2), (10, 0.8)]
    assert history(client, ids[0], "eval/qa/accuracy") == [(0, 0.2), (1, 0.8)]
    child = client.get_run(ids[1])
    assert child.info.status == "FINISHED"
    assert "ptl.error" not in child.data.tags
    assert child.data.params["a"] == "1"
    note = child.data.tags[mlruns.NOTE]
    assert "| qa/accuracy | **0.2** [0.1, 0.3] | **0.8** [0.7, 0.9] |" in note
    assert client.get_run(ids[0]).data.params["new"] == "1"
    assert len(child.outputs.model_outputs) == 1


def test_a_run_that_the_store_no_longer_has_begins_anew(
    tracker: MlflowTracker, client: Any
) -> None:
    with recipe_run(tracker) as first:
        pass
    client.delete_run(first.run_id)
    for gone in (first.run_id, "0" * 32):
        with recipe_run(tracker, run_id=gone) as run:
            assert run.run_id not in ("", gone)
    assert tracker.problems == []


def test_numbers_that_are_not_finite_become_a_tag(
    opened: tuple[RecipeRun, StageRun], client: Any
) -> None:
    _, stage = opened
    stage.log_metrics({"train/loss": 1.0, "kl": float("nan")}, 1)
    stage.log_metrics({"train/loss": float("inf")}, 2)
    stage.flush()
    run = client.get_run(stage.run_id)
    assert run.data.metrics == {"train/loss": 1.0}
    assert run.data.tags["non_finite"] == "kl = nan at step 1; train/loss = inf at step 2"


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("pass@8", "pass_at_8"),
        ("eval/a(b)/x%", "eval/a_b_/x_"),
        ("//a//b/", "a/b"),
        ("../a/./b", "a/b"),
        ("a=b,c#d|e[f]+g", "a_b_c_d_e_f__g"),
        ("", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_that_mlflow_does_not_take_are_changed(name: str, clean: str) -> None:
    assert mlruns.metric_name(name) == clean


def test_long_and_many_parameters_are_logged(tracker: MlflowTracker, client: Any) -> None:
    params = {f"p{i}": i for i in range(150)} | {"long": "x" * 9000, "odd@name": None}
    with recipe_run(tracker, params=params) as run:
        pass
    logged = client.get_run(run.run_id).data.params
    assert len(logged) == 152
    assert len(logged["long"]) == 6000
    assert logged["odd_at_name"] == "null"
    assert tracker.problems == []


# --- evals, samples, checkpoints -----------------------------------------------------------------


def test_checkpoints_are_models_and_evals_belong_to_them(
    tracker: MlflowTracker, client: Any
) -> None:
    with recipe_run(tracker) as run:
        for index, (name, before, after) in enumerate([("sft", 0.1, 0.5), ("dpo", 0.5, 0.7)], 1):
            with run.stage(name=name, index=index) as stage:
                stage.log_eval("qa", "before", result(before, "pass@8"), 0)
                stage.log_checkpoint(f"tinker://{run.run_id}/{name}/weights", f"s-{index}", 20)
                uri = f"s-{index}"
                stage.log_eval("qa", "after", result(after, "pass@8"), 20, "qa", "cd" * 32, uri)
    assert tracker.problems == []

    child = client.get_run(stage.run_id)
    (output,) = child.outputs.model_outputs
    assert output.step == 20
    model = client.get_logged_model(output.model_id)
    assert model.name == "sft_then_dpo-dpo-step-20"
    assert model.params["checkpoint_uri"] == f"tinker://{run.run_id}/dpo/weights"
    assert model.params["step"] == "20"
    assert {(m.key, m.value) for m in model.metrics} >= {("eval/qa/pass_at_8", 0.7)}
    assert history(client, stage.run_id, "eval/qa/pass_at_8") == [(0, 0.5), (20, 0.7)]
    assert history(client, stage.run_id, "uncertainty/qa/pass_at_8_low")[0] == (0, 0.4)
    assert "| qa/pass_at_8 | **0.5** [0.4, 0.6] | **0.7** [" in child.data.tags[mlruns.NOTE]
    # MLflow shows the part of it that follows the last slash, in its list of runs.
    assert child.data.tags["mlflow.source.name"] == "qa pass_at_8 0.5 → 0.7"

    parent = client.get_run(run.run_id)
    named = [client.get_logged_model(o.model_id).name for o in parent.outputs.model_outputs]
    assert sorted(named) == ["sft_then_dpo-dpo-step-20", "sft_then_dpo-sft-step-20"]
    assert parent.data.tags["mlflow.source.name"] == "qa pass_at_8 0.1 → 0.7"
    # Over the stages, from the base model on.
    progress = [(0, 0.1), (1, 0.5), (2, 0.7)]
    assert history(client, run.run_id, "eval/qa/pass_at_8") == progress
    assert parent.data.metrics["stages/sft/qa/pass_at_8_before"] == 0.1
    assert parent.data.metrics["stages/dpo/qa/pass_at_8_after"] == 0.7


def test_samples_are_traces_and_a_table(tracker: MlflowTracker, client: Any) -> None:
    before = [sample(f"{i} + 1?", "no | idea\n<b>") for i in range(40)]
    after = [sample("0 + 1?", "1"), sample("1 + 1?", "2")]
    with recipe_run(tracker) as run:
        with run.stage(name="sft", index=1) as first:
            first.log_samples("qa", "before", before, 0)
            first.log_samples("qa", "after", after, 20)
            first.log_eval("qa", "after", result(0.5), 20)
        with run.stage(name="dpo", index=2) as second:
            second.log_eval("qa", "before", result(0.5), 0)
            second.log_samples("qa", "before", after, 0)
            second.log_eval("qa", "after", result(0.7), 20)
    assert tracker.problems == []

    def traces(run_id: str) -> list[Any]:
        found = client.search_traces(locations=[run.experiment_id], run_id=run_id, max_results=100)
        return list(found)

    def evaluation(stage: StageRun, when: str) -> Any:
        return client.get_run(client.get_run(stage.run_id).data.tags[f"ptl.{when}"])

    ids = {
        (stage.stage, when): evaluation(stage, when).info.run_id
        for stage in (first, second)
        for when in ("before", "after")
    }
    assert len(traces(ids["sft", "before"])) == runs.MAX_TRACES
    assert len(traces(ids["sft", "after"])) == 2
    # What a later stage started from is not what the base model replied.
    replies = {trace.info.response_preview for trace in traces(ids["dpo", "before"])}
    assert replies == {"1", "2"}
    note = client.get_run(second.run_id).data.tags[mlruns.NOTE]
    assert f"{ids['dpo', 'after']}/traces?compareToRunUuid={ids['dpo', 'before']}&" in note
    (trace,) = [t for t in traces(ids["sft", "after"]) if "1 + 1?" in t.info.request_preview]
    assert trace.info.response_preview == "2"
    assert trace.info.tags["when"] == "after"
    assert {a.name: a.value for a in trace.info.assessments} == {"exact": 1.0, "expected": "4"}
    assert trace.data.spans[0].inputs["messages"][0] == {"role": "system", "content": "Be brief."}

    path = client.download_artifacts(first.run_id, "samples/qa-before.md")
    lines = Path(path).read_text().splitlines()
    assert lines[0] == "| Prompt | Reply | Expected | exact |"
    assert lines[2] == "| 0 + 1? | no \\| idea<br>&lt;b> | 4 | 1 |"
    assert len(lines) == 42


def test_what_is_measured_is_where_mlflow_looks_for_evaluations(
    tracker: MlflowTracker, client: Any
) -> None:
    with recipe_run(tracker) as run, run.stage(name="sft", index=1) as stage:
        stage.log_eval("qa", "before", result(0.2), 0, "data/qa.jsonl", "ab" * 32)
        stage.log_checkpoint("tinker://a/weights/1", "tinker://a/sampler_weights/1", 9)
    with (
        recipe_run(tracker, run_id=run.run_id) as again,
        again.stage(name="sft", index=1, run_id=stage.run_id) as resumed,
    ):
        resumed.log_eval("qa", "after", result(0.7), 9, "qa", "ab" * 32, "tinker://a/weights/1")
        resumed.log_eval("qa", "after", result(0.7), 9, "qa", "ab" * 32, "tinker://a/weights/1")
    assert tracker.problems == []
    group = client.get_run(client.get_run(run.run_id).data.tags["ptl.evaluations"])
    assert group.info.run_name == "sft_then_dpo-1 evaluations"
    # MLflow's page of evaluations shows no run below one that put out a model.
    assert "mlflow.parentRunId" not in group.data.tags
    where = f"tags.`mlflow.parentRunId` = '{group.info.run_id}'"
    found = {r.info.run_name: r for r in client.search_runs([run.experiment_id], where)}
    before, after = (found.pop(f"{when} sft_then_dpo-1/1-sft") for when in ("before", "after"))
    assert not found
    assert before.info.run_id in client.get_run(stage.run_id).data.tags[mlruns.NOTE]
    for one, value in ((before, 0.2), (after, 0.7)):
        assert one.data.tags["mlflow.runType"] == "genai_evaluate"
        assert one.data.metrics == {"eval/qa/accuracy": value}
        assert one.info.status == "FINISHED"
        assert not one.outputs.model_outputs
    assert [i.dataset.name for i in before.inputs.dataset_inputs] == ["qa.jsonl"]
    (measured,) = client.get_run(after.info.run_id).inputs.model_inputs
    model = client.get_logged_model(measured.model_id)
    assert model.params["checkpoint_uri"] == "tinker://a/weights/1"


# --- how runs end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(3), "KILLED"),
    ],
)
def test_the_status_says_how_a_run_ended(
    tracker: MlflowTracker, client: Any, error: BaseException, status: str
) -> None:
    def fail() -> None:
        with recipe_run(tracker) as run, run.stage(name="sft", index=1) as stage:
            ids.extend([run.run_id, stage.run_id])
            stage.log_metrics({"train/loss": 1.0}, 1)
            raise error

    ids: list[str] = []
    with pytest.raises(type(error)):
        fail()
    assert [client.get_run(each).info.status for each in ids] == [status, status]
    assert history(client, ids[1], "train/loss") == [(1, 1.0)]


def test_a_recipe_fails_with_a_stage_unless_it_is_repeated(
    tracker: MlflowTracker, client: Any
) -> None:
    for repeat, status in ((False, "FAILED"), (True, "FINISHED")):
        with recipe_run(tracker) as run:
            with pytest.raises(ValueError, match="bad"), run.stage(name="sft", index=1):
                raise ValueError("bad")
            if repeat:
                with run.stage(name="sft", index=1):
                    pass
        assert client.get_run(run.run_id).info.status == status


HOLD = """
import sys, time
from pathlib import Path
from posttrain_recipes.tracking.tracker import MlflowTracker
tracker = MlflowTracker(Path(sys.argv[1]))
with tracker.run(recipe="r", run_name="r-1", resolved_yaml="") as run:
    with run.stage(name="sft", index=1) as stage:
        stage.log_metrics({"train/loss": 1.0}, 1)
        stage.flush()
        print(run.run_id, stage.run_id, flush=True)
        time.sleep(60)
"""


def test_runs_of_killed_processes_end_as_killed(
    home: Path, tracker: MlflowTracker, client: Any
) -> None:
    command = [sys.executable, "-c", HOLD, str(home)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holders = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    ids = [holder.stdout.readline().split() for holder in holders if holder.stdout]
    with recipe_run(tracker) as mine:
        # A process of this number lives, but it is not the one that held the run.
        recycled = client.create_run(
            mine.experiment_id,
            tags={mlstore.HOST: socket.gethostname(), mlstore.PROCESS: f"{os.getpid()}@long ago"},
        ).info.run_id
        assert tracker.mark_dead_runs() == [recycled]

        terminated, killed = holders
        terminated.terminate()
        killed.kill()
        assert terminated.wait(30) == 128 + signal.SIGTERM
        killed.wait(30)
        assert [client.get_run(each).info.status for each in ids[0]] == ["KILLED", "KILLED"]
        assert [client.get_run(each).info.status for each in ids[1]] == ["RUNNING", "RUNNING"]
        again = MlflowTracker(home)
        assert sorted(again.mark_dead_runs()) == sorted(ids[1])
        assert client.get_run(mine.run_id).info.status == "RUNNING"
    for each in ids[1]:
        info = client.get_run(each).info
        assert info.status == "KILLED"
        assert info.end_time >= info.start_time
    assert history(client, ids[1][1], "train/loss") == [(1, 1.0)]
    for holder in holders:
        assert holder.stdout is not None
        holder.stdout.close()
