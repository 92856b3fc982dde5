"""Checkpoints in MLflow's model registry: what is let in, what is said of it, who starts there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.engine.storage.checkpoints import (
    CheckpointRecord,
    CheckpointStore,
    TrainingRun,
    now,
    parse_path,
)
from posttrain_recipes.engine.wire import AdapterConfig
from posttrain_recipes.records import Checkpoint
from posttrain_recipes.store import Store
from posttrain_recipes.tracking import mlstore
from tests.conftest import Project, Ptl, flat
from tests.unit.test_page import finish

STATE = "tinker://a:train:0/weights/b"
RECIPE = """\
name: demo
model: ./model
lora: {rank: 8}
expect: {held_out: ">= 25%"}
stages:
  - name: dpo
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo, beta: 0.1}
    eval: [{use: exact_match, name: held_out, dataset: {use: jsonl, path: questions.jsonl}}]
"""
NEXT = """\
name: next
model: models:/tone@champion
stages:
  - name: more
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft}
  - name: other
    init_from: base
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft}
"""


def trained(project: Project, right: int, number: int = 1) -> Path:
    """A home with a run that found so many of 12 right."""
    home = project.path / "home"
    record = finish(home, project.plan(RECIPE), {"dpo": [i < right for i in range(12)]})
    state = STATE.replace("/b", f"/b{number}")
    sampler = state.replace("weights", "sampler_weights")
    with Store(home).open(record) as directory:
        record.stages[0].checkpoint = Checkpoint("./model", state, sampler, 3)
        directory.save()
    save(home, state)
    return home


def save(home: Path, state: str) -> None:
    """A checkpoint of the embedded engine; nobody looks at its weights here."""
    kept = CheckpointStore(home / "engine")
    lora = AdapterConfig(rank=8, seed=1)
    path = parse_path(state)
    kept.add_run(TrainingRun(path.run, "a", "./model", lora, now()))
    record = CheckpointRecord(state, "./model", lora, 1, now())
    kept.save(path, record, lambda folder: None, False)


def versions(home: Path) -> list[Any]:
    client = mlstore.open_store(home).client
    return list(client.search_model_versions("name = 'tone'"))


def test_a_checkpoint_is_registered_with_its_evals_and_gates(project: Project, ptl: Ptl) -> None:
    home = trained(project, 9)
    words = ("promote", "demo-1", "tone", "--alias", "champion", "--home", str(home))
    said = ptl(*words)
    assert said.code == 0, said.err
    assert "demo-1/dpo: version 1 of tone" in said.out
    assert "model: models:/tone@champion" in said.out
    (made,) = versions(home)
    assert made.source == STATE.replace("/b", "/b1")
    assert made.tags["ptl.gates"] == "passed"
    assert made.tags["eval.held_out/exact_match.before"] == "0"
    assert made.tags["eval.held_out/exact_match"] == "0.75"
    assert made.tags["ptl.checkpoint.rank"] == "8"
    assert "| held_out/exact_match | **0** [0, 0.24" in made.description
    assert "kept: held_out after dpo is 75.0%, expected >= 25%" in made.description
    # The same checkpoint is one version, whatever aliases it gets.
    assert "version 1 of tone, as before" in ptl(*words[:4], "second", *words[5:]).out
    assert len(versions(home)) == 1
    # An alias moves to what is promoted later.
    trained(project, 11, 2)
    assert ptl("promote", "demo-2", *words[2:]).code == 0
    client = mlstore.open_store(home).client
    assert client.get_model_version_by_alias("tone", "champion").version in (2, "2")


def test_what_failed_a_gate_is_let_in_only_anyway(project: Project, ptl: Ptl) -> None:
    home = trained(project, 2)
    words = ("promote", "demo-1/dpo", "tone", "--home", str(home))
    refused = ptl(*words)
    assert refused.code == 3
    assert "held_out after dpo is 16.7%, expected >= 25%" in refused.err
    assert "--anyway" in refused.err
    assert not versions(home)
    said = ptl(*words, "--anyway", "--json")
    assert json.loads(said.out)["model"] == "models:/tone/1"
    assert versions(home)[0].tags["ptl.gates"] == "failed"


def test_what_got_worse_is_let_in_only_anyway(project: Project, ptl: Ptl) -> None:
    home = trained(project, 12)
    (record,) = Store(home).runs()
    with Store(home).open(record) as directory:  # from 12 right to none
        stage = record.stages[0]
        stage.before, stage.after = stage.after, stage.before
        record.resolved.pop("expect")
        for when, other in (("before", "after"),):
            folder = directory.path / "samples" / "dpo"
            first, second = (folder / f"held_out-{w}.jsonl" for w in (when, other))
            texts = first.read_text(), second.read_text()
            first.write_text(texts[1])
            second.write_text(texts[0])
        directory.save()
    refused = ptl("promote", "demo-1", "tone", "--home", str(home))
    assert refused.code == 3
    assert "held_out got worse: 100.0%" in flat(refused.err)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("demo-1", "a/b"), "no name for a registered model"),
        (("demo-1", "tone", "--alias", "latest"), "is no alias"),
        (("demo-1", "tone", "--alias", "v2"), "is no alias"),
        (("ptl/tiny", "tone"), "is no run"),
        (("demo-1/sft", "tone"), "no stage 'sft'"),
    ],
)
def test_what_cannot_be_registered(
    project: Project, ptl: Ptl, words: tuple[str, ...], told: str
) -> None:
    home = trained(project, 9)
    said = ptl("promote", *words, "--home", str(home))
    assert said.code == 2
    assert told in said.err


def test_a_recipe_starts_from_a_version(project: Project, ptl: Ptl) -> None:
    home = str(trained(project, 9))
    project.write("next.yaml", NEXT)
    # Its form is all that can be told without asking anybody, before there is a version too.
    assert ptl("validate", "next.yaml").code == 0
    none = ptl("plan", "next.yaml", "--home", home)
    assert none.code == 2
    assert "there is no models:/tone@champion" in flat(none.err)
    assert ptl("promote", "demo-1", "tone", "--alias", "champion", "--home", home).code == 0
    said = ptl("plan", "next.yaml", "--home", home)
    assert said.code == 0, said.err
    state = STATE.replace("/b", "/b1")
    assert f"models:/tone@champion: version 1, {state} of demo-1/dpo" in said.out
    planned = json.loads(ptl("plan", "next.yaml", "--home", home, "--json").out)
    assert planned["model"] == str(project.path / "model")
    assert [stage["from"] for stage in planned["stages"]][0] == state
    assert planned["stages"][1]["from"].startswith("base"), "base is the model, untrained"
    # By the checkpoint, whatever it is called; another one is another plan.
    by_number = ("--set", "model=models:/tone/1", "--home", home, "--json")
    numbered = json.loads(ptl("plan", "next.yaml", *by_number).out)
    assert numbered["fingerprint"] == planned["fingerprint"]
    trained(project, 11, 2)
    assert ptl("promote", "demo-2", "tone", "--alias", "champion", "--home", home).code == 0
    moved = json.loads(ptl("plan", "next.yaml", "--home", home, "--json").out)
    assert moved["fingerprint"] != planned["fingerprint"]
    gone = ptl("plan", "next.yaml", "--set", "model=models:/tone@other", "--home", home)
    assert "'tone' has versions 1, 2; its aliases: @champion (version 2)" in flat(gone.err)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model=models:/tone", "write models:/NAME@ALIAS"),
        ("model=models:/tone@", "write models:/NAME@ALIAS"),
        ("model=models:/tone/0", "write models:/NAME@ALIAS"),
        ("stages.other.model=models:/tone/1", "at the recipe's 'model:' alone"),
    ],
)
def test_a_form_that_is_none_is_told_by_validate(
    project: Project, ptl: Ptl, change: str, told: str
) -> None:
    project.write("next.yaml", NEXT)
    said = ptl("validate", "next.yaml", "--set", change)
    assert said.code == 2
    assert told in flat(said.out)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("lora.rank=4",), "is an adapter of rank 8, and keeps it"),
        (("engine={use: tinker, base_url: 'http://127.0.0.1:1'}",), ""),
        (("elsewhere",), "left in the embedded engine of"),
    ],
)
def test_a_version_that_does_not_fit(
    project: Project, ptl: Ptl, change: tuple[str, ...], told: str
) -> None:
    home = trained(project, 9)
    project.write("next.yaml", NEXT)
    assert ptl("promote", "demo-1", "tone", "--alias", "champion", "--home", str(home)).code == 0
    if change == ("elsewhere",):
        (home / "engine" / "runs").rename(home / "elsewhere")
        change = ()
    words = [word for one in change for word in ("--set", one)]
    said = ptl("plan", "next.yaml", *words, "--home", str(home))
    assert said.code == (2 if told else 0), said.err
    assert told in flat(said.err)
    if "embedded" in told:
        assert "'ptl serve'" in flat(said.err)


def test_a_loop_cannot_be_what_starts_from_it(project: Project, ptl: Ptl) -> None:
    home = trained(project, 9)
    assert ptl("promote", "demo-1", "tone", "--alias", "champion", "--home", str(home)).code == 0
    looped = NEXT.split("  - name: other")[0].replace(
        "  - name: more", "  - repeat: 2\n    stages:\n      - name: more"
    )
    looped = looped.replace("\n    dataset", "\n        dataset").replace(
        "\n    method", "\n        method"
    )
    project.write("loop.yaml", looped)
    assert ptl("validate", "loop.yaml").code == 0
    said = ptl("plan", "loop.yaml", "--home", str(home))
    assert said.code == 2
    assert "put a stage before it" in flat(said.err)


def test_targets_may_be_versions(project: Project, ptl: Ptl) -> None:
    from posttrain_recipes.inference.target import find

    home = trained(project, 9)
    assert ptl("promote", "demo-1", "tone", "--home", str(home)).code == 0
    found = find("models:/tone/1", home)
    assert (found.said, found.base) == ("demo-1/dpo", "./model")
    assert found.run
    with pytest.raises(Exception, match="no version of a registered model"):
        find("models:/tone", home)
