"""What wandb writes offline is read back: each value is there once, and right."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("wandb")

import ptl_wandb
from ptl_wandb import WeightsAndBiases

import posttrain_recipes as ptl
from posttrain_recipes.plugin import (
    CheckpointLogged,
    Estimate,
    EvalLogged,
    Message,
    NoteLogged,
    RunEnded,
    RunStarted,
    Sample,
    SamplesLogged,
    StageEnded,
    StageStarted,
    StepMetrics,
    UsageError,
)
from posttrain_recipes.running.events import Reporter
from posttrain_recipes.testing import check_plugin

RECIPE = """
name: seen
model: ptl/nano
lora: {rank: 4}
trackers: [{use: wandb, project: tried, mode: offline}]
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 8}
    method: {use: sft, learning_rate: 1e-3, batch_size: 4, max_steps: 3, epochs: 3, save_every: 1}
    eval: [{use: nll, every: 2}]
"""


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("http_proxy", "https_proxy"):  # offline nobody is asked, at this address neither
        monkeypatch.setenv(name, "http://127.0.0.1:9")


class Warned(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


# --- wandb's files -------------------------------------------------------------------------------

BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: a header, then LevelDB's log format.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # too short for a header: zeros to the end of the block
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the whole of one, or its end
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


class Seen:
    """What the files of a run say, all of its tries together."""

    def __init__(self, folder: Path) -> None:
        import wandb

        wandb.teardown()  # its own process has the last word of a run to write
        self.rows: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.ids: list[str] = []
        self.exits: list[int] = []
        self.names: set[tuple[str, str]] = set()
        self.steps: dict[str, str] = {}
        self.kinds: set[str] = set()
        self.paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
        for record in (record for path in self.paths for record in records(path)):
            kind = record.WhichOneof("record_type")
            self.kinds.add(kind)
            if kind == "run":
                self.ids.append(record.run.run_id)
                self.names.add((record.run.project, record.run.display_name))
                self.config.update(_items(record.run.config.update))
            elif kind == "config":
                self.config.update(_items(record.config.update))
            elif kind == "summary":
                self.summary.update(_items(record.summary.update))
            elif kind == "history":
                self.rows.append(_items(record.history.item))
            elif kind == "metric" and record.metric.step_metric:
                self.steps[record.metric.glob_name] = record.metric.step_metric
            elif kind == "exit":
                self.exits.append(record.exit.exit_code)

    def curve(self, stage: str, name: str) -> list[tuple[int, Any]]:
        name = f"{stage}/{name}"
        return [(row[f"{stage}/step"], row[name]) for row in self.rows if name in row]


def _items(items: Any) -> dict[str, Any]:
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


# --- the tracker ---------------------------------------------------------------------------------


def test_it_conforms() -> None:
    check_plugin("tracker", "wandb", mode="offline")


def tell(folder: Path, *steps: int, status: Any = "finished") -> None:
    """One try of a run: two stages side by side, of which the first has these steps."""
    tracker = WeightsAndBiases(WeightsAndBiases.Config(mode="offline", project="p", samples=1))
    params = {"model": "ptl/nano", "seed": 0}
    started = RunStarted(run_id="t-1", recipe="t", folder=folder, params=params)
    tracker.run_started(started)
    for index, stage in enumerate(("sft", "dpo"), 1):
        tracker.stage_started(StageStarted(stage=stage, index=index, params={"beta": index / 10}))
    for step in steps:
        tracker.log_metrics(StepMetrics(stage="sft", step=step, values={"train/loss": 1 / step}))
        tracker.log_metrics(StepMetrics(stage="dpo", step=step, values={"train/loss": 2 / step}))
    metrics = {"exact": Estimate(0.5, 0.25, 0.75, 16)}
    for when, step in (("before", 0), ("after", 9), ("during", 2)):
        told: Any = when
        found = EvalLogged(stage="sft", name="held_out", when=told, step=step, metrics=metrics)
        tracker.log_eval(found)
    asked = (Message("system", "Be brief."), Message("user", "3 + 4?"))
    replies = [Sample(asked, "7", "7", {"exact": 1.0}), Sample(asked, "8", truncated=True)]
    tracker.log_samples(
        SamplesLogged(stage="sft", name="held_out", when="before", step=0, samples=replies)
    )
    tracker.log_note(NoteLogged(stage="sft", text="cut", warning=True))
    tracker.log_checkpoint(
        CheckpointLogged(stage="sft", uri="tinker://a", sampler_uri=None, step=9)
    )
    tracker.stage_ended(StageEnded(stage="sft", status="finished"))
    tracker.run_ended(RunEnded(status=status, report="# t-1"))


def test_a_run_that_goes_on_has_one_id_and_each_step_once(tmp_path: Path) -> None:
    tell(tmp_path, 1, 2, status="killed")
    tell(tmp_path, 1, 2, 3)
    seen = Seen(tmp_path)
    assert len(seen.paths) == 2
    assert len(set(seen.ids)) == 1
    assert seen.ids[0].startswith("t-1-")
    assert seen.names == {("p", "t-1")}
    assert seen.exits == [1, 0]
    assert seen.curve("sft", "train/loss") == [(s, 1 / s) for s in (1, 2, 3)]
    assert seen.curve("dpo", "train/loss") == [(s, 2 / s) for s in (1, 2, 3)]
    assert seen.curve("sft", "eval/held_out/exact") == [(0, 0.5), (9, 0.5), (2, 0.5)]
    assert (seen.steps["sft/*"], seen.steps["dpo/*"]) == ("sft/step", "dpo/step")
    assert (seen.config["seed"], seen.config["sft/beta"], seen.config["dpo/beta"]) == (0, 0.1, 0.2)
    kept = seen.summary
    place = "sft/eval/held_out/exact/after"
    assert [kept[place + end] for end in ("", "_low", "_high")] == [0.5, 0.25, 0.75]
    assert kept["sft/notes"] == [
        "samples/held_out-before: the first 1 of each time alone",
        "warning: cut",
    ]
    assert (kept["sft/checkpoint"], kept["sft/status"], kept["status"]) == (
        *("tinker://a", "finished"),
        "finished",
    )
    assert seen.curve("sft", "samples/held_out-before/nrows") == [(0, 1)]
    ((_, path),) = seen.curve("sft", "samples/held_out-before/path")
    files = seen.paths[0].parent / "files"
    rows = json.loads((files / path).read_text())
    assert dict(zip(rows["columns"], rows["data"][0], strict=True)) == {
        "prompt": "system: Be brief.\nuser: 3 + 4?",
        "reply": "7",
        "expected": "7",
        "cut": False,
        "exact": 1.0,
    }
    assert (files / "report.md").read_text() == "# t-1"
    # Nothing of the machine, the console or the command line is there.
    assert not {"output", "output_raw", "stats", "environment"} & seen.kinds
    assert not list(files.glob("wandb-metadata.json"))
    assert not list(files.glob("requirements.txt"))


def test_a_machine_that_dies_leaves_no_step_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(ptl_wandb, "time", SimpleNamespace(monotonic=lambda: now[0]))
    kept = ptl_wandb._Kept(tmp_path / "told.json", "t-1")
    for step in range(1, 30):
        now[0] += 1
        assert kept.is_new("sft/train/loss", step)
        kept.write_behind()
    again = ptl_wandb._Kept(tmp_path / "told.json", "t-1")
    assert again.id == kept.id
    assert 29 - 10 <= again.last["sft/train/loss"] <= 29 - 5
    kept.write()
    assert ptl_wandb._Kept(tmp_path / "told.json", "t-1").last["sft/train/loss"] == 29


def test_a_run_that_is_to_be_online_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = WeightsAndBiases(WeightsAndBiases.Config())
    with pytest.raises(UsageError, match="WANDB_API_KEY is not set"):
        tracker.check()
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker.check()
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    with pytest.raises(UsageError, match="WANDB_MODE is 'dryrun'"):
        tracker.check()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    WeightsAndBiases(WeightsAndBiases.Config(mode="online")).check()
    assert "api_key" not in WeightsAndBiases.Config.model_fields


@pytest.mark.nightly
def test_a_real_run_is_there_as_it_was(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n} + 1 ="},
                {"role": "assistant", "content": str(n + 1)},
            ]
        }
        for n in range(20)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "seen.yaml").write_text(RECIPE)
    home, heard = tmp_path / "home", Warned()
    run = ptl.run(tmp_path / "seen.yaml", home=home, reporter=heard).record
    assert [text for text in heard.warnings if "wandb" in text] == []
    seen = Seen(home / "runs" / run.id / "trackers" / "wandb")
    assert seen.names == {("tried", run.id)}
    assert seen.config["sft/learning_rate"] == 1e-3
    lines = (home / "runs" / run.id / "curves" / "sft.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        for name, value in step.items():
            if name != "step":
                assert (step["step"], pytest.approx(value)) in seen.curve("sft", name)
    import mlflow

    client = mlflow.MlflowClient(run.tracking_uri)
    history = client.get_metric_history(run.stage("sft").tracking_id, "train/loss")
    assert seen.curve("sft", "train/loss") == [(m.step, pytest.approx(m.value)) for m in history]
    sft = run.stage("sft")
    points = [(0, sft.before[0]), (2, sft.during[0]), (3, sft.after[0])]
    expected = [(step, pytest.approx(m.metrics["nll"].value)) for step, m in points]
    assert seen.curve("sft", "eval/nll/nll") == expected
    after = sft.after[0].metrics["nll"]
    low = seen.summary["sft/eval/nll/nll/after_low"]
    assert low == pytest.approx(after.low)
    assert seen.exits == [0]
