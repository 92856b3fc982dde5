"""`ptl lock`, and `--locked`: what differs is refused, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain_recipes import api
from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning import lock
from tests.conftest import Project, Ptl, flat

ROWS = "".join(f'{{"prompt": "{n} + 1?", "completion": "{n + 1}"}}\n' for n in range(6))
RECIPE = """\
name: mine
model: ptl/nano
stages:
  - name: sft
    dataset: {use: jsonl, path: rows.jsonl, test_size: 2}
    method: {use: sft, learning_rate: 1e-3, max_steps: 1}
    eval: [{use: nll}]
presets:
  long: {stages: {sft: {method: {max_steps: 9}}}}
"""


@pytest.fixture
def recipe(project: Project) -> Path:
    project.write("rows.jsonl", ROWS)
    project.write("mine.yaml", RECIPE)
    return project.path / "mine.yaml"


def refused(recipe: Path, **how: object) -> str:
    with pytest.raises(UsageError) as told:
        lock.check(api.plan(recipe, **how), recipe)  # type: ignore[arg-type]
    return f"{told.value.what}: {told.value.why or told.value.hint}"


def test_what_was_locked_runs_and_what_differs_is_named(
    project: Project, ptl: Ptl, recipe: Path
) -> None:
    said = ptl("lock", "mine.yaml")
    assert (said.code, said.out) == (0, "wrote mine.lock: 1 stage, no preset\n")
    assert lock.check(api.plan(recipe), recipe) == []
    assert "method.max_steps 1 -> 2" in refused(recipe, overrides=["stages.sft.method.max_steps=2"])
    assert "eval 'samples' is new" in refused(
        recipe, overrides=["stages.sft.eval=[{use: nll}, {use: generations, name: samples}]"]
    )
    assert "no eval 'nll'" in refused(recipe, overrides=["stages.sft.eval=[]"])
    # What affects no result is no difference.
    api_plan = api.plan(recipe, overrides=["stages.sft.method.save_every=3"])
    assert lock.check(api_plan, recipe) == []
    project.write("rows.jsonl", ROWS.replace("5 + 1", "5+1"))
    said = ptl("run", "mine.yaml", "--locked")
    assert said.code == 2
    assert "mine is not what mine.lock locks" in flat(said.err)
    assert "rows.jsonl changed" in flat(said.err)
    assert not (project.path / ".ptl" / "runs").exists(), "nothing was begun"


def test_each_preset_has_a_lock_of_its_own(project: Project, ptl: Ptl, recipe: Path) -> None:
    assert "there is no lock" in refused(recipe)
    assert ptl("lock", "mine.yaml").code == 0
    assert "does not lock preset long" in refused(recipe, preset="long")
    assert "'ptl lock mine.yaml --preset long' adds it" in refused(recipe, preset="long")
    assert ptl("lock", "mine.yaml", "--preset", "long").code == 0
    assert lock.check(api.plan(recipe, preset="long"), recipe) == []
    assert lock.check(api.plan(recipe), recipe) == []


def test_other_versions_are_told_and_another_code_of_a_plugin_is_refused(
    ptl: Ptl, recipe: Path
) -> None:
    assert ptl("lock", "mine.yaml").code == 0
    path = recipe.with_suffix(".lock")
    whole = json.loads(path.read_text())
    part = whole["presets"][""]
    part["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(whole))
    (told,) = lock.check(api.plan(recipe), recipe)
    assert told.startswith("torch 1.0 when it was locked, ")
    stage = part["stages"]["sft"]
    stage["inputs"]["method"]["from"] = "posttrain-recipes 0.0.9"
    stage["fingerprint"] = "another"
    path.write_text(json.dumps(whole))
    assert "method sft of posttrain-recipes 0.0.9 -> posttrain-recipes" in refused(recipe)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": 9, "presets": {}}', '{"format": 1, "presets": {"": {"stages": {}}}}'],
)
def test_a_lock_that_is_none_is_told(recipe: Path, text: str) -> None:
    recipe.with_suffix(".lock").write_text(text)
    assert "the lock mine.lock cannot be read" in refused(recipe)


def test_a_recipe_of_an_installed_package_has_no_place_for_a_lock(tmp_path: Path) -> None:
    place = tmp_path / "lib" / "site-packages" / "shipped" / "sft.yaml"
    with pytest.raises(UsageError, match="no lock can lie beside it") as caught:
        lock.path_of(place)
    assert caught.value.hint
    assert "extends: sft" in caught.value.hint
