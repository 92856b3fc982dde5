"""Whole runs: the real SDK, the embedded engine, the bundled model, MLflow."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import posttrain_recipes as ptl
from posttrain_recipes.errors import PtlError
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.models import BUNDLED
from posttrain_recipes.progress.event_log import EventLog, open_events
from posttrain_recipes.progress.event_schema import event_schema
from posttrain_recipes.store import RunRecord, Store
from posttrain_recipes.tracking import mlstore
from tests import forks
from tests.adapters import adapter
from tests.presets import preset_names

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
OFTEN = (
    *("sft_then_dpo", "kto", "orpo", "reward_model", "grpo_arithmetic", "tool_use", "self_play"),
    *("best_of_n", "distill_on_policy", "prompt_distill", "rubric_rl", "sft_mbpp"),
)
"""Recipes that between them take every way there is; the others run for two steps at night."""
SMALL = [path for path in RECIPES if "small" in preset_names(path)]

RECIPE = """\
name: small
model: ptl/tiny
lora: {rank: 4}
stages:
  - name: sft
    dataset: {use: jsonl, path: DATA/chat.jsonl, limit: 64, test_size: 16}
    method: {use: sft, learning_rate: 1e-3, batch_size: 8, epochs: 2, save_every: 2, max_steps: 8}
    eval: [{use: nll}]
  - name: dpo
    dataset: {use: jsonl, path: DATA/preferences.jsonl, limit: 24}
    method: {use: dpo, learning_rate: 5e-4, batch_size: 4, save_every: 2, max_steps: 6}
    eval:
      - use: preference_accuracy
        name: tone
        dataset: {use: jsonl, path: DATA/preferences_held_out.jsonl, limit: 16}
"""

# Runs the recipe in a process of its own, and sends that process a signal at a given moment.
DRIVER = """\
import os, sys
import posttrain_recipes as ptl
from posttrain_recipes.running.events import Reporter

recipe, home, stage, step, number = sys.argv[1:]

class Killer(Reporter):
    def stage_started(self, planned, record, count):
        self.stage = planned.name
    def step(self, done, total, metrics):
        if self.stage == stage and done == int(step):
            print("signalled", flush=True)
            os.kill(os.getpid(), int(number))

ptl.run(recipe, home=home, reporter=Killer())
print("finished")
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.replace("DATA", str(ROOT / "recipes" / "data")))
    return path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    path = folder / "small.yaml"
    path.write_text(RECIPE.replace("DATA", str(ROOT / "recipes" / "data")))
    with forks.engines():
        log = EventLog(open_events(folder / "events.jsonl", print))
        return folder / "home", ptl.run(path, home=folder / "home", reporter=log).record


def drive(recipe: Path, home: Path, stage: str, step: int, number: int) -> tuple[int, str]:
    mlstore.create_database(home)  # sooner than the process would
    command = [sys.executable, "-c", DRIVER, str(recipe), str(home), stage, str(step), str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "signalled" in done.stdout, done.stderr
    return done.returncode, done.stdout + done.stderr


def assert_same_result(home: Path, record: RunRecord, expected: tuple[Path, RunRecord]) -> None:
    """The same weights to float noise, the same metrics, every batch trained once."""
    for mine, theirs in zip(record.stages, expected[1].stages, strict=True):
        assert mine.total_steps == theirs.total_steps
        assert mine.tokens == theirs.tokens
        assert mine.checkpoint
        assert theirs.checkpoint
        assert mine.checkpoint.sampler_uri
        assert theirs.checkpoint.sampler_uri
        ours = adapter(home / "engine", mine.checkpoint.sampler_uri)
        other = adapter(expected[0] / "engine", theirs.checkpoint.sampler_uri)
        assert ours.keys() == other.keys()
        for name, tensor in ours.items():
            assert (tensor - other[name]).abs().max().item() < 1e-5, name
        for a, b in zip(mine.after, theirs.after, strict=True):
            for metric, estimate in a.metrics.items():
                assert estimate.value == pytest.approx(b.metrics[metric].value, abs=1e-4)


def steps_in_mlflow(home: Path, run_id: str) -> list[int]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    return [metric.step for metric in client.get_metric_history(run_id, "train/loss")]


def mlflow_status(home: Path, run_id: str) -> str:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}").get_run(run_id).info.status


def engines_of(home: Path) -> list[int]:
    """Engine processes that keep their data below `home`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "posttrain_recipes.engine" in command and str(home) in command:
                found.append(int(entry.name))
    return found


def wait_for_end(pids: list[int], seconds: float = 30.0) -> bool:
    """Whether all processes end within the time."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ready, _, _ = select.select([descriptor], [], [], seconds)
        os.close(descriptor)
        if not ready:
            return False
    return True


def test_recipes_are_found() -> None:
    assert {p.name for p in RECIPES} >= {
        "sft.yaml",
        "dpo.yaml",
        "sft_then_dpo.yaml",
        "sft_gsm8k.yaml",
    }


@pytest.mark.usefixtures("quick_engines")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.nightly] * (path.stem not in OFTEN), id=path.stem)
        for path in RECIPES
    ],
)
def test_every_shipped_recipe_runs_for_two_steps(path: Path, tmp_path: Path) -> None:
    ptl.validate(path)
    result = ptl.run(path, preset="tiny", home=tmp_path)
    _trained_for_two_steps(result, tmp_path)


@pytest.mark.nightly
@pytest.mark.usefixtures("quick_engines")
@pytest.mark.parametrize("path", SMALL, ids=lambda p: p.stem)
def test_every_preset_small_runs_for_two_steps(path: Path, tmp_path: Path) -> None:
    """On the bundled model, with few records: whether the claims hold takes a real one."""
    overrides = ["model=ptl/tiny"]
    for stage in recipes.load(path, preset="small").data["stages"]:
        at = f"stages.{stage['name']}"
        makes = stage["method"]["use"] == "constitutional"
        overrides += [f"{at}.dataset.limit=8" if makes else f"{at}.method.max_steps=2"]
        overrides += [f"{at}.method.batch_size=4"]
        overrides += [f"{at}.method.group_size=4"] * (stage["method"]["use"] == "grpo")
        evals = [one["name"] for one in stage.get("eval", ()) if isinstance(one, dict)]
        overrides += [f"{at}.eval.{name}.dataset.limit=4" for name in evals]
    result = ptl.run(path, preset="small", overrides=overrides, home=tmp_path)
    _trained_for_two_steps(result, tmp_path)


def _trained_for_two_steps(result: ptl.Result, home: Path) -> None:
    assert result.status == "finished"
    stages = [stage for stage in result.record.stages if stage.method != "merge"]
    trained = [stage for stage in stages if stage.method and not stage.made]
    assert trained
    for stage in trained:
        assert stage.total_steps == 2
        assert stage.checkpoint
        assert stage.checkpoint.step == 2
        assert len(stage.before) == len(stage.after)
        assert steps_in_mlflow(home, stage.tracking_id or "") == [1, 2]
    assert any(stage.after for stage in trained), "nothing shows what it did"
    for stage in result.record.stages:
        expected, spent = stage.estimate, stage.spent.usage.tokens
        if expected is not None and not expected.unknown and expected.exact:
            assert spent <= expected.tokens if expected.at_most else spent == expected.tokens
    assert mlflow_status(home, result.record.tracking_id or "") == "FINISHED"


@pytest.mark.usefixtures("quick_engines")
@pytest.mark.parametrize(
    ("stage", "step", "number"),
    [
        ("sft", 5, signal.SIGKILL),
        pytest.param("dpo", 3, signal.SIGKILL, marks=pytest.mark.nightly),
        pytest.param("sft", 3, signal.SIGTERM, marks=pytest.mark.nightly),
    ],
)
def test_a_killed_run_goes_on_to_the_same_result(
    recipe: Path,
    tmp_path: Path,
    uninterrupted: tuple[Path, RunRecord],
    stage: str,
    step: int,
    number: int,
) -> None:
    home = tmp_path / "home"
    code, output = drive(recipe, home, stage, step, number)
    assert code != 0
    assert wait_for_end(engines_of(home)), "the engine outlived its run"
    (killed,) = Store(home).runs()
    assert killed.status == "killed", output
    result = ptl.run(recipe, home=home)
    assert result.run_id == killed.id, "the same run goes on"
    assert result.status == "finished"
    assert_same_result(home, result.record, uninterrupted)
    for kept, total in zip(result.record.stages, (8, 6), strict=True):
        assert steps_in_mlflow(home, kept.tracking_id or "") == list(range(1, total + 1))


def test_a_killed_run_leaves_no_engine_and_shows_as_killed(recipe: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    drive(recipe, home, "sft", 2, signal.SIGKILL)
    assert wait_for_end(engines_of(home))
    from posttrain_recipes.tracking.tracker import MlflowTracker

    (killed,) = Store(home).runs()
    assert killed.tracking_id
    MlflowTracker(home).mark_dead_runs()
    assert mlflow_status(home, killed.tracking_id) == "KILLED"


def test_ctrl_c_keeps_what_was_trained_and_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    mlstore.create_database(home)
    command = [
        sys.executable,
        "-m",
        "posttrain_recipes.cli",
        "run",
        str(recipe),
        "--home",
        str(home),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "step 1/" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(120) == 130
    assert "kept up to step" in rest
    assert f"go on with: ptl run {recipe}" in rest
    (record,) = Store(home).runs()
    assert record.status == "killed"
    assert record.stages[0].resume is not None
    assert mlflow_status(home, record.tracking_id or "") == "KILLED"
    assert not engines_of(home)


@pytest.mark.usefixtures("quick_engines")
def test_a_second_run_reuses_and_a_changed_stage_reruns_alone(
    recipe: Path, uninterrupted: tuple[Path, RunRecord]
) -> None:
    home, first = uninterrupted
    again = ptl.run(recipe, home=home)
    assert again.run_id == first.id, "nothing was left to do"
    changed = ptl.run(recipe, home=home, overrides=["stages.dpo.method.beta=0.5"])
    assert changed.run_id != first.id
    assert [stage.status for stage in changed.record.stages] == ["reused", "finished"]
    assert changed.record.stages[0].checkpoint == first.stages[0].checkpoint


@pytest.mark.usefixtures("quick_engines")
def test_a_stage_whose_checkpoint_is_gone_is_trained_again(recipe: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    only = ["stages.sft.method.max_steps=2", "stages.dpo.method.max_steps=2"]
    first = ptl.run(recipe, home=home, overrides=only)
    shutil.rmtree(home / "engine")
    again = ptl.run(recipe, home=home, overrides=[*only, "stages.dpo.method.beta=0.5"])
    assert [stage.status for stage in again.record.stages] == ["finished", "finished"]
    before, after = (r.stages["sft"].after["nll"]["nll"].value for r in (first, again))
    assert after == pytest.approx(before, abs=1e-4)


@pytest.mark.usefixtures("quick_engines")
def test_a_run_starts_from_a_state_of_another(
    recipe: Path, uninterrupted: tuple[Path, RunRecord]
) -> None:
    home, first = uninterrupted
    start = first.stages[0].checkpoint
    assert start
    text = recipe.read_text()
    alone = text[: text.index("  - name: sft")] + text[text.index("  - name: dpo") :]
    recipe.write_text(alone.replace("name: dpo", f"name: dpo\n    init_from: {start.state_uri}"))
    again = ptl.run(recipe, home=home)["dpo"]
    for ours, theirs in (
        (again.before, first.stages[1].before),
        (again.after, first.stages[1].after),
    ):
        margin = theirs[0].metrics["margin"].value
        assert ours["tone"]["margin"].value == pytest.approx(margin, abs=1e-4)


@pytest.mark.nightly
@pytest.mark.usefixtures("quick_engines")
def test_a_model_in_a_directory_is_trained_like_a_bundled_one(
    recipe: Path, tmp_path: Path, uninterrupted: tuple[Path, RunRecord]
) -> None:
    shutil.copytree(BUNDLED["ptl/tiny"], tmp_path / "my-model")
    text = recipe.read_text()
    recipe.write_text(
        text[: text.index("  - name: dpo")].replace("model: ptl/tiny", "model: ./my-model")
    )
    result = ptl.run(recipe, home=tmp_path / "home")
    theirs = uninterrupted[1].stages[0].after[0].metrics["nll"]
    assert result["sft"].after["nll"]["nll"].value == pytest.approx(theirs.value, abs=1e-4)


@pytest.mark.usefixtures("quick_engines")
def test_an_evaluation_stage_measures_and_trains_nothing(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(
        "name: measure\nmodel: ptl/tiny\nstages:\n  - name: look\n    eval:\n"
        "      - {use: exact_match, dataset: {use: jsonl, path: "
        f"{ROOT}/recipes/data/held_out.jsonl, limit: 8}}}}\n"
    )
    result = ptl.run(recipe, home=tmp_path / "home")
    (stage,) = result.record.stages
    assert stage.method is None
    assert stage.before[0].metrics["exact_match"].count == 8
    assert stage.checkpoint
    assert stage.checkpoint.is_base


@pytest.mark.usefixtures("quick_engines")
def test_a_record_that_is_too_long_is_named(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(PtlError, match=r"chat\.jsonl:\d+: \d+ tokens are more than max_length=4"):
        ptl.run(recipe, home=tmp_path / "home", overrides=["stages.sft.method.max_length=4"])
    (record,) = Store(tmp_path / "home").runs()
    assert record.status == "failed"
    assert not any(stage.started for stage in record.stages), "found out before it costs"


@pytest.mark.usefixtures("quick_engines")
def test_a_record_that_cannot_be_learned_fails_its_stage(recipe: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    data = tmp_path / "weightless.jsonl"
    data.write_text(json.dumps({"messages": turns}) + "\n")
    changed = [f"stages.sft.dataset.path={data}", "stages.sft.dataset.test_size=0"]
    changed += ["stages.sft.eval=[]"]
    with pytest.raises(PtlError, match=r"weightless\.jsonl:1: its messages are all of weight 0"):
        ptl.run(recipe, home=tmp_path / "home", overrides=changed, until="sft")
    (record,) = Store(tmp_path / "home").runs()
    assert record.status == "failed"
    assert mlflow_status(tmp_path / "home", record.tracking_id or "") == "FAILED"


def test_an_engine_that_dies_ends_the_run_with_its_log(recipe: Path, tmp_path: Path) -> None:
    from posttrain_recipes.running.events import Reporter

    home = tmp_path / "home"

    class Killer(Reporter):
        def step(self, number: int, total: int, metrics: object) -> None:
            if number == 3:
                for pid in engines_of(home):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(PtlError, match="the engine ended while the run needed it"):
        ptl.run(recipe, home=home, reporter=Killer())
    (record,) = Store(home).runs()
    assert record.status == "failed"
    with forks.engines():
        assert ptl.run(recipe, home=home).run_id == record.id


def test_every_event_of_a_run_has_the_form_of_the_schema(
    uninterrupted: tuple[Path, RunRecord],
) -> None:
    validator = Draft202012Validator(event_schema())
    lines = (uninterrupted[0].parent / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for event in events:
        validator.validate(event)
    assert {event["run"] for event in events} == {uninterrupted[1].id}
    steps = [(event["stage"], event["step"]) for event in events if event["event"] == "step"]
    assert steps == [*(("sft", n) for n in range(1, 9)), *(("dpo", n) for n in range(1, 7))]


def test_json_is_all_that_stdout_gets(recipe: Path, uninterrupted: tuple[Path, RunRecord]) -> None:
    command = [sys.executable, "-m", "posttrain_recipes.cli", "run", str(recipe), "--json"]
    done = subprocess.run(
        [*command, "--home", str(uninterrupted[0])], capture_output=True, text=True, timeout=120
    )
    data = json.loads(done.stdout)
    assert data["status"] == "finished"
    assert {row["eval"] for row in data["table"]} == {"nll", "tone"}
