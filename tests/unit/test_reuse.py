"""What is reused, gone on with or run again, and the reason that is told for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning.plans import Plan, PlannedStage
from posttrain_recipes.planning.reuse import (
    Decision,
    History,
    Scope,
    current_run,
    decisions,
    finished,
    restarted,
)
from posttrain_recipes.plugin import Resume
from posttrain_recipes.records import Checkpoint
from posttrain_recipes.running.runner import new_record
from posttrain_recipes.store import RunRecord
from tests.conftest import PAIRS, Project

RECIPE = """\
name: demo
model: ./model
stages:
  - name: sft
    dataset: {use: jsonl, path: chat.jsonl}
    method: {use: sft, learning_rate: 1e-3}
  - name: dpo
    dataset: {use: jsonl, path: pairs.jsonl}
    method: {use: dpo}
"""


def ran(plan: Plan, number: int = 1, **status: str) -> RunRecord:
    """A run of the plan: each stage finished, or as `status` says."""
    record = new_record(plan, f"{plan.name}-{number}")
    for stage in record.stages:
        stage.status = status.get(stage.name, "finished")
        stage.started, stage.total_steps = "2026-01-01T00:00:00+00:00", 8
        uri = f"tinker://{record.id}/weights/{stage.name}"
        if stage.done:
            stage.checkpoint = Checkpoint(plan.model, uri, uri, 8)
        elif stage.status == "killed":
            stage.resume = Resume(4, uri, uri)
    return record


def decide(
    plan: Plan, *runs: RunRecord, current: RunRecord | None = None, gone: str = "nowhere"
) -> dict[str, Decision]:
    history = History.of(runs, lambda uri: "is gone" if gone in uri else None, Path())
    return {s.name: history.decide(s, current, plan.name) for s in plan.stages}


def told(found: dict[str, Decision]) -> dict[str, tuple[str, str]]:
    return {name: (decision.action, decision.why) for name, decision in found.items()}


def test_nothing_before(project: Project) -> None:
    plan = project.plan(RECIPE)
    assert told(decide(plan)) == dict.fromkeys(("sft", "dpo"), ("run", "first run"))


def test_the_same_inputs_of_another_run_are_reused(project: Project) -> None:
    plan = project.plan(RECIPE)
    found = decide(plan, ran(plan, 1), ran(plan, 2))
    assert told(found)["sft"] == ("reuse", "the same inputs as in run demo-2")
    assert found["dpo"].stage is not None


def test_a_run_that_was_stopped_is_gone_on_with(project: Project) -> None:
    plan = project.plan(RECIPE)
    current = ran(plan, 3, dpo="killed")
    assert told(decide(plan, current, current=current)) == {
        "sft": ("reuse", "finished in run demo-3"),
        "dpo": ("resume", "from step 4 of 8 in run demo-3"),
    }


def test_a_checkpoint_that_is_gone_is_not_trusted(project: Project) -> None:
    plan = project.plan(RECIPE)
    older, newer, current = ran(plan, 1), ran(plan, 2), ran(plan, 3, dpo="killed")
    found = decide(plan, older, newer, current, current=current, gone="demo-3")
    assert told(found)["dpo"] == ("reuse", "the same inputs as in run demo-2")
    found = decide(plan, current, current=current, gone="demo")
    assert told(found) == {
        "sft": ("run", "its checkpoint at step 8 of run demo-3 is gone"),
        "dpo": ("run", "its checkpoint at step 4 of run demo-3 is gone"),
    }


CHANGES: dict[str, tuple[str, str, str, str]] = {
    "an option": ("1e-3", "2e-3", "sft", "method.learning_rate 0.001 -> 0.002"),
    "a parent": ("1e-3", "2e-3", "dpo", "parent sft changed"),
    "a start": ("- name: dpo", "- name: dpo\n    init_from: base", "dpo", "starts from base"),
    "the adapter": ("name: demo", "name: demo\nlora: {rank: 8}", "sft", "lora.rank 16 -> 8"),
    "the seed": ("name: demo", "name: demo\nseed: 4", "sft", "seed 0 -> 4"),
    "a limit": ("pairs.jsonl", "pairs.jsonl, limit: 2", "dpo", "dataset.limit none -> 2"),
    "the method": ("{use: dpo}", "{use: dpo, loss: ipo}", "dpo", "method.loss sigmoid -> ipo"),
    "the engine": (
        "name: demo",
        "name: demo\nengine: {use: server, base_url: 'http://x'}",
        "sft",
        "engine local -> http://x",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_reason_is_what_changed(project: Project, name: str) -> None:
    old, new, stage, why = CHANGES[name]
    earlier = ran(project.plan(RECIPE))
    assert old in RECIPE
    found = told(decide(project.plan(RECIPE.replace(old, new)), earlier))
    assert found[stage] == ("run", f"{why} (against run demo-1)")


def test_data_and_the_model_are_named_by_what_changed(project: Project) -> None:
    earlier = ran(project.plan(RECIPE))
    project.write("pairs.jsonl", PAIRS * 5)
    found = told(decide(project.plan(RECIPE), earlier))
    assert found["sft"][0] == "reuse"
    assert found["dpo"] == ("run", "pairs.jsonl changed (against run demo-1)")
    project.write("model/config.json", '{"hidden_size": 64}')
    found = told(decide(project.plan(RECIPE), earlier))
    assert found["sft"] == ("run", "the base model changed (against run demo-1)")


def test_the_try_that_differs_least_is_compared_with(project: Project) -> None:
    far = ran(project.plan(RECIPE.replace("1e-3", "1e-4") + "seed: 3\n"), 2)
    near = ran(project.plan(RECIPE.replace("1e-3", "5e-3")), 1)
    found = told(decide(project.plan(RECIPE), near, far))
    assert found["sft"][1] == "method.learning_rate 0.005 -> 0.001 (against run demo-1)"


def test_why_an_unchanged_stage_is_run_again_is_true(project: Project) -> None:
    """Of a run of another plan: the same stage, and another eval say."""
    plan = project.plan(RECIPE)
    stopped, nothing, done = ran(plan, 1, sft="killed"), ran(plan, 1), ran(plan, 1)
    nothing.stages[0].status, nothing.stages[0].checkpoint = "failed", None
    done.stages[0].checkpoint = None
    assert told(decide(plan, stopped))["sft"][1] == (
        "not finished in run demo-1, which is of another plan and stopped at step 4 of 8"
    )
    assert told(decide(plan, nothing))["sft"][1] == (
        "not finished in run demo-1, which saved no checkpoint"
    )
    assert told(decide(plan, done))["sft"][1] == (
        "finished in run demo-1, but its checkpoint is not known"
    )


def test_an_eval_that_a_reused_stage_has_no_result_of_is_announced(project: Project) -> None:
    text = RECIPE.replace("path: chat.jsonl}", "path: chat.jsonl, test_size: 1}")
    earlier = ran(project.plan(text))
    more = text.replace("learning_rate: 1e-3}", "learning_rate: 1e-3}\n    eval: [{use: nll}]")
    found = decide(project.plan(more), earlier)["sft"]
    assert (found.action, found.why, found.evals) == (
        "reuse",
        "the same inputs as in run demo-1",
        ("nll",),
    )


def test_a_run_is_finished_where_a_plan_says_so(project: Project) -> None:
    plan = project.plan(RECIPE)
    current = ran(plan, 1)

    def is_finished(gone: str) -> bool:
        history = History.of([current], lambda uri: "is gone" if gone in uri else None, Path())
        decided = [(s, history.decide(s, current, plan.name)) for s in plan.stages]
        return finished(decided, plan.stages, current)

    assert is_finished("nowhere")
    assert not is_finished("weights/sft"), "its checkpoint is gone, whatever run.json says"


def test_a_run_says_what_it_does_not_go_on_with_and_why(project: Project) -> None:
    stopped = ran(project.plan(RECIPE), 1, sft="killed", dpo="failed")
    changed = project.plan(RECIPE.replace("1e-3", "2e-3"))

    def lines(plan: Plan, scope: Scope) -> list[str]:
        return list(restarted(decisions(plan, scope, [stopped], project.path), plan, scope))

    assert lines(changed, Scope()) == [
        "from the beginning: sft: method.learning_rate 0.001 -> 0.002 (against run demo-1, which "
        "stopped at step 4 of 8)",
        "from the beginning: dpo: parent sft changed (against run demo-1)",
    ]
    assert lines(changed, Scope(fresh=True)) == []  # it was asked for
    other = project.plan(RECIPE.replace("name: demo", "name: other").replace("1e-3", "2e-3"))
    assert lines(other, Scope()) == []  # nobody ran this recipe before


def test_rows_that_are_left_out_from_now_on_lose_nothing(project: Project) -> None:
    stopped = project.plan(RECIPE)
    skips = project.plan(RECIPE.replace("chat.jsonl}", "chat.jsonl, bad_rows: skip}"))
    assert skips.fingerprint == stopped.fingerprint
    left = ran(stopped, 1, sft="killed", dpo="pending")

    def actions(plan: Plan, run: RunRecord) -> list[str]:
        found = decide(plan, run, current=current_run(plan, Scope(), [run]))
        return [decision.action for decision in found.values()]

    assert actions(skips, left) == ["resume", "run"]
    # The other way around rows may have been left out: it stops there, and where there is none the
    # next stage's start is as it was.
    assert actions(stopped, ran(skips)) == ["run", "reuse"]
    assert current_run(stopped, Scope(), [ran(skips)]) is None, "what is finished there stays"
    assert actions(skips, ran(skips)) == ["reuse", "reuse"]


def test_many_changes_are_counted(project: Project) -> None:
    text = RECIPE.replace("1e-3", "2e-3, epochs: 2, batch_size: 4, warmup_steps: 1, max_length: 9")
    found = told(decide(project.plan(text), ran(project.plan(RECIPE))))
    assert "; and 2 more (against" in found["sft"][1]


# --- what is asked for ---------------------------------------------------------------------------


def planned(project: Project, scope: Scope, *runs: RunRecord) -> list[tuple[str, str]]:
    plan = project.plan(RECIPE)
    found: list[tuple[PlannedStage, Decision]] = list(decisions(plan, scope, runs, project.path))
    return [(d.action, d.why) for _, d in found]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(fresh=True), [("run", "--fresh asks for it")] * 2),
        (Scope(first="sft"), [("run", "--from sft asks for it")] * 2),
        (Scope(last="sft"), [("run", "first run"), ("skip", "--until sft")]),
    ],
)
def test_what_is_asked_for_wins(
    project: Project, scope: Scope, expected: list[tuple[str, str]]
) -> None:
    assert planned(project, scope) == expected


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        (Scope(first="stf"), "--from stf: demo has no such stage"),
        (Scope(last="x"), "--until x: demo has no such stage"),
        (Scope(first="dpo", last="sft"), "--until sft comes before --from dpo"),
    ],
)
def test_what_cannot_be_asked_for(project: Project, scope: Scope, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        scope.check(project.plan(RECIPE))


def test_an_unchanged_plan_says_where_it_stands(project: Project) -> None:
    def never_asks(*_: Any) -> bool | None:
        return None

    plan = project.plan(RECIPE)
    record = ran(plan, 1, dpo="killed")
    history = History.of([record], never_asks, Path())
    assert history.decide(plan.stages[1], record, "demo").action == "resume"
