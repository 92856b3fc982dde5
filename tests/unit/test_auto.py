"""What a recipe leaves open follows from its data, and is a number from the plan on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain_recipes import hub, registry
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.options import FromData
from posttrain_recipes.planning import auto, planner
from posttrain_recipes.planning.auto import reply_tokens
from posttrain_recipes.reporting import report
from posttrain_recipes.running.runner import new_record
from tests.conftest import Project, Ptl

FIXED = {
    "generations": 128, "self_play": 16, "gsm8k": 512, "mbpp": 512, "humaneval": 512,
    "ifeval": 1280, "safety": 128,
}  # fmt: skip
"""What is for people to read, moves in a game, what is compared with published numbers, and what is
told by the beginning of a reply."""

RECIPE = """
name: mine
model: {model}
stages:
  - name: best
    method: {{use: best_of_n{method}}}
    dataset: {{use: jsonl, path: asked.jsonl}}
    reward: {{use: length, most: 8}}
    eval:
      - {{use: exact_match, name: held_out{eval}, dataset: {{use: jsonl, path: asked.jsonl}}}}
"""


def recipe(model: str = "ptl/tiny", method: str = "", eval: str = "") -> str:
    return RECIPE.format(model=model, method=method, eval=eval)


def ask(project: Project, *answers: str) -> None:
    rows = [{"prompt": f"question {i}", "answer": said} for i, said in enumerate(answers)]
    project.write("asked.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def numbers(plan: Any) -> list[int]:
    stage = plan.stages[0]
    return [stage.method.config.max_tokens, stage.evals[0].eval.config.max_tokens]


@pytest.mark.parametrize(
    ("lengths", "found"),
    [
        ([31], (48, 31)),
        ([1], (16, 1)),
        ([12], (16, 12)),
        ([13], (32, 13)),
        ([64], (80, 64)),
        ([10] * 95 + [900] * 5, (16, 10)),
        ([10] * 94 + [900] * 6, (1136, 900)),
        (list(range(1, 101)), (128, 95)),
    ],
)
def test_95_percent_of_the_answers_fit_and_a_quarter_more(
    lengths: list[int], found: tuple[int, int]
) -> None:
    assert reply_tokens(lengths) == found
    assert reply_tokens(lengths[::-1]) == found
    assert found[0] % 16 == 0


def test_the_number_is_in_the_options_the_fingerprint_and_the_record(project: Project) -> None:
    ask(project, *["ha " * 30] * 20)
    plan = project.plan(recipe())
    number, same = numbers(plan)
    assert number == same > 16
    stage = plan.stages[0]
    assert stage.inputs["method"]["config"]["max_tokens"] == number
    assert new_record(plan, "mine-1").stages[0].inputs["method"]["config"]["max_tokens"] == number
    params = report.stage_params(stage)
    assert (params["max_tokens"], params["held_out.max_tokens"]) == (number, number)
    named = project.plan(recipe(method=f", max_tokens: {number}", eval=f", max_tokens: {number}"))
    assert named.fingerprint == plan.fingerprint
    assert not any("max_tokens" in pin for pin in named.pins)
    other = project.plan(recipe(eval=", max_tokens: 17"))
    assert other.stages[0].fingerprint == stage.fingerprint
    assert other.stages[0].evals[0].fingerprint != stage.evals[0].fingerprint


def test_the_number_is_written_out_where_the_recipe_left_it_open(project: Project) -> None:
    ask(project, *["ha " * 30] * 20)
    plan = project.plan(recipe())
    number, same = numbers(plan)
    [stage] = plan.resolved["stages"]
    assert (stage["method"]["max_tokens"], stage["eval"][0]["max_tokens"]) == (number, same)
    again = project.plan(yaml.safe_dump(plan.resolved, sort_keys=False))
    assert again.fingerprint == plan.fingerprint


COMPARED = """
name: mine
model: ptl/tiny
stages:
  - name: first
    eval: [{use: exact_match, name: held, dataset: {use: jsonl, path: asked.jsonl}}]
  - name: both
    compare:
      - name: a
        init_from: base
        method: {use: best_of_n}
        dataset: {use: jsonl, path: OTHER}
        reward: {use: length, most: 8}
      - name: b
        init_from: base
        method: {use: best_of_n, max_tokens: 17}
        dataset: {use: jsonl, path: OTHER}
        reward: {use: length, most: 8}
    eval:
      - {use: exact_match, name: more, dataset: {use: jsonl, path: asked.jsonl}}
"""


def test_the_number_is_written_out_of_a_comparison_and_its_evals(project: Project) -> None:
    ask(project, *["ha " * 30] * 20)
    project.write("other.jsonl", '{"prompt": "a", "answer": "b"}\n' * 4)
    plan = project.plan(COMPARED.replace("OTHER", "other.jsonl"))
    first, both = plan.resolved["stages"]
    a, b = both["compare"]
    assert first["eval"][0]["max_tokens"] == both["eval"][0]["max_tokens"] > 17
    assert (a["method"], b["method"]["max_tokens"]) == ({"use": "best_of_n", "max_tokens": 16}, 17)
    again = project.plan(yaml.safe_dump(plan.resolved, sort_keys=False))
    assert again.fingerprint == plan.fingerprint


def test_an_eval_that_is_meant_again_by_its_name_has_the_number_of_the_one_above(
    project: Project,
) -> None:
    ask(project, *["ha " * 30] * 20)
    project.write("other.jsonl", '{"prompt": "a", "answer": "b"}\n' * 4)
    text = recipe().replace(
        "name: held_out, dataset: {use: jsonl, path: asked.jsonl}", "name: held"
    )
    text = text.replace("asked.jsonl}\n    reward", "asked.jsonl, test_size: 2}\n    reward")
    text += """  - name: again
    method: {use: best_of_n}
    dataset: {use: jsonl, path: other.jsonl, test_size: 1}
    reward: {use: length, most: 8}
    eval: [held]
"""
    plan = project.plan(text)
    values = [stage.evals[0].eval.config.max_tokens for stage in plan.stages]
    assert [plan.resolved["stages"][0]["eval"][0]["max_tokens"]] * 2 == values
    assert plan.resolved["stages"][1]["eval"] == ["held"]
    again = project.plan(yaml.safe_dump(plan.resolved, sort_keys=False))
    assert again.fingerprint == plan.fingerprint


def test_a_number_that_the_recipe_names_stands(project: Project) -> None:
    ask(project, "ha " * 30)
    plan = project.plan(recipe(method=", max_tokens: 3", eval=", max_tokens: 5"))
    assert numbers(plan) == [3, 5]


def test_the_whole_reply_counts_and_not_its_last_line(project: Project) -> None:
    ask(project, "4")
    short = numbers(project.plan(recipe()))
    ask(project, "two and two and " * 20 + "\n#### 4")
    assert numbers(project.plan(recipe()))[0] > short[0] == 16


def test_every_branch_of_a_comparison_gets_the_same(project: Project) -> None:
    ask(project, *["what is it? 12345 " * 9] * 3)
    plan = project.plan(
        """
name: mine
model: ptl/tiny
stages:
  - name: both
    compare:
      - name: tiny
        init_from: base
        method: {use: grpo}
        dataset: {use: jsonl, path: asked.jsonl, test_size: 1}
        reward: {use: exact_match}
      - name: nano
        model: ptl/nano
        init_from: base
        method: {use: grpo}
        dataset: {use: jsonl, path: asked.jsonl, test_size: 1}
        reward: {use: exact_match}
    seeds: [0, 1]
    eval:
      - {use: exact_match, dataset: {use: jsonl, path: asked.jsonl}}
"""
    )
    assert len(plan.stages) == 4
    assert len({tuple(numbers_of(stage)) for stage in plan.stages}) == 1


@pytest.mark.parametrize("models", ["ptl/tiny, ptl/nano", "ptl/nano, ptl/tiny"])
def test_of_several_models_the_one_whose_tokenizer_makes_most_of_the_answers_counts(
    project: Project, monkeypatch: pytest.MonkeyPatch, models: str
) -> None:
    def counts(location: str, template: str | None) -> Any:
        each = 3 if "nano" in location else 2  # those that ship have one tokenizer
        return lambda messages: each * sum(len(one.content) for one in messages)

    monkeypatch.setattr(auto, "_counts", counts)
    ask(project, *["what is it? 12345 " * 9] * 3)
    alone = {name: numbers(project.plan(recipe(name)))[0] for name in ("ptl/tiny", "ptl/nano")}
    assert alone["ptl/tiny"] != alone["ptl/nano"]
    most = max(alone, key=lambda name: alone[name])
    plan = project.plan(f"matrix: {{model: [{models}]}}\n{recipe()}")
    found = {tuple(numbers_of(stage)) for stage in plan.stages}
    assert found == {(alone[most], alone[most])}
    assert any(f"tokens of {most}, the most of 2 models" in pin for pin in plan.pins)


def numbers_of(stage: Any) -> list[int]:
    return [stage.method.config.max_tokens, *(e.eval.config.max_tokens for e in stage.evals)]


@pytest.mark.parametrize(
    ("dataset", "model", "why"),
    [
        ("{use: jsonl, path: prompts.jsonl}", "ptl/tiny", "prompts.jsonl has no answers to go by"),
        ("{use: huggingface, path: a/b, split: train}", "ptl/tiny", "not a file of this machine"),
        ("{use: jsonl, path: asked.jsonl}", "a/model", "the tokenizer of a/model is not on this"),
        ("{use: nim}", "ptl/tiny", "an environment, which has no answers to go by"),
    ],
)
def test_where_the_data_do_not_tell_it_is_256_and_said(
    dataset: str, model: str, why: str, project: Project, users_cache: Path
) -> None:
    ask(project, "4")
    project.write("prompts.jsonl", '{"prompt": "hi"}\n')
    reward = "" if "nim" in dataset else "    reward: {use: length, most: 8}\n"
    plan = project.plan(
        f"name: mine\nmodel: {model}\nstages:\n  - name: rl\n"
        f"    method: {{use: grpo, learning_rate: 1e-3}}\n    dataset: {dataset}\n{reward}"
    )
    assert numbers_of(plan.stages[0]) == [256]
    (told,) = (pin for pin in plan.pins if "max_tokens" in pin)
    assert told.startswith("grpo: max_tokens 256: ")
    assert why in told


def test_records_that_a_stage_makes_are_not_known_beforehand(project: Project) -> None:
    ask(project, "4")
    later = "  - name: again\n    method: {use: sdft}\n    dataset: {use: collected, stage: best}\n"
    plan = project.plan(recipe() + later)
    assert numbers_of(plan.stages[1]) == [256]
    assert "sdft: max_tokens 256: records of best are not made yet" in plan.pins


def test_a_number_that_another_option_forbids_is_not_taken(project: Project) -> None:
    ask(project, "4")
    plan = project.plan(
        "name: mine\nmodel: ptl/tiny\nstages:\n  - name: rl\n"
        "    method: {use: grpo, overlong: penalize, overlong_buffer: 20}\n"
        "    dataset: {use: jsonl, path: asked.jsonl}\n    reward: {use: exact_match}\n"
    )
    assert numbers_of(plan.stages[0]) == [256]
    words = "16 would follow from the data, but overlong_buffer has to be less than max_tokens"
    assert f"grpo: max_tokens 256: {words}" in plan.pins


def test_a_tokenizer_of_the_hub_is_brought_here_before_it_is_counted_by(
    project: Project, monkeypatch: pytest.MonkeyPatch, users_cache: Path
) -> None:
    ask(project, "4")
    asked: list[str] = []
    monkeypatch.setattr(hub, "fetch_tokenizer", asked.append)
    project.load(recipe("a/model"))
    read = recipes.load(Path("mine.yaml"))
    planner.build(read, registry.load())
    assert not asked
    monkeypatch.setattr(hub, "_of_hub", lambda *a: None)
    planner.build(read, registry.load(), ask=True)
    assert set(asked) == {"a/model"}


def test_ptl_plan_tells_it(project: Project, ptl: Ptl) -> None:
    ask(project, *["ha " * 30] * 20)
    project.write("mine.yaml", recipe())
    (number, _) = numbers(project.plan(recipe()))
    said = ptl("plan", "mine.yaml")
    assert said.code == 0
    assert f"best_of_n: max_tokens {number}: 95% of the answers in asked.jsonl have at" in said.out
    assert f"exact_match: max_tokens {number}: " in said.out
    pins = json.loads(ptl("plan", "mine.yaml", "--json").out)["pins"]
    assert any("max_tokens" in pin for pin in pins)


def test_a_large_file_is_read_at_its_beginning(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "READ", 10)
    ask(project, *["4"] * 10, *["ha " * 90] * 90)
    plan = project.plan(recipe())
    assert numbers(plan) == [16, 16]
    assert any("95% of 10 answers in asked.jsonl have at most" in pin for pin in plan.pins)


def test_of_many_records_some_are_counted_from_all_over_them(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "COUNTED", 10)
    ask(project, *["4"] * 40, *["ha " * 90] * 40)
    plan = project.plan(recipe())
    assert numbers(plan)[0] > 100
    assert any("95% of 10 answers in asked.jsonl have at most" in pin for pin in plan.pins)


def test_every_option_of_that_name_follows_from_the_data_or_is_meant_not_to() -> None:
    known = registry.load()
    seen = {}
    for entry in known:
        info = entry.config.model_fields.get("max_tokens")
        if entry.kind not in ("method", "eval") or info is None:
            continue
        seen[entry.name] = info.default
        marked = FromData.REPLY_TOKENS in info.metadata
        assert marked == (entry.name not in FIXED), entry.name
        assert info.default == FIXED.get(entry.name, 256), entry.name
    assert len(seen) >= 13
