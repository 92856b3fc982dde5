"""Loops, comparisons and grids: what they come to, and what is said where they are wrong."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from posttrain_recipes.errors import RecipeError
from posttrain_recipes.language import expansion
from posttrain_recipes.planning.plans import Plan
from posttrain_recipes.reporting import comparisons
from tests.conftest import ROOT, Project

HEAD = "name: demo\nmodel: ./model\nseed: 7\n"
SFT = """\
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft, learning_rate: 1e-3}
    eval: [{use: nll}]
"""
DPO = """\
  - name: dpo
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo, beta: 0.1}
    eval: [nll]
"""
TWO = HEAD + "stages:\n" + SFT + DPO


def indented(text: str, by: int) -> str:
    return "".join(" " * by + line for line in text.splitlines(keepends=True))


def shape(plan: Plan) -> dict[str, str]:
    """Stage -> what it starts from."""
    return {stage.name: stage.start for stage in plan.stages}


def faults(project: Project, text: str, **more: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        project.plan(text, **more)
    return [str(fault) for fault in caught.value.faults]


def options(plan: Plan, stage: str) -> dict[str, Any]:
    (found,) = [s for s in plan.stages if s.name == stage]
    assert found.method
    return found.method.config.model_dump()


def test_a_recipe_without_them_is_left_alone(project: Project) -> None:
    recipe = project.load(TWO)
    expanded, origins, wrong = expansion.expand(recipe)
    assert expanded is recipe
    assert [(o.name, o.source, o.round) for o in origins] == [("sft", "sft", 0), ("dpo", "dpo", 0)]
    assert wrong == []


# --- repeat --------------------------------------------------------------------------------------

LOOP = (
    HEAD
    + "stages:\n"
    + SFT
    + "  - repeat: 3\n    until: {nll: '<= 0.1'}\n    stages:\n"
    + indented(SFT.replace("name: sft", "name: more"), 4)
    + indented(DPO, 4)
    + SFT.replace("name: sft", "name: last")
)


def test_rounds_feed_each_other(project: Project) -> None:
    plan = project.plan(LOOP)
    assert shape(plan) == {
        "sft": "base",
        "more-1": "sft",
        "dpo-1": "more-1",
        "more-2": "dpo-1",
        "dpo-2": "more-2",
        "more-3": "dpo-2",
        "dpo-3": "more-3",
        "last": "dpo-3",
    }
    assert [o.round for o in plan.origins] == [0, 1, 1, 2, 2, 3, 3, 0]
    assert [o.before for o in plan.origins][3:7] == ["more-1", "dpo-1", "more-2", "dpo-2"]
    assert [bool(o.until) for o in plan.origins] == [False] * 3 + [True] * 4 + [False]
    assert "repeat" in str(plan.resolved), "what is kept is the recipe as it is written"


def test_references_inside_a_loop_are_of_the_same_round(project: Project) -> None:
    text = LOOP.replace("- name: dpo\n", "- name: dpo\n        init_from: sft\n")
    assert shape(project.plan(text))["dpo-2"] == "sft"
    text = LOOP.replace("- name: last\n", "- name: last\n    init_from: more\n")
    assert shape(project.plan(text))["last"] == "more-3"


def test_what_follows_a_loop_that_may_end_early_knows_of_it(project: Project) -> None:
    one, other = (project.plan(LOOP.replace("<= 0.1", bound)) for bound in ("<= 0.1", "<= 0.2"))
    changed = [
        a.name
        for a, b in zip(one.stages, other.stages, strict=True)
        if a.fingerprint != b.fingerprint
    ]
    assert changed == ["last"], "rounds train the same; what stands below starts elsewhere"
    assert one.fingerprint != other.fingerprint


# --- compare -------------------------------------------------------------------------------------

COMPARE = """\
name: demo
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl, test_size: 1}
    method: {use: sft}
    eval: [{use: nll}]
  - name: losses
    seeds: [0, 1]
    budget: {steps: 20}
    eval: [nll]
    compare:
      - name: dpo
        dataset: {use: jsonl, path: pairs.jsonl}
        method: {use: dpo, beta: 0.1}
      - name: ipo
        dataset: {use: jsonl, path: pairs.jsonl}
        method: {use: dpo, loss: ipo}
      - name: both
        stages:
          - name: more
            dataset: {use: jsonl, path: chat.jsonl}
            method: {use: sft, max_steps: 5}
          - name: then
            dataset: {use: jsonl, path: pairs.jsonl}
            method: {use: dpo, max_steps: 15}
"""


def test_branches_share_start_seeds_budget_and_evals(project: Project) -> None:
    plan = project.plan(COMPARE)
    assert shape(plan) == {
        "sft": "base",
        "dpo@seed=0": "sft",
        "dpo@seed=1": "sft",
        "ipo@seed=0": "sft",
        "ipo@seed=1": "sft",
        "more@seed=0": "sft",
        "then@seed=0": "more@seed=0",
        "more@seed=1": "sft",
        "then@seed=1": "more@seed=1",
    }
    assert [s.seed for s in plan.stages] == [0, 0, 1, 0, 1, 0, 0, 1, 1]
    assert options(plan, "dpo@seed=0")["max_steps"] == 20
    assert options(plan, "then@seed=1")["max_steps"] == 15
    judged = {
        o.branch: s.evals[0].name
        for o, s in zip(plan.origins, plan.stages, strict=True)
        if o.last and o.comparison
    }
    assert judged == {"dpo": "nll", "ipo": "nll", "both": "nll"}
    assert {o.comparison for o in plan.origins} == {None, "losses"}


def test_a_budget_of_tokens_stands_beside_one_of_steps(project: Project) -> None:
    text = COMPARE.replace("steps: 20", "steps: 20, tokens: 900")
    text = text.replace("max_steps: 5", "max_steps: 5, token_budget: 200")
    plan = project.plan(text.replace("max_steps: 15", "max_steps: 15, token_budget: 700"))
    assert options(plan, "dpo@seed=0")["token_budget"] == 900
    assert options(plan, "dpo@seed=0")["max_steps"] == 20
    assert options(plan, "then@seed=1")["token_budget"] == 700


def test_a_stage_below_a_comparison_says_where_it_starts(project: Project) -> None:
    below = SFT.replace("name: sft", "name: last")
    (fault,) = faults(project, COMPARE + below)
    assert fault.startswith("mine.yaml:27:5  stages.last\n  stands below a comparison; say which")
    (fault,) = faults(
        project, COMPARE + below.replace("name: last", "name: last\n    init_from: dpo")
    )
    assert "'dpo' runs with several seeds; write 'dpo@seed=0', say" in fault
    for start, meant in (("dpo@seed=1", "dpo@seed=1"), ("sft", "sft")):
        text = COMPARE + below.replace("name: last", f"name: last\n    init_from: {start}")
        assert shape(project.plan(text))["last"] == meant
    text = COMPARE.replace("seeds: [0, 1]", "seeds: [4]")
    text += below.replace("name: last", "name: last\n    init_from: both")
    plan = project.plan(text)
    assert shape(plan)["last"] == "then"
    assert plan.stages[1].seed == 4


def test_a_loop_in_a_branch(project: Project) -> None:
    text = COMPARE.replace(
        "        stages:\n", "        stages:\n          - repeat: 2\n            stages:\n"
    )
    at = text.index("          - name: more")
    text = text[:at] + indented(text[at:], 4)
    text = text.replace("budget: {steps: 20}", "budget: {steps: 40}")
    found = shape(project.plan(text))
    assert found["more-2@seed=1"] == "then-1@seed=1"
    assert found["then-2@seed=0"] == "more-2@seed=0"


# --- matrix --------------------------------------------------------------------------------------


def test_a_grid_runs_once_what_does_not_vary(project: Project) -> None:
    text = TWO + "matrix: {stages.dpo.method.beta: [0.05, 0.1], seed: [0, 1]}\n"
    assert shape(project.plan(text)) == {
        "sft@seed=0": "base",
        "dpo@beta=0.05,seed=0": "sft@seed=0",
        "sft@seed=1": "base",
        "dpo@beta=0.05,seed=1": "sft@seed=1",
        "dpo@beta=0.1,seed=0": "sft@seed=0",
        "dpo@beta=0.1,seed=1": "sft@seed=1",
    }
    plan = project.plan(TWO + "matrix: {stages.dpo.method.beta: [0.05, 0.1]}\n")
    assert shape(plan) == {"sft": "base", "dpo@beta=0.05": "sft", "dpo@beta=0.1": "sft"}
    assert options(plan, "dpo@beta=0.05")["beta"] == 0.05
    assert [s.seed for s in plan.stages] == [7, 7, 7]


def test_paired_values_go_together(project: Project) -> None:
    text = TWO + (
        "matrix:\n"
        "  pair:\n"
        "    stages.sft.method.learning_rate: [1e-3, 1e-4]\n"
        "    stages.dpo.method.learning_rate: [1e-5, 1e-6]\n"
        "  lora.rank: [4, 8]\n"
    )
    plan = project.plan(text)
    assert len(plan.stages) == 8
    name = "dpo@sft.learning_rate=0.0001,dpo.learning_rate=1e-06,rank=4"
    assert [s.lora.rank for s in plan.stages if s.name == name] == [4]
    assert plan.origins[0].labels == (
        ("sft.learning_rate", "0.001"),
        ("dpo.learning_rate", "1e-05"),
        ("rank", "4"),
    ), "dpo's rate is part of a pair that sft depends on"


def test_a_grid_over_models_and_evals_and_data(project: Project) -> None:
    project.write("other/config.json", '{"model_type": "other", "hidden_size": 64}')
    project.write("other/tokenizer.json", "{}")
    project.write("other/chat_template.jinja", "{{ messages }}")
    plan = project.plan(TWO + "matrix: {model: [./model, ./other]}\n")
    assert {s.name: s.model for s in plan.stages} == {
        "sft@model=model": "./model",
        "dpo@model=model": "./model",
        "sft@model=other": "./other",
        "dpo@model=other": "./other",
    }
    plan = project.plan(TWO + "matrix: {stages.sft.eval.nll.train_on: [last, all]}\n")
    trained = {s.fingerprint for s in plan.stages if s.name.startswith("sft")}
    assert len(trained) == 1, "the cache gives the second one its weights"
    data = "[{use: jsonl, path: pairs.jsonl}, {use: jsonl, path: more/curt.jsonl}]"
    project.write("more/curt.jsonl", (project.path / "pairs.jsonl").read_text())
    plan = project.plan(TWO + f"matrix: {{stages.dpo.dataset: {data}}}\n")
    assert set(shape(plan)) == {"sft", "dpo@dataset=1-pairs", "dpo@dataset=2-curt"}


def test_a_grid_of_comparisons(project: Project) -> None:
    text = COMPARE + "matrix: {stages.sft.method.learning_rate: [1e-3, 1e-4]}\n"
    plan = project.plan(text)
    assert shape(plan)["dpo@learning_rate=0.001,seed=1"] == "sft@learning_rate=0.001"
    assert len(plan.stages) == 18


def test_a_preset_reaches_stages_inside_of_blocks(project: Project) -> None:
    text = COMPARE + (
        "presets:\n"
        "  tiny:\n"
        "    stages:\n"
        "      losses: {seeds: [5], budget: {steps: 2}}\n"
        "      dpo: {method: {beta: 0.3}}\n"
        "      more: {method: {max_steps: 1}}\n"
        "      then: {method: {max_steps: 1}}\n"
    )
    plan = project.plan(text, preset="tiny", overrides=["stages.ipo.method.beta=0.7"])
    assert options(plan, "dpo")["beta"] == 0.3
    assert options(plan, "ipo")["beta"] == 0.7
    assert options(plan, "ipo")["max_steps"] == 2
    assert plan.stages[1].seed == 5


def test_what_is_kept_says_the_same_later(project: Project) -> None:
    plan = project.plan(COMPARE + "matrix: {lora.rank: [4, 8]}\n")
    kept = expansion.origins(plan.resolved)
    assert [(o.name, o.labels, o.branch, o.last) for o in kept] == [
        (o.name, o.labels, o.branch, o.last) for o in plan.origins
    ]


def test_the_examples_of_the_documentation_are_good(project: Project) -> None:
    text = (ROOT / "docs" / "variants.md").read_text()
    loop, branches, grid, bounds = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    for name, source in (("chat", "chat"), ("preferences", "pairs"), ("held_out", "questions")):
        data = (project.path / f"{source}.jsonl").read_text()
        project.write(f"data/{name}.jsonl", data * 30)
    held = "{use: exact_match, name: held_out, dataset: {use: jsonl, path: data/held_out.jsonl}}"
    tone = held.replace("exact_match, name: held_out", "preference_accuracy, name: tone")
    tone = tone.replace("held_out.jsonl", "preferences.jsonl")
    plan = project.plan(HEAD + loop)
    assert [s.name for s in plan.stages] == ["sft", "dpo-1", "dpo-2", "dpo-3"]
    sft = loop[: loop.index("  - repeat")].replace("{use: nll}", f"{{use: nll}}, {held}, {tone}")
    plan = project.plan(HEAD + sft + branches)
    assert len(plan.stages) == 1 + 3 * 3
    dpo = (
        "    dataset: {use: jsonl, path: data/preferences.jsonl}\n"
        "    method: {use: dpo}\n"
        "    eval: [held_out, tone]\n"
    )
    plan = project.plan(HEAD + sft + bounds + dpo + grid)
    assert len(plan.stages) == 2 * 2 + 3 * 2 * 2


def test_two_hundred_stages_are_planned_within_seconds(project: Project) -> None:
    text = TWO + f"matrix: {{stages.dpo.method.beta: {[i / 1000 for i in range(1, 201)]}}}\n"
    began = time.process_time()
    assert len(project.plan(text).stages) == 201
    assert time.process_time() - began < 5


# --- what is said where they are wrong -----------------------------------------------------------

INNER = "- repeat: 2\n  stages:\n    - name: x\n      eval: [nll]\n"
LOSSES = COMPARE[COMPARE.index("  - name: losses") :]

WRONG: dict[str, tuple[str, str]] = {
    "rounds": (
        LOOP.replace("repeat: 3", "repeat: 0"),
        "mine.yaml:9:13  stages[1].repeat\n  must be at least 1, not 0",
    ),
    "a loop without stages": (
        HEAD + "stages:\n  - repeat: 3\n",
        "mine.yaml:5:5  stages[0]\n  a loop needs 'stages:', a list of the stages of a round",
    ),
    "a loop at the top": (
        TWO + "repeat: 3\n",
        "mine.yaml:13:1  repeat\n  'repeat' stands in the list of stages",
    ),
    "a method beside a loop": (
        LOOP.replace("    until:", "    method: {use: sft}\n    until:"),
        "mine.yaml:10:5  stages[1].method\n  unknown key beside 'repeat:'",
    ),
    "a bound in words": (
        LOOP.replace("'<= 0.1'", "small"),
        'mine.yaml:10:18  stages[1].until.nll\n  "small" is no bound; write ">= 0.8" or "<= 5%"',
    ),
    "an unquoted bound": (
        LOOP.replace("'<= 0.1'", ">= 0.1"),
        "a bound with '>' stands in quotes: \">= 0.8\"",
    ),
    "an option inside of a loop": (
        LOOP.replace("beta: 0.1", "bta: 0.1"),
        "mine.yaml:18:28  stages.dpo.method.bta\n  unknown option for method 'dpo'; did you mean",
    ),
    "a stage of another round": (
        LOOP.replace("- name: more\n", "- name: more\n        init_from: dpo\n"),
        "stages.more.init_from\n  unknown stage 'dpo'; did you mean 'dpo-1'?",
    ),
    "a loop in a loop": (
        LOOP.replace("    stages:\n", "    stages:\n" + indented(INNER, 6)),
        "a loop cannot stand in a loop",
    ),
    "one branch": (
        COMPARE[: COMPARE.index("      - name: ipo")],
        "mine.yaml:13:7  stages.losses.compare\n  a comparison needs at least two branches",
    ),
    "a seed of a branch's own": (
        COMPARE.replace("- name: ipo\n", "- name: ipo\n        seed: 3\n"),
        "mine.yaml:17:9  stages.ipo.seed\n  'seeds:' of the comparison gives it",
    ),
    "a seed twice": (
        COMPARE.replace("[0, 1]", "[0, 0]"),
        "mine.yaml:9:5  stages.losses.seeds\n  a seed is given twice",
    ),
    "another budget": (
        COMPARE.replace("loss: ipo", "loss: ipo, max_steps: 30"),
        "stages.ipo.method.max_steps\n  the budget of the comparison is 20 steps; remove this",
    ),
    "a budget that is not shared out": (
        COMPARE.replace("max_steps: 5", "max_steps: 6"),
        "stages.more\n  this branch trains in 2 stages: give each method 'max_steps:', 20 in all",
    ),
    "tokens that are not shared out": (
        COMPARE.replace("steps: 20", "tokens: 20"),
        "stages.more\n  this branch trains in 2 stages: give each method "
        "'token_budget:', 20 in all",
    ),
    "a budget of nothing": (
        COMPARE.replace("{steps: 20}", "{}"),
        "stages.losses.budget\n",
    ),
    "a budget of hours": (
        COMPARE.replace("steps: 20", "hours: 20"),
        "stages.losses.budget.hours\n  unknown key in 'budget'",
    ),
    "a comparison in a loop": (
        HEAD + "stages:\n  - repeat: 2\n    stages:\n" + indented(LOSSES, 4),
        "a comparison cannot stand in a loop",
    ),
    "a path of the matrix": (
        TWO + "matrix: {stages.dop.method.beta: [1]}\n",
        "mine.yaml:13:10  matrix.stages.dop.method.beta\n"
        "  no stage is named 'dop'; did you mean 'dpo'?",
    ),
    "what a matrix does not vary": (
        TWO + "matrix: {engine: [local]}\n",
        "matrix.engine\n  a matrix varies 'seed', 'model', 'lora.OPTION' and 'stages.STAGE....' "
        "alone; run the recipe once for each engine",
    ),
    "one value without a list": (
        TWO + "matrix: {seed: 3}\n",
        "mine.yaml:13:16  matrix.seed\n  must be a list, not 3",
    ),
    "a value that an option does not take": (
        TWO + "matrix: {stages.dpo.method.beta: [0.1, high]}\n",
        'mine.yaml:13:40  stages.dpo.method.beta\n  must be a number, not "high"',
    ),
    "pairs of different lengths": (
        TWO + "matrix: {pair: {seed: [0, 1], stages.dpo.method.beta: [0.1]}}\n",
        "mine.yaml:13:10  matrix.pair\n  values under 'pair:' go together, so each list has "
        "as many: seed has 2, beta has 1",
    ),
    "a path twice": (
        TWO + "matrix: {seed: [0], pair: {seed: [1], lora.rank: [4]}}\n",
        "'seed' is varied twice",
    ),
    "seeds twice": (
        COMPARE + "matrix: {seed: [0, 1]}\n",
        "matrix.seed\n  the comparison has 'seeds:' of its own",
    ),
    "too many": (
        TWO + f"matrix: {{seed: {list(range(600))}, lora.rank: [4, 8]}}\n",
        "comes to more than 1000 stages",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_says_what_is_wrong_and_where(project: Project, name: str) -> None:
    text, expected = WRONG[name]
    found = "\n".join(faults(project, text))
    assert expected in found, found


def test_a_way_of_a_comparison_is_called_by_what_it_varies_itself(project: Project) -> None:
    """Values that go together over several branches are told of each branch alone."""
    plan = project.plan(
        HEAD
        + """\
matrix:
  pair:
    stages.a.method.learning_rate: [1e-3, 2e-3]
    stages.b.method.learning_rate: [1e-3, 2e-3]
stages:
  - name: both
    seeds: [0, 1]
    compare:
      - {name: a, dataset: {use: jsonl, path: chat.jsonl}, method: {use: sft}}
      - {name: b, dataset: {use: jsonl, path: chat.jsonl}, method: {use: sft, epochs: 2}}
"""
    )
    known = expansion.origins(plan.resolved)
    ways = [comparisons.arm_of(origin, known) for origin in known]
    assert list(dict.fromkeys(ways)) == [
        "a learning_rate=0.001",
        "b learning_rate=0.001",
        "a learning_rate=0.002",
        "b learning_rate=0.002",
    ]
