"""`renderer:` of a recipe, a stage and a model that is named: what it says reaches the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import api
from posttrain_recipes.errors import PtlError
from posttrain_recipes.options import ModelRef, RendererConfig
from posttrain_recipes.planning.plans import Plan

RECIPE = """
name: r
model: ptl/tiny
{top}
stages:
  - name: one
    dataset: {{use: jsonl, path: a.jsonl}}
    method: {{use: sft}}
    eval: [{{use: nll, dataset: {{use: jsonl, path: a.jsonl}}}}]
    {stage}
"""


def planned(folder: Path, top: str = "", stage: str = "") -> Plan:
    (folder / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    path = folder / "r.yaml"
    path.write_text(RECIPE.format(top=top, stage=stage))
    return api.plan(path)


def test_a_stage_s_word_stands_over_the_recipe_s(tmp_path: Path) -> None:
    (stage,) = planned(tmp_path, "renderer: {thinking: on, template_kwargs: {a: 1}}").stages
    assert stage.renderer == RendererConfig(thinking="on", template_kwargs={"a": 1})
    assert stage.evals[0].renderer == stage.renderer
    (over,) = planned(tmp_path, "renderer: {thinking: on}", "renderer: {thinking: keep}").stages
    assert over.renderer.thinking == "keep"


def test_it_is_part_of_what_a_stage_and_an_eval_are_known_by(tmp_path: Path) -> None:
    (off,) = planned(tmp_path).stages
    (same,) = planned(tmp_path, "renderer: {thinking: off}").stages
    (on,) = planned(tmp_path, "renderer: {thinking: on}").stages
    assert off.fingerprint == same.fingerprint != on.fingerprint
    assert off.evals[0].fingerprint == same.evals[0].fingerprint != on.evals[0].fingerprint


def test_a_model_that_is_named_may_have_its_own(tmp_path: Path) -> None:
    ref = ModelRef.model_validate({"stage": "base", "renderer": {"thinking": "on"}})
    assert ref.renderer == RendererConfig(thinking="on")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("renderer: {thinking: maybe}", "r.yaml:4"),
        ("renderer: {thinkin: on}", "thinking"),
        ("renderer: on", "renderer"),
    ],
)
def test_what_is_wrong_with_it_is_told_with_its_place(tmp_path: Path, said: str, told: str) -> None:
    with pytest.raises(PtlError) as caught:
        planned(tmp_path, said)
    assert told in str(caught.value)


def test_variables_by_the_names_that_families_give_them() -> None:
    assert RendererConfig().variables == {"enable_thinking": False, "thinking": False}
    kept: Any = RendererConfig(thinking="keep", template_kwargs={"clear_thinking": True}).variables
    assert kept["preserve_thinking"]
    assert kept["clear_thinking"], "what is said by name wins"
