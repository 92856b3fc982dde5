"""Event files are read back with TensorBoard's own reader: each value is there once, and right."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorboard")

from ptl_tensorboard import TensorBoard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import posttrain_recipes as ptl
from posttrain_recipes.plugin import (
    Estimate,
    EvalLogged,
    Message,
    NoteLogged,
    RunEnded,
    RunStarted,
    Sample,
    SamplesLogged,
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
trackers: [{use: tensorboard, logdir: curves}]
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 8}
    method: {use: sft, learning_rate: 1e-3, batch_size: 4, max_steps: 3, epochs: 3, save_every: 1}
    eval: [{use: nll, every: 2}]
  - name: more
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, learning_rate: 1e-3, batch_size: 4, max_steps: 2, epochs: 3}
"""


class Warned(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def test_it_conforms() -> None:
    check_plugin("tracker", "tensorboard")


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = read(folder)
    return {
        tag: [(one.step, one.value) for one in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def texts(folder: Path, tag: str) -> list[tuple[int, str]]:
    found = read(folder)
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in found.Tensors(tag)]


def tell(folder: Path, *steps: int, status: Any = "finished", **options: Any) -> None:
    """One try of a run: a stage with these steps."""
    tracker = TensorBoard(TensorBoard.Config(**options))
    yaml = "name: told\nstages: [<b>]\n"
    tracker.run_started(RunStarted(run_id="t-1", recipe="t", folder=folder, resolved_yaml=yaml))
    tracker.stage_started(StageStarted(stage="sft", index=1, params={"beta": 0.1, "seed": 0}))
    for step in steps:
        values = {"train/loss": 1 / step, "train/grad_norm": math.nan}
        tracker.log_metrics(StepMetrics(stage="sft", step=step, values=values))
    tracker.log_note(NoteLogged(stage="sft", text="cut", warning=True))
    metrics = {"exact": Estimate(0.5, 0.25, 0.75, 16)}
    tracker.log_eval(
        EvalLogged(stage="sft", name="held_out", when="before", step=0, metrics=metrics)
    )
    asked = (Message("user", "3 | 4?"),)
    replies = [
        Sample(asked, "<i>7</i>\nyes", "7", {"exact": 1.0}),
        Sample(asked, "8"),
        Sample(asked, "9"),
    ]
    shown = SamplesLogged(stage="sft", name="held_out", when="before", step=0, samples=replies)
    tracker.log_samples(shown)
    tracker.run_ended(RunEnded(status=status, report="# t-1" if status == "finished" else ""))


def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path) -> None:
    tell(tmp_path, 1, 2, 3, status="killed")
    (first,) = (tmp_path / "sft").glob("events*")
    # The machine died while the last record was written: what was whole counts.
    first.write_bytes(first.read_bytes()[:-9])
    tell(tmp_path, 1, 2, 3, 4, samples=2)
    found = scalars(tmp_path / "sft")
    assert found["train/loss"] == [(s, pytest.approx(1 / s)) for s in (1, 2, 3, 4)]
    assert [step for step, value in found["train/grad_norm"] if math.isnan(value)] == [1, 2, 3, 4]
    assert found["eval/held_out/exact"] == [(0, 0.5)]
    assert found["uncertainty/held_out/exact_low"] == [(0, 0.25)]
    assert found["uncertainty/held_out/exact_high"] == [(0, 0.75)]
    assert texts(tmp_path / "sft", "notes") == [(1, "**warning:** cut")]
    (step, table), *rest = texts(tmp_path / "sft", "samples/held_out-before")
    assert (step, rest) == (0, [])
    assert "| 3 \\| 4? | &lt;i&gt;7&lt;/i&gt;<br>yes | 7 | 1 |" in table
    assert "1 more of 3 are not shown here" in table
    assert texts(tmp_path, "report") == [(0, "# t-1")]
    assert "    stages: [<b>]" in texts(tmp_path, "recipe")[0][1]
    tell(tmp_path, 1, 2, 3, 4)
    assert len(list((tmp_path / "sft").glob("events*"))) == 2, "nothing new is no new file"


def test_the_page_of_options_has_them(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    tell(tmp_path, 1)
    kept = read(tmp_path / "sft").PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(kept["_hparams_/session_start_info"])
    assert start.hparams["beta"].number_value == pytest.approx(0.1)


@pytest.mark.nightly
def test_a_real_run_is_there_as_it_was(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": f"{n} + 1 ="} for n in range(20)]
    rows = [
        {"messages": [one, {"role": "assistant", "content": str(n + 1)}]}
        for n, one in enumerate(asked)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "seen.yaml").write_text(RECIPE)
    heard = Warned()
    run = ptl.run(tmp_path / "seen.yaml", home=tmp_path / "home", reporter=heard).record
    assert [text for text in heard.warnings if "tensorboard" in text] == []
    import mlflow

    client = mlflow.MlflowClient(run.tracking_uri)
    for stage in run.stages:
        found = scalars(tmp_path / "curves" / run.id / stage.name)
        lines = (tmp_path / "home" / "runs" / run.id / "curves" / f"{stage.name}.jsonl").read_text()
        steps = [json.loads(line) for line in lines.splitlines()]
        assert [step["step"] for step in steps] == list(range(1, stage.total_steps + 1))
        for step in steps:
            for name, value in step.items():
                if name != "step":
                    assert (step["step"], pytest.approx(value, rel=1e-6)) in found[name]
        history = client.get_metric_history(stage.tracking_id, "train/loss")
        assert found["train/loss"] == [(m.step, pytest.approx(m.value, rel=1e-6)) for m in history]
    sft = run.stage("sft")
    points = [(0, sft.before[0]), (2, sft.during[0]), (3, sft.after[0])]
    found = scalars(tmp_path / "curves" / run.id / "sft")
    for end, name in (("value", "eval/nll/nll"), ("low", "uncertainty/nll/nll_low")):
        expected = [(s, pytest.approx(getattr(m.metrics["nll"], end), rel=1e-6)) for s, m in points]
        assert found[name] == expected
    assert f"name: {run.recipe}" in texts(tmp_path / "curves" / run.id, "recipe")[0][1]
    assert run.id in texts(tmp_path / "curves" / run.id, "report")[0][1]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "curves").write_text("no folder")
    for named in ("curves", "curves/below"):
        with pytest.raises(UsageError, match="is a file, and 'logdir' needs a folder"):
            TensorBoard(TensorBoard.Config(logdir=named), tmp_path).check()
    TensorBoard(TensorBoard.Config(logdir="new"), tmp_path).check()
