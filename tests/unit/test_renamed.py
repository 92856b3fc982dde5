"""Options and metrics that have another name now: the old ones are read, and nothing retrains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import ValidationError

from posttrain_recipes.options import PluginConfig, Renamed, effective
from posttrain_recipes.tracking import curves
from tests.conftest import Project, Ptl

RECIPE = """
name: mine
model: ./model
stages:
  - name: rl
    dataset: {{use: jsonl, path: questions.jsonl}}
    method: {{use: grpo, {option}}}
    reward: {{use: exact_match}}
"""


class Config(PluginConfig):
    now: Annotated[int, Renamed("before")] = 1
    other: int = 2


def test_an_option_is_known_by_both_names_and_hashes_like_its_first() -> None:
    assert Config(before=5) == Config(now=5)  # type: ignore[call-arg]
    assert effective(Config(now=5)) == {"before": 5, "other": 2}
    assert effective(Config()) == {"before": 1, "other": 2}
    with pytest.raises(
        ValidationError, match="'before' is the old name of 'now', and both are given"
    ):
        Config(before=1, now=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="now"):
        Config(before="x")  # type: ignore[call-arg]


def test_the_old_name_is_marked_in_the_schema() -> None:
    own = Config.model_json_schema()["properties"]
    assert own["before"] == {
        "default": 1,
        "deprecated": True,
        "description": "The old name of now.",
        "title": "Now",
        "type": "integer",
    }


def test_a_recipe_with_the_old_name_is_valid_and_trains_nothing_again(project: Project) -> None:
    def fingerprint(option: str, *overrides: str) -> Any:
        plan = project.plan(RECIPE.format(option=option), overrides=overrides)
        return plan.stages[0].fingerprint

    old = fingerprint("flat_groups: replace")
    assert old == fingerprint("zero_variance_groups: replace")
    assert old != fingerprint("zero_variance_groups: drop")
    assert old == fingerprint("batch_size: 16", "stages.rl.method.flat_groups=replace")
    default = fingerprint("batch_size: 16")
    assert default == fingerprint("flat_groups: drop")


def test_a_mistake_in_the_old_name_is_told(ptl: Ptl, project: Project) -> None:
    project.write("bad.yaml", RECIPE.format(option="flat_groups: replaced"))
    said = ptl("validate", "bad.yaml")
    assert said.code == 2
    assert said.out.startswith("bad.yaml:7:38  stages.rl.method.flat_groups\n  must be one of drop")
    project.write("two.yaml", RECIPE.format(option="flat_groups: drop, zero_variance_groups: drop"))
    said = ptl("validate", "two.yaml")
    assert said.code == 2
    assert "'flat_groups' is the old name of 'zero_variance_groups', and both are given" in said.out


def test_curves_of_older_runs_have_the_names_of_now(tmp_path: Path) -> None:
    path = curves.curve_path(tmp_path, "rl")
    path.parent.mkdir(parents=True)
    lines = [{"step": 1, "groups/flat_share": 0.5}, {"step": 2, "groups/zero_variance_share": 0.25}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert curves.read(tmp_path, "rl") == {"groups/zero_variance_share": [(1, 0.5), (2, 0.25)]}
