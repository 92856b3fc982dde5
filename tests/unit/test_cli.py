"""The command line as a person meets it: what it says, what it exits with, never a traceback."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from posttrain_recipes import __version__, api
from posttrain_recipes.cli import COMMANDS
from posttrain_recipes.cli.init import FILES
from posttrain_recipes.plugin import Resume
from posttrain_recipes.records import Checkpoint, Estimate, Message, Sample
from posttrain_recipes.store import Measured, RunRecord, Spent, StageRecord, Store
from tests.conftest import ROOT, Project, Ptl, flat

# --- commands ------------------------------------------------------------------------------------


def test_help_names_every_command_with_its_summary(ptl: Ptl) -> None:
    said = ptl("-h")
    assert said.code == 0
    for name, summary in COMMANDS.items():
        assert f"{name} {summary}" in flat(said.out)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_helps(ptl: Ptl, name: str) -> None:
    said = ptl(name, "--help")
    assert said.code == 0
    assert said.out.startswith(f"Usage: ptl {name}")


def test_the_version(ptl: Ptl) -> None:
    assert ptl("--version").out == f"ptl, version {__version__}\n"


def test_a_misspelt_command_is_answered_with_the_nearest(ptl: Ptl) -> None:
    said = ptl("valdate", "mine.yaml")
    assert (said.code, said.out) == (2, "")
    assert "No such command 'valdate'. Did you mean 'validate'?" in said.err


def test_an_unknown_command_is_answered_without_a_guess(ptl: Ptl) -> None:
    said = ptl("xyzzy")
    assert said.code == 2
    assert said.err.rstrip().endswith("No such command 'xyzzy'.")


# --- init ----------------------------------------------------------------------------------------


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_init_writes_a_recipe_that_is_valid(ptl: Ptl, project: Project) -> None:
    said = ptl("init", "new/project")
    assert (said.code, said.err) == (0, "")
    own = {f"project/{name}" for name in (*FILES, "recipe.schema.json")}
    assert files(project.path / "new") == own
    first = (project.path / "new/project/recipe.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=recipe.schema.json"
    assert said.out.splitlines() == [
        "wrote new/project/recipe.yaml",
        "wrote new/project/data/train.jsonl",
        "wrote new/project/data/held_out.jsonl",
        "wrote new/project/recipe.schema.json",
        "",
        "next: ptl run new/project/recipe.yaml",
    ]
    checked = ptl("validate", "new/project/recipe.yaml")
    assert (checked.code, checked.out) == (0, "new/project/recipe.yaml: ok\n")


def test_init_overwrites_nothing(ptl: Ptl, project: Project) -> None:
    project.write("data/held_out.jsonl", "mine")
    said = ptl("init")
    assert said.code == 2
    assert said.err == (
        "error: data/held_out.jsonl is already there; nothing was written\n"
        "  next: name another directory: ptl init my_project\n"
        "help: ptl explain already-there\n"
    )
    assert (project.path / "data/held_out.jsonl").read_text() == "mine"
    assert not (project.path / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("starter", "recipes", "lines"),
    [("train.jsonl", "chat.jsonl", 400), ("held_out.jsonl", "held_out.jsonl", 64)],
)
def test_the_starters_data_are_the_first_lines_of_the_recipes(
    starter: str, recipes: str, lines: int
) -> None:
    own = (ROOT / "posttrain_recipes/starter/data" / starter).read_bytes().splitlines()
    theirs = (ROOT / "recipes/data" / recipes).read_bytes().splitlines()
    assert own == theirs[:lines], "run: python tools/make_recipe_data.py"


# --- validate and plan ---------------------------------------------------------------------------

GOOD = """\
name: demo
description: Two stages.
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft}
    eval: [{use: nll}]
  - name: dpo
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo}
    eval: [nll]
presets:
  quick: {seed: 1}
  bad: {stages: {sft: {method: {epoch: 2}}}}
"""
FAULT = {
    "file": "mine.yaml",
    "line": 15,
    "column": 33,
    "key": "stages.sft.method.epoch",
    "message": "unknown option for method 'sft'; did you mean 'epochs'?",
    "code": "unknown-key",
}


def test_validate_tells_the_fault_of_a_preset(ptl: Ptl, project: Project) -> None:
    project.write("mine.yaml", GOOD)
    said = ptl("validate", "mine.yaml")
    assert (said.code, said.out) == (
        2,
        "mine.yaml:15:33  stages.sft.method.epoch\n"
        "  unknown option for method 'sft'; did you mean 'epochs'?\n"
        "mine.yaml: 1 fault\n",
    )
    assert ptl("validate", "mine.yaml", "--preset", "quick").code == 0


def test_validate_as_json(ptl: Ptl, project: Project) -> None:
    project.write("mine.yaml", GOOD)
    project.write("good.yaml", GOOD[: GOOD.index("  bad:")])
    said = ptl("validate", "--json", "mine.yaml", "good.yaml", "nope.yaml")
    assert said.code == 2
    mine, good, nope = json.loads(said.out)
    assert mine == {"recipe": "mine.yaml", "ok": False, "faults": [FAULT]}
    assert good == {"recipe": "good.yaml", "ok": True, "faults": []}
    assert nope["faults"] == [
        {
            "file": "nope.yaml",
            "line": 0,
            "column": 0,
            "key": "",
            "message": "there is no recipe nope.yaml; did you mean mine.yaml?",
            "code": "no-such-file",
        }
    ]


@pytest.mark.nightly
def test_what_ships_is_valid_with_every_preset(ptl: Ptl) -> None:
    paths = sorted(str(path) for path in (ROOT / "recipes").rglob("*.yaml"))
    assert paths
    said = ptl("validate", *paths)
    assert said.out.splitlines() == [f"{path}: ok" for path in paths]
    assert said.code == 0


def test_plan_says_what_would_happen(ptl: Ptl, project: Project) -> None:
    project.write("mine.yaml", GOOD)
    said = ptl("plan", "mine.yaml")
    assert (said.code, said.out) == (
        0,
        "demo: ./model on engine local, preset quick\n"
        "  Two stages.\n"
        "  sft: learning_rate 0.0022: auto, by imitation, hidden size 64, rank 16\n"
        "  dpo: learning_rate 0.0022: auto, by preference, hidden size 64, rank 16\n"
        "\n"
        "1. sft: run (first run)\n"
        "   from    base (./model)\n"
        "   method  sft\n"
        "   data    chat.jsonl as Conversation records\n"
        "   eval    nll on chat.jsonl (test split)\n"
        "   ahead   1 step, about 52 tokens\n"
        "\n"
        "2. dpo: run (first run)\n"
        "   from    sft\n"
        "   method  dpo\n"
        "   data    pairs.jsonl as Preference records\n"
        "   eval    nll on chat.jsonl (test split)\n"
        "   ahead   1 step, about 259 tokens\n"
        "\n"
        "ahead: 2 steps, about 311 tokens\n",
    )
    assert not (project.path / ".ptl").exists()


def test_a_stage_that_did_not_end_is_shown_with_the_steps_that_it_kept(
    ptl: Ptl, project: Project
) -> None:
    run = finished("f")
    stage = run.stages[0]
    run.status, stage.status, stage.checkpoint = "stopped", "stopped", None
    stage.records, stage.total_steps, stage.method = 16, 8, "sft"
    stage.resume = Resume(4, "tinker://a/weights/4", "tinker://a/sampler_weights/4")
    stage.error, stage.lost = "limits.max_tokens", Spent(prefill=7)
    stage.training = Spent(1.0, train=5)
    keep(project, run)
    said = ptl("show", run.id).out
    assert "stopped, 4 of 8 steps kept on 16 records" in said
    assert "limits.max_tokens" in said
    assert "7 tokens of evals that were interrupted" in said


def test_plan_says_what_would_be_reused(ptl: Ptl, project: Project) -> None:
    project.write("mine.yaml", GOOD)
    stages = api.plan("mine.yaml").stages
    keep(project, finished(stages[0].fingerprint))
    for kind in ("weights", "sampler_weights"):
        saved = project.path / ".ptl/engine/runs/a_train_0" / kind / "8"
        saved.mkdir(parents=True)
        uri = f"tinker://a:train:0/{kind}/8"
        record = {"path": uri, "base_model": "", "lora": {"rank": 1}, "step": 8, "time": ""}
        (saved / "checkpoint.json").write_text(json.dumps(record))

    def told() -> list[tuple[str, str]]:
        said = json.loads(ptl("plan", "mine.yaml", "--json").out)
        return [(stage["action"], stage["why"]) for stage in said["stages"]]

    assert told() == [("reuse", "the same inputs as in run demo-1"), ("run", "first run")]
    (saved / "checkpoint.json").unlink()
    assert told()[0] == ("run", "the checkpoint of run demo-1 is gone")


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_broken_recipe_goes_to_stderr(ptl: Ptl, project: Project, command: str) -> None:
    project.write("mine.yaml", GOOD)
    said = ptl(command, "mine.yaml", "--preset", "bad")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "mine.yaml:15:33  stages.sft.method.epoch\n"
        "  unknown option for method 'sft'; did you mean 'epochs'?\n"
        "\n"
        "1 fault; nothing was run.\n"
        "help: ptl explain unknown-key\n"
    )


# --- runs and show -------------------------------------------------------------------------------


def finished(fingerprint: str = "f1") -> RunRecord:
    before, after = Estimate(0.25, 0.2, 0.3, 100), Estimate(0.75, 0.7, 0.8, 100)
    stage = StageRecord(
        "sft",
        fingerprint,
        "sft",
        status="finished",
        total_steps=8,
        records=40,
        checkpoint=Checkpoint(
            "ptl/tiny", "tinker://a:train:0/weights/8", "tinker://a:train:0/sampler_weights/8", 8
        ),
        before=[Measured("held_out", "exact_match", "e", "held", {"exact_match": before})],
        after=[Measured("held_out", "exact_match", "e", "held", {"exact_match": after})],
    )
    return RunRecord(
        id="demo-1",
        recipe="demo",
        fingerprint="f0",
        model="ptl/tiny",
        engine="local",
        path="mine.yaml",
        preset="quick",
        seed=3,
        resolved={},
        created="2026-01-02T03:04:05+00:00",
        stages=[stage, StageRecord("dpo", "f2", "dpo", status="failed")],
        status="failed",
        error="the engine is gone",
    )


def keep(project: Project, record: RunRecord) -> None:
    asked = (Message("user", "1+1?"),)
    with Store(project.path / ".ptl").open(record) as directory:
        directory.save()
        for when, reply in (("before", "two, I think"), ("after", "2")):
            directory.save_samples("sft", "held_out", when, (Sample(asked, reply, "2"),))


def test_no_runs_yet(ptl: Ptl, project: Project) -> None:
    said = ptl("runs")
    assert (said.code, said.out) == (0, "no runs yet; 'ptl run RECIPE' makes one\n")
    assert ptl("runs", "--json").out == "[]\n"
    assert ptl("runs", "--home", "elsewhere").code == 0
    assert not (project.path / ".ptl").exists()
    assert not (project.path / "elsewhere").exists()


def test_runs_are_listed(ptl: Ptl, project: Project) -> None:
    keep(project, finished())
    assert ptl("runs").out.splitlines() == [
        "run     status  began             model     stages",
        "demo-1  failed  2026-01-02 03:04  ptl/tiny  sft -> dpo (failed)",
    ]
    [listed] = json.loads(ptl("runs", "--json").out)
    assert (listed["id"], listed["stages"][0]["checkpoint"]["step"]) == ("demo-1", 8)


def test_a_run_whose_gate_failed_says_so_in_the_list(ptl: Ptl, project: Project) -> None:
    run = finished()
    run.resolved |= {"stages": [{"name": "sft", "expect": {"held_out": ">= 99%"}}]}
    keep(project, run)
    assert "failed, gate failed" in ptl("runs").out


@pytest.mark.parametrize("name", ["demo-1", "demo"])
def test_a_run_is_shown(ptl: Ptl, project: Project, name: str) -> None:
    keep(project, finished())
    said = ptl("show", name)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == "demo-1: failed, began 2026-01-02T03:04:05+00:00"
    assert "  error     the engine is gone" in lines
    assert "  recipe    mine.yaml (quick)" in lines
    assert "  sft       finished, 8 steps on 40 records" in lines
    assert "  prompt  1+1?" in lines
    assert "  before  two, I think" in lines
    assert "  after   2" in lines
    assert re.search(r"held_out\W.*25\.0%.*75\.0%.*\+50\.0", said.out)


def test_a_run_without_evals_says_that_nothing_tells_what_changed(
    ptl: Ptl, project: Project
) -> None:
    record = finished()
    record.status = "finished"
    for stage in record.stages:
        stage.before = stage.after = []
    keep(project, record)
    said = flat(ptl("show", "demo-1").out)
    assert "No eval has a result: nothing tells what the training changed" in said
    assert "before after change" not in said


def test_a_run_as_json_has_its_table(ptl: Ptl, project: Project) -> None:
    keep(project, finished())
    shown = json.loads(ptl("show", "demo", "--json").out)
    [row] = shown["table"]
    assert (row["label"], row["change"], row["verdict"]) == ("held_out", 0.5, "better")


def test_an_unknown_run_is_told(ptl: Ptl, project: Project) -> None:
    said = ptl("show", "demo-7")
    assert said.code == 2
    assert said.err == (
        f"error: there is no run 'demo-7' in {project.path}/.ptl\n"
        "  next: 'ptl run RECIPE' makes one\n"
        "help: ptl explain no-such-run\n"
    )


# --- whatever it is given ------------------------------------------------------------------------

TAKES_A_FILE = [("validate",), ("plan",), ("run",), ("data", "check")]
GIVEN: dict[str, bytes | None] = {
    "folder": None,
    "garbage.yaml": bytes(range(256)) * 8,
    "garbage.jsonl": bytes(range(256)) * 8,
    "nul.yaml": b"name: a\0b\n",
    "empty.yaml": b"",
    "empty.jsonl": b"",
    "comment.yaml": b"# nothing\n",
    "deep.yaml": b"name: " + b"[" * 1200,
    "deep.jsonl": b'{"messages": ' + b"[" * 3000 + b"\n",
    "number.yaml": b"name: " + b"1" * 5000,
    "documents.yaml": b"name: a\n---\nname: b\n",
    "anchor.yaml": b"name: *x\n",
    "null.yaml": b"name:\nmodel:\nengine:\nseed:\nlora:\nstages:\npresets:\nextends:\n",
    "null_stage.yaml": b"name: a\nmodel: ptl/tiny\nstages: [null, {name: null, eval: null}]\n",
    "lists.yaml": b"name: []\nmodel: []\nengine: []\nseed: []\nlora: []\nstages: {a: 1}\n",
    "stages.yaml": b"name: a\nmodel: ptl/tiny\nstages: [{name: [], method: [], eval: {}}]\n",
    "missing.yaml": None,
}


@pytest.fixture
def given(project: Project) -> None:
    for name, content in GIVEN.items():
        if content is not None:
            (project.path / name).write_bytes(content)
    (project.path / "folder").mkdir()


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("command", TAKES_A_FILE, ids=" ".join)
@pytest.mark.parametrize("name", GIVEN)
def test_whatever_file_it_is_given_it_is_told_in_words(
    ptl: Ptl, command: tuple[str, ...], name: str
) -> None:
    said = ptl(*command, name)
    assert said.code in (1, 2)
    assert name.split(".")[0] in said.out + said.err


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("init", "garbage.yaml"), 2),
        (("init", "garbage.yaml/inside"), 1),
        (("schema", "-o", "folder"), 1),
        (("schema", "-o", "garbage.yaml/inside"), 1),
        (("show", "../../etc"), 2),
        (("show", ""), 2),
        (("runs", "--home", "garbage.yaml"), 2),
        (("plan", "empty.yaml", "--home", "garbage.yaml"), 2),
        (("validate",), 2),
        (("validate", "--preset", "", "empty.yaml"), 2),
        (("validate", "empty.yaml", "--set", "a"), 2),
        (("plugins", "shw"), 2),
        (("--no-such-option",), 2),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else None,
)
def test_whatever_it_is_told_to_do_it_answers_in_words(
    ptl: Ptl, words: tuple[str, ...], code: int
) -> None:
    said = ptl(*words)
    assert said.code == code
    assert said.out + said.err


@pytest.mark.usefixtures("given")
def test_a_directory_of_runs_that_are_none_is_read(ptl: Ptl, project: Project) -> None:
    project.write(".ptl/runs/demo-1/run.json", "garbage")
    project.write(".ptl/runs/demo-2", "a file")
    said = ptl("runs")
    assert "demo-1  unreadable" in said.out
    assert "demo-1 cannot be read: it is cut off, or no JSON" in said.err
    assert "demo-2" not in said.out


# --- how to go on --------------------------------------------------------------------------------


def test_the_command_that_goes_on_has_what_was_given(
    ptl: Ptl, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("posttrain_recipes.running.runner.run", interrupted)
    assert ptl("init").code == 0
    plain = ptl("run", "recipe.yaml")
    assert plain.code == 130
    assert plain.out.splitlines()[-1] == "go on with: ptl run recipe.yaml"
    changes = ("--set", "seed=1", "--set", "stages.sft.method.learning_rate=1e-3")
    kept = ("--home", "my runs", "--until", "sft", "--jobs", "2")
    said = ptl("run", *changes, "--fresh", *kept, "recipe.yaml", "--from", "sft")
    (told,) = [line for line in said.out.splitlines() if line.startswith("go on with: ")]
    words = shlex.split(told.removeprefix("go on with: "))
    assert words[:3] == ["ptl", "run", "recipe.yaml"]
    assert sorted(words[3:]) == sorted((*changes, *kept))
    assert words[words.index("--home") + 1] == "my runs"
