"""A model card tells of the model beside it: what it was made from, on what, and how good it is."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from posttrain_recipes.exporting import card, lineage
from posttrain_recipes.records import Checkpoint, Estimate
from posttrain_recipes.store import Measured, RunRecord, StageRecord

GONE = {"left_out": True}


def recipe(text: str) -> dict[str, Any]:
    return {"name": "demo", "model": "org/base", "stages": yaml.safe_load(text)}


def run(resolved: dict[str, Any], **stages: dict[str, Any]) -> RunRecord:
    """A run of a recipe; of each stage: its method, its start, and what an eval found after it."""
    made: list[StageRecord] = []
    base = Checkpoint("org/base")
    for name, told in stages.items():
        name = name.replace("__", "@rank=").replace("_", "-")
        if told.get("left_out"):
            made.append(StageRecord(name, "f", "sft", status="left_out"))
            continue
        found = told.get("found")
        method = told.get("method", "sft")
        starts = next((s.checkpoint for s in made if s.name == told.get("start")), None) or base
        left = Checkpoint("org/base", f"tinker://{name}/weights/1", f"tinker://{name}/s/1", 3)
        measured = [] if found is None else [_measured(found)]
        made.append(
            StageRecord(
                name, "f", method, status="finished", total_steps=3, records=8, model="org/base",
                start=starts, checkpoint=starts if method in (None, "best_of_n") else left,
                before=measured if method is None else [_measured(0.5)] if measured else [],
                after=measured if method else [],
            )
        )  # fmt: skip
    return RunRecord(
        "demo-1", "demo", "f", "org/base", "local", "demo.yaml", None, 0, resolved,
        "2026-01-01T00:00:00+00:00", made, "finished", version="0.1.0",
    )  # fmt: skip


def _measured(value: float) -> Measured:
    found = Estimate(value, value - 0.1, value + 0.1, 40)
    return Measured("right", "exact_match", "e", "d", {"exact_match": found})


def sections(one: RunRecord, stage: str) -> dict[str, str]:
    """The parts of a card by their headings; the front matter as `front`."""
    text = card.write(one, stage, "org/base", "adapter", "tinker://x")
    parts = [part.partition("\n") for part in text.split("\n## ")[1:]]
    found = {heading: body for heading, _, body in parts}
    return {**found, "front": text.split("---\n")[1]}


def stages_in(part: str) -> list[str]:
    return re.findall(r"^- `([^`]+)`", part, re.MULTILINE)


def rows_in(part: str) -> list[str]:
    return [row.split(" ")[1] for row in part.splitlines() if row.startswith("| ")][1:]


def test_a_stage_that_starts_from_the_base_has_nothing_of_the_one_above() -> None:
    made = run(
        recipe("""
        - {name: a, dataset: {use: huggingface, path: org/bad}, method: {use: sft}}
        - {name: b, init_from: base, dataset: {use: jsonl, path: b.jsonl}, method: {use: sft}}
        """),
        a={"found": 0.01},
        b={},
    )
    found = sections(made, "b")
    assert stages_in(found["Training"]) == ["b"]
    assert "1.0%" not in found["Results"]
    assert "No eval of the run measured this model" in found["Results"]
    assert stages_in(found["Licences of the data"]) == ["b.jsonl"]
    assert "datasets" not in found["front"]
    assert card.data_of(made, "b") == ["b.jsonl"]
    assert "This model is what its stage `b` leaves" in found["Reproduce"]


def test_of_a_matrix_and_a_comparison_the_card_is_of_the_one_variant() -> None:
    resolved = recipe("""
        - {name: pre, dataset: {use: huggingface, path: org/pre}, method: {use: sft}}
        - name: two
          compare:
            - {name: p, dataset: {use: jsonl, path: p.jsonl}, method: {use: sft}}
            - {name: q, dataset: {use: huggingface, path: org/q}, method: {use: sft}}
        """) | {"matrix": {"lora.rank": [2, 4]}}
    every = {
        f"{name}__{rank}": {"start": f"pre@rank={rank}", "found": 0.1 * rank}
        for rank in (2, 4)
        for name in ("pre", "p", "q")
    }
    found = sections(run(resolved, **every), "q@rank=4")
    assert stages_in(found["Training"]) == ["pre@rank=4", "q@rank=4"]
    assert "- `pre@rank=4`, start of `q@rank=4`: `sft`" in found["Training"]
    assert "path: org/q" in found["Training"]
    this, _, earlier = found["Results"].partition("which are other models")
    assert rows_in(this) == ["q@rank=4"]
    assert rows_in(earlier) == ["pre@rank=4"]
    assert yaml.safe_load(found["front"])["datasets"] == ["org/pre", "org/q"]
    assert stages_in(found["Licences of the data"]) == ["org/pre", "org/q"]


def test_a_merge_is_of_its_parts_and_not_of_the_stage_above() -> None:
    made = run(
        recipe("""
        - {name: a, dataset: {use: jsonl, path: a.jsonl}, method: {use: sft}}
        - {name: b, init_from: base, dataset: {use: jsonl, path: b.jsonl}, method: {use: sft}}
        - {name: c, init_from: base, dataset: {use: jsonl, path: c.jsonl}, method: {use: sft}}
        - {name: m, method: {use: merge, of: [{stage: a}, {stage: b}]}}
        """),
        a={"found": 0.2}, b={}, c={"found": 0.3}, m={"method": "merge", "found": 0.4, "start": "c"},
    )  # fmt: skip
    found = sections(made, "m")
    assert stages_in(found["Training"]) == ["a", "b", "m"]
    assert "- `b`, part of `m`: `sft`" in found["Training"]
    assert card.data_of(made, "m") == ["a.jsonl", "b.jsonl"]
    assert rows_in(found["Results"].partition("which are other models")[0]) == ["m"]


def test_what_made_the_data_and_who_taught_or_judged_is_told_as_that() -> None:
    made = run(
        recipe("""
        - {name: teacher, dataset: {use: huggingface, path: org/taught}, method: {use: sft}}
        - {name: rm, init_from: base, dataset: {use: jsonl, path: pairs.jsonl},
           method: {use: reward_model}}
        - {name: best, init_from: base, dataset: {use: huggingface, path: org/asked},
           method: {use: best_of_n, model: {stage: teacher}}, reward: {use: exact_match}}
        - {name: pupil, init_from: base, dataset: {use: mix, parts: [{use: collected, stage: best},
           {use: jsonl, path: more.jsonl}]}, method: {use: sft}}
        - {name: rl, dataset: {use: jsonl, path: rl.jsonl},
           method: {use: grpo, reference: {stage: pupil}},
           reward: [{use: reward_model, model: [{stage: rm}]}]}
        """),
        teacher={"found": 0.9}, rm={"method": "reward_model"}, best={"method": "best_of_n"},
        pupil={"found": 0.2}, rl={"method": "grpo", "start": "pupil", "found": 0.3},
    )  # fmt: skip
    made.stage("best").total_steps = 9
    found = sections(made, "rl")
    for said in (
        "- `teacher`, model that is asked in `best`: `sft`",
        "- `rm`, reward model of `rl`: `reward_model`",
        "- `best`, made data of `pupil`: `best_of_n` (9 steps, 8 records)",
        "- `pupil`, start of `rl` and reference of `rl`: `sft`",
        "- `rl`: `grpo`",
    ):
        assert said in found["Training"]
    assert rows_in(found["Results"].partition("which are other models")[2]) == ["pupil"]
    assert yaml.safe_load(found["front"])["datasets"] == ["org/asked"], "the teacher's are not"
    assert (
        "`org/taught`: unknown to the program that wrote this card; this model was not"
        in (found["Licences of the data"])
    )
    assert "`rl.jsonl`: unknown to the program that wrote this card\n" in (
        found["Licences of the data"] + "\n"
    )


def test_a_round_that_a_loop_left_out_is_the_round_before() -> None:
    made = run(
        recipe("""
        - {name: loop, repeat: 3, until: {right: '> 1%'}, stages: [
            {name: rl, dataset: {use: jsonl, path: rl.jsonl}, method: {use: grpo}}]}
        - {name: last, dataset: {use: jsonl, path: last.jsonl}, method: {use: sft}}
        """),
        rl_1={"method": "grpo"}, rl_2=GONE, rl_3=GONE, last={"start": "rl-1"},
    )  # fmt: skip
    found = sections(made, "last")
    assert stages_in(found["Training"]) == ["rl-1", "last"]
    assert card.data_of(made, "last") == ["rl.jsonl", "last.jsonl"]


def test_what_only_measures_a_model_tells_of_that_one() -> None:
    text = """
        - {name: a, dataset: {use: jsonl, path: a.jsonl}, method: {use: sft}}
        - {name: b, init_from: base, dataset: {use: jsonl, path: b.jsonl}, method: {use: sft}}
        - {name: of-b, eval: [right]}
        - {name: of-a, init_from: a, eval: [right]}
        """
    made = run(
        recipe(text), a={}, b={},
        of_b={"method": None, "start": "b", "found": 0.2},
        of_a={"method": None, "start": "a", "found": 0.7},
    )  # fmt: skip
    told = sections(made, "a")["Results"]
    assert "| of-a | right | 40 | - | 70.0% ±10.0 |" in told
    assert "of-b" not in told
    assert stages_in(sections(made, "of-a")["Training"]) == ["a"]
    assert "datasets" not in sections(made, "of-a")["front"]


def test_a_start_from_elsewhere_and_a_checkpoint_that_is_not_the_last_are_told() -> None:
    made = run(
        recipe("""
        - {name: a, init_from: "tinker://r/weights/w", dataset: {use: jsonl, path: a.jsonl},
           method: {use: sft}}
        """),
        a={},
    )
    made.stages[0].total_steps = 8
    told = sections(made, "a")["Training"]
    assert "(8 steps, kept: step 3, 8 records)" in told
    assert "from `tinker://r/weights/w`, of which nothing is known here" in told


@pytest.mark.parametrize("resolved", [{}, {"stages": None}, {"stages": [3, {"use": "x"}]}])
def test_a_recipe_that_names_no_such_stage_claims_nothing(resolved: dict[str, Any]) -> None:
    made = run(resolved, a={"found": 0.1}, b={})
    (alone,) = lineage.of(made, "b")
    assert alone.spec == {}
    told = sections(made, "b")
    assert stages_in(told["Training"]) == ["b"]
    assert "what it was made from is unknown" in told["Training"]
    assert "10.0%" not in told["Results"]
