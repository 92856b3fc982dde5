"""What a stage is known by: what changes that, and what does not."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.conftest import CHAT, Project
from tests.unit.test_plan import RECIPE, prints


def test_the_same_recipe_is_known_by_the_same(project: Project) -> None:
    first, second = project.plan(RECIPE), project.plan(RECIPE)
    assert prints(first) == prints(second)
    assert first.fingerprint == second.fingerprint
    assert len(set(prints(first).values())) == 2


SAME: dict[str, tuple[str, str]] = {
    "the description": ("description: Two stages.", "description: Other words."),
    "the recipe's name": ("name: demo", "name: other"),
    "a default written out": ("learning_rate: 1e-3", "learning_rate: 1e-3, epochs: 1"),
    "a number written otherwise": ("1e-3", "0.001"),
    "the model by another path": ("./model", "./chat/../model"),
    "an engine written out": ("seed: 0", "seed: 0\nengine: {use: local}"),
    "an adapter written out": ("seed: 0", "seed: 0\nlora: {rank: 16}"),
    "a start written out": ("  - name: dpo", "  - name: dpo\n    init_from: sft"),
    "a stage's own seed": ("  - name: sft", "  - name: sft\n    seed: 0"),
    "a file in another place": ("path: chat.jsonl", "path: moved/words.jsonl"),
    "an eval's option": ("eval: [{use: nll}]", "eval: [{use: nll, train_on: all}]"),
    "fewer evals": ("    eval: [nll]\n", ""),
    "how often it saves": ("learning_rate: 1e-3", "learning_rate: 1e-3, save_every: 7"),
    "an eval's name": ("eval: [{use: nll}]", "eval: [{use: nll, name: nll}]"),
}


@pytest.mark.parametrize("name", SAME)
def test_stages_stay_the_same_when_what_changes_is(project: Project, name: str) -> None:
    (project.path / "chat").mkdir()
    project.write("moved/words.jsonl", CHAT * 4)
    old, new = SAME[name]
    assert old in RECIPE
    assert prints(project.plan(RECIPE.replace(old, new))) == prints(project.plan(RECIPE))


def test_stages_stay_the_same_when_the_whole_directory_moves(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = project.plan(RECIPE)
    target = project.path / "elsewhere"
    target.mkdir()
    for name in ("chat.jsonl", "pairs.jsonl", "model"):
        shutil.move(project.path / name, target / name)
    monkeypatch.chdir(target)
    after = Project(target).plan(RECIPE, name="renamed.yaml")
    assert prints(after) == prints(before)
    assert after.fingerprint == before.fingerprint


BOTH = {"sft", "dpo"}
CHANGED: dict[str, tuple[str, str, set[str]]] = {
    "a method's option": ("1e-3", "2e-3", BOTH),
    "a method's option downstream": ("beta: 0.1", "beta: 0.2", {"dpo"}),
    "another method": ("{use: sft, learning_rate: 1e-3}", "{use: sft}", BOTH),
    "the recipe's seed": ("seed: 0", "seed: 1", BOTH),
    "a stage's seed": ("  - name: dpo", "  - name: dpo\n    seed: 1", {"dpo"}),
    "the adapter": ("seed: 0", "seed: 0\nlora: {rank: 8}", BOTH),
    "the split": ("test_size: 1", "test_size: 2", BOTH),
    "a limit": ("path: pairs.jsonl", "path: pairs.jsonl, limit: 2", {"dpo"}),
    "the start": ("  - name: dpo", "  - name: dpo\n    init_from: base", {"dpo"}),
    "the engine": ("seed: 0", "seed: 0\nengine: {use: server, base_url: http://x}", BOTH),
    "a hub's model": ("./model", "Qwen/Qwen3-8B", BOTH),
}


@pytest.mark.parametrize("name", CHANGED)
def test_stages_change_with(project: Project, name: str) -> None:
    old, new, expected = CHANGED[name]
    assert old in RECIPE
    before, after = prints(project.plan(RECIPE)), prints(project.plan(RECIPE.replace(old, new)))
    assert {stage for stage in before if before[stage] != after[stage]} == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [("chat.jsonl", BOTH), ("pairs.jsonl", {"dpo"}), ("model/config.json", BOTH)],
)
def test_stages_change_with_the_content_of(project: Project, file: str, expected: set[str]) -> None:
    before = prints(project.plan(RECIPE))
    path = project.path / file
    path.write_text(path.read_text() + "\n")
    after = prints(project.plan(RECIPE))
    assert {stage for stage in before if before[stage] != after[stage]} == expected


def test_a_file_of_the_model_that_is_no_part_of_it_changes_nothing(project: Project) -> None:
    before = prints(project.plan(RECIPE))
    project.write("model/README.md", "words")
    assert prints(project.plan(RECIPE)) == before
    project.write("model/model.safetensors", "weights")
    assert prints(project.plan(RECIPE)) != before


def test_an_eval_changes_the_plan_but_no_stage(project: Project) -> None:
    before = project.plan(RECIPE)
    after = project.plan(RECIPE.replace("{use: nll}", "{use: nll, train_on: all}"))
    assert prints(after) == prints(before)
    assert after.fingerprint != before.fingerprint
    assert after.stages[0].evals[0].fingerprint != before.stages[0].evals[0].fingerprint


def test_a_stage_by_another_name_is_the_same_in_another_plan(project: Project) -> None:
    before, after = project.plan(RECIPE), project.plan(RECIPE.replace("name: dpo", "name: tone"))
    assert [s.fingerprint for s in after.stages] == [s.fingerprint for s in before.stages]
    assert after.fingerprint != before.fingerprint, "a run's record is by its stages' names"


def test_what_came_from_the_environment_is_kept_as_a_hash(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RECIPE.replace("path: pairs.jsonl", "path: pairs.jsonl, system: '${env:SECRET}'")

    def inputs(value: str) -> dict[str, Any]:
        monkeypatch.setenv("SECRET", value)
        return dict(project.plan(text).stages[1].inputs)

    first, second = inputs("hush-hush"), inputs("hush-hush!")
    assert "hush" not in repr(first)
    assert first["dataset"]["config"]["system"].startswith("env:")
    assert first != second


def test_a_later_stage_changes_nothing_before_it(project: Project) -> None:
    alone = RECIPE[: RECIPE.index("  - name: dpo")]
    assert prints(project.plan(alone))["sft"] == prints(project.plan(RECIPE))["sft"]
