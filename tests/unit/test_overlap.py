"""Evals that ask what is trained on are warned of, where the person looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import api
from posttrain_recipes.planning import overlap
from posttrain_recipes.planning.overlap import Overlap, find
from posttrain_recipes.running import preflight, runner
from posttrain_recipes.running.events import Reporter
from tests.conftest import ROOT, Project, Ptl

RECIPE = """\
name: demo
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: train.jsonl}
    method: {use: sft}
    eval: [{use: exact_match, name: held_out, dataset: {use: jsonl, path: test.jsonl}}]
"""


def row(text: str, reply: str = "yes") -> dict[str, Any]:
    turns = (("user", text), ("assistant", reply))
    return {"messages": [{"role": role, "content": said} for role, said in turns]}


def lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in rows)


@pytest.fixture
def files(project: Project) -> Project:
    """200 prompts to measure on, of which 12 are among the 300 that are trained on."""
    project.write("train.jsonl", lines([row(f"train {n}") for n in range(288)]))
    with (project.path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(lines([row(f"both {n}", "other") for n in range(12)]))
    asked = [f"test {n}" for n in range(188)] + [f"both {n}" for n in range(12)]
    project.write("test.jsonl", lines([{"prompt": text, "answer": "yes"} for text in asked]))
    return project


TOLD = (
    "eval held_out: 12 of 200 records are in train.jsonl, which sft trains on "
    "(first: test.jsonl:189, asked at train.jsonl:289)"
)


def told(project: Project, text: str, limit: int | None = overlap.RUN_BYTES) -> list[str]:
    return [str(one) for one in find(project.plan(text), limit)]


def test_an_eval_that_asks_what_is_trained_on_is_told_with_counts_and_lines(files: Project) -> None:
    assert told(files, RECIPE) == [TOLD]


def test_validate_says_it_and_calls_the_recipe_well(files: Project, ptl: Ptl) -> None:
    files.write("mine.yaml", RECIPE)
    said = ptl("validate", "mine.yaml")
    assert said.code == 0
    assert f"mine.yaml: warning: {TOLD}; it measures what was trained on" in said.out
    assert said.out.endswith("mine.yaml: ok\n")
    [found] = json.loads(ptl("validate", "--json", "mine.yaml").out)
    assert found["ok"]
    assert [text.startswith(TOLD) for text in found["warnings"]] == [True]
    assert api.validate("mine.yaml")[0].startswith(TOLD)


def test_presets_that_say_the_same_say_it_once(files: Project, ptl: Ptl) -> None:
    files.write("mine.yaml", RECIPE + "presets: {quick: {}, other: {seed: 1}}\n")
    assert ptl("validate", "mine.yaml").out.count("warning") == 1


def test_preflight_says_it(files: Project, ptl: Ptl) -> None:
    files.write("mine.yaml", RECIPE)
    said = ptl("preflight", "mine.yaml", "--offline")
    assert said.code == 0
    assert f"warning  data of sft, eval held_out: {TOLD}" in said.out


def test_a_run_says_it_before_it_begins(
    files: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heard: list[str] = []

    class Hears(Reporter):
        def warning(self, text: str) -> None:
            heard.append(text)

    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    monkeypatch.setattr(runner._Run, "_estimate", stop)
    with pytest.raises(StopError):
        runner.run(files.plan(RECIPE), tmp_path / "home", Hears())
    assert [text for text in heard if "held_out" in text][0].startswith(TOLD)


def test_files_apart_and_a_split_of_one_file_are_not_warned_of(files: Project) -> None:
    files.write("test.jsonl", lines([{"prompt": f"test {n}", "answer": "y"} for n in range(20)]))
    assert told(files, RECIPE) == []
    split = RECIPE.replace("train.jsonl}", "train.jsonl, test_size: 40}")
    split = split.replace(
        "exact_match, name: held_out, dataset: {use: jsonl, path: test.jsonl}", "nll"
    )
    assert told(files, split) == []


LATER = """\
  - name: STAGE
    dataset: {use: jsonl, path: other.jsonl}
    method: {use: sft}
    eval: [{use: exact_match, name: last, dataset: {use: jsonl, path: test.jsonl}}]
"""
FIRST = RECIPE.split("    eval:")[0]


def test_what_the_stages_before_were_trained_on_counts(files: Project) -> None:
    files.write("other.jsonl", lines([row("apart")]))
    later = LATER.replace("STAGE", "second")
    assert told(files, FIRST + later) == [TOLD.replace("held_out", "last")]
    anew = later.replace("name: second", "name: second\n    init_from: base")
    assert told(files, FIRST + anew) == [], "the first stage's weights are no part of it"


def test_a_split_of_one_stage_that_another_trains_on_is_told(files: Project) -> None:
    text = FIRST.replace("train.jsonl}", "train.jsonl, test_size: 40}") + (
        "    eval: [{use: nll}]\n"
        "  - name: again\n"
        "    dataset: {use: jsonl, path: train.jsonl}\n"
        "    method: {use: sft}\n"
        "    eval: [nll]\n"
    )
    [found] = told(files, text)
    assert found.startswith("eval nll: 40 of 40 records are in train.jsonl, which again trains on")


def test_what_records_were_made_from_counts(files: Project) -> None:
    made = FIRST.replace("{use: sft}", "{use: best_of_n, n: 2}\n    reward: {use: exact_match}")
    later = LATER.replace("STAGE", "imitate").replace(
        "{use: jsonl, path: other.jsonl}", "{use: collected, stage: sft}"
    )
    assert told(files, made + later) == [
        TOLD.replace("held_out", "last").replace("trains on", "makes records from")
    ]


def test_parts_of_a_mix_count(files: Project) -> None:
    files.write("other.jsonl", lines([row("apart")]))
    mix = "{use: mix, parts: [{use: jsonl, path: other.jsonl}, {use: jsonl, path: train.jsonl}]}"
    [found] = told(files, RECIPE.replace("{use: jsonl, path: train.jsonl}", mix))
    assert "12 of 200 records are in mix of other.jsonl and train.jsonl" in found
    assert "asked at train.jsonl:289" in found


def test_a_file_that_is_mixed_with_what_a_stage_makes_counts(files: Project) -> None:
    files.write("other.jsonl", lines([row("apart")]))
    made = FIRST.replace("train.jsonl", "other.jsonl").replace(
        "{use: sft}", "{use: best_of_n, n: 2}\n    reward: {use: exact_match}"
    )
    later = LATER.replace("STAGE", "imitate").replace(
        "{use: jsonl, path: other.jsonl}",
        "{use: mix, parts: [{use: collected, stage: sft}, {use: jsonl, path: train.jsonl}]}",
    )
    [found] = told(files, made + later)
    assert found.startswith("eval last: 12 of 200 records are in ")
    assert "train.jsonl, which imitate trains on" in found


def test_a_later_turn_of_a_conversation_counts(files: Project) -> None:
    talk = row("hello")["messages"] + row("and then?")["messages"]
    files.write("train.jsonl", lines([{"messages": talk}]))
    files.write("test.jsonl", lines([{"prompt": talk[:3], "answer": "x"}]))
    assert "1 of 1 records are in train.jsonl" in told(files, RECIPE)[0]
    files.write("test.jsonl", lines([{"prompt": talk[:1], "answer": "x"}]))
    assert "1 of 1 records are in train.jsonl" in told(files, RECIPE)[0]


def test_pairs_count_by_their_prompt(files: Project) -> None:
    pairs = [{"prompt": f"q {n}", "chosen": "a", "rejected": "b"} for n in range(9)]
    files.write("train.jsonl", lines(pairs))
    files.write("test.jsonl", lines([{**pair, "chosen": "c"} for pair in pairs[:2]]))
    text = RECIPE.replace("{use: sft}", "{use: dpo}").replace("exact_match", "preference_accuracy")
    assert "2 of 2 records are in train.jsonl" in told(files, text)[0]


def test_large_files_are_left_to_preflight_which_is_said(files: Project) -> None:
    [found] = find(files.plan(RECIPE), 1000)
    assert str(found) == "eval held_out was not compared with train.jsonl: the files are large"
    assert found.hint == "'ptl preflight' reads them all and compares them"
    [whole] = find(files.plan(RECIPE), None)
    assert isinstance(whole, Overlap)


def test_environments_are_compared_by_preflight(project: Project) -> None:
    text = (
        "name: demo\nmodel: ./model\nstages:\n"
        "  - name: play\n"
        "    dataset: {use: nim, opponent: random, episodes: 20}\n"
        "    method: {use: grpo}\n"
        "    eval: [{use: episodes, dataset: {use: nim, opponent: random, episodes: 9, seed: 0}}]\n"
    )
    assert told(project, text) == []
    assert told(project, text, None)[0].startswith("eval episodes: 9 of 9 records are in nim")
    assert told(project, text.replace("seed: 0", "seed: 1"), None) == []


def test_a_split_of_another_size_is_told(files: Project) -> None:
    files.write("train.jsonl", lines([row(f"q {n}", r) for n in range(20) for r in "abc"]))
    text = FIRST.replace("train.jsonl}", "train.jsonl, test_size: 10}") + "    eval: [{use: nll}]\n"
    assert told(files, text) == [
        "train.jsonl (test split) has 9 records and not test_size=10: rows that ask the same "
        "stay together"
    ]


def test_copies_alone_cannot_be_held_out_which_is_told(files: Project) -> None:
    files.write("train.jsonl", lines([row("same")] * 9))
    text = FIRST.replace("train.jsonl}", "train.jsonl, test_size: 3}") + "    eval: [{use: nll}]\n"
    assert told(files, text)[0].startswith("eval nll: 3 of 3 records are in train.jsonl")
    assert find(files.plan(text), None, splits=False) == [], "validate looks between files"


def test_data_that_cannot_be_read_is_told_elsewhere(files: Project) -> None:
    with (files.path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    plan = files.plan(RECIPE)
    assert find(plan, None) == []
    assert "failed" in {finding.verdict for finding in preflight.data(plan)}


def test_seeds_say_it_once(files: Project) -> None:
    once = TOLD.replace("which sft", "which sft@seed=0")
    assert told(files, RECIPE + "matrix: {seed: [0, 1, 2]}\n") == [once]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_no_shipped_recipe_measures_what_it_trains_on(path: Path) -> None:
    assert find(api.plan(path), overlap.RUN_BYTES) == []
