"""What grpo leaves for later stages."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from posttrain_recipes.errors import RecipeError
from posttrain_recipes.methods.grpo import GRPO
from posttrain_recipes.plugin import Conversation, Message, Preference, Sample
from posttrain_recipes.training.rl.collect import CollectConfig, records
from posttrain_recipes.training.rl.rollout import Group, Rollout
from tests.conftest import Project
from tests.rollout_engine import Engine, run


def rollout(
    reply: str, reward: float | None, *, prompt: str = "q", cut: bool = False, turns: int = 1
) -> Rollout:
    said: list[Message] = []
    for turn in range(turns):
        said += [Message("user", f"{prompt}{turn or ''}"), Message("assistant", reply)]
    sample = Sample(prompt=(said[0],), completion=reply, truncated=cut)
    return Rollout([], sample, [tuple(said)], reward)


def left(*rollouts: Rollout, min_reward: float = 1, keep: int = 1) -> list[str]:
    found = records([Group(list(rollouts))], CollectConfig(min_reward=min_reward, keep=keep))
    return [
        " ".join(m.content for m in one.messages)
        if isinstance(one, Conversation)
        else f"{one.chosen[0].content} > {one.rejected[0].content}"
        for one in found
        if isinstance(one, Conversation | Preference)
    ]


def test_the_best_are_left_and_the_best_beside_the_worst() -> None:
    group = [rollout("a", 0.5), rollout("b", 2.0), rollout("c", 1.0), rollout("d", -1.0)]
    assert left(*group) == ["q b", "b > d"]
    assert left(*group, keep=3) == ["q b", "q c", "b > d"]
    assert left(*group, min_reward=2.5) == []


def test_what_ties_repeats_was_cut_or_has_no_reward() -> None:
    assert left(rollout("a", 1), rollout("b", 1), keep=2) == ["q a", "q b"]
    assert left(rollout("a", 1), rollout("a", 1), rollout("b", 0), keep=2) == ["q a", "a > b"]
    assert left(rollout("a", 3, cut=True), rollout("b", 1), rollout("c", None)) == ["q b"]
    assert left(rollout("a", 1), rollout("b", 0, cut=True)) == ["q a"]
    assert left() == []


def test_episodes_are_left_whole_and_without_pairs() -> None:
    assert left(rollout("a", 1, turns=2), rollout("b", 0, turns=2)) == ["q a q1 a"]


def collected(engine: Engine) -> Sequence[object]:
    return [one for one in engine.left if one is not None]


def test_a_stage_leaves_the_same_after_a_resume() -> None:
    """What comes after the last checkpoint is left again; what came before it is not."""
    options = {"collect": {"min_reward": 1}, "max_steps": 4, "save_every": 2}
    whole = Engine()
    run(whole, **options)
    marks = [at for at, one in enumerate(whole.left) if one is None]
    assert len(marks) == 2
    first, second = whole.left[: marks[0]], whole.left[marks[0] + 1 : marks[1]]
    assert first
    assert second
    assert {type(one) for one in first} == {Conversation, Preference}
    again = Engine(version=2)
    run(again, resume=whole.kept[0], **options)
    assert collected(again) == second


def test_nothing_is_left_where_nobody_asked() -> None:
    engine = Engine()
    run(engine, max_steps=2)
    assert collected(engine) == []
    assert GRPO(GRPO.Config()).collects() == ()
    asked = GRPO.Config.model_validate({"collect": {"min_reward": 1}})
    assert GRPO(asked).collects() == (Conversation, Preference)


RECIPE = """\
name: mine
model: ./model
stages:
  - name: rl
    dataset: {use: jsonl, path: questions.jsonl}
    method: {use: grpo}
    reward: {use: exact_match}
  - name: after
    dataset: {use: collected, stage: rl}
    method: {use: METHOD}
"""


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_recipe_reads_what_it_asked_for(project: Project, method: str) -> None:
    recipe = RECIPE.replace("METHOD", method)
    with pytest.raises(RecipeError) as caught:
        project.plan(recipe)
    [fault] = caught.value.faults
    assert fault.key == "stages.after.dataset.stage"
    assert "makes no records; it does with the option 'collect' of its method" in fault.message
    asked = recipe.replace("{use: grpo}", "{use: grpo, collect: {min_reward: 1}}")
    wants = project.plan(asked).stages[1].wants
    assert wants is (Conversation if method == "sft" else Preference)
