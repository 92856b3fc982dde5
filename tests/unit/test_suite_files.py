"""A suite: a file of evals as a recipe of one stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain_recipes.errors import RecipeError, UsageError
from posttrain_recipes.language.schema import NAME
from posttrain_recipes.language.suite import Measurand, name_of, recipe

OF = Measurand("sft-1/sft", "ptl/tiny", "tinker://a:train:0/sampler_weights/b")


def suite(folder: Path, text: str, name: str = "held.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_list_is_a_stage_without_a_method(tmp_path: Path) -> None:
    found = recipe(suite(tmp_path, "- {use: gsm8k, limit: 2}\n"), OF, {"gsm8k": ">= 0.5"})
    assert found.data == {
        "name": "held-sft-1_sft",
        "description": "The suite held.yaml on sft-1/sft.",
        "model": "ptl/tiny",
        "engine": "local",
        "stages": [
            {
                "name": "sft-1_sft",
                "init_from": "tinker://a:train:0/sampler_weights/b",
                "eval": [{"use": "gsm8k", "limit": 2}],
                "expect": {"gsm8k": ">= 0.5"},
            }
        ],
    }
    assert str(found.locate(("stages", 0, "eval", 0, "limit"))) == f"{tmp_path}/held.yaml:1:23"


def test_a_bound_of_the_suite_is_not_replaced(tmp_path: Path) -> None:
    text = "eval: [{use: nll}]\nexpect: {nll: '<= 1'}\n"
    with pytest.raises(RecipeError, match="--fail-under nll would take its place"):
        recipe(suite(tmp_path, text), OF, {"nll": ">= 0"})


def test_a_mapping_may_have_bounds_and_a_renderer(tmp_path: Path) -> None:
    text = (
        "eval: [{use: nll}]\nexpect: {tone: '<= 1', nll change: '< 0'}\nrenderer: {system: Hi.}\n"
    )
    found = recipe(suite(tmp_path, text), OF, {"nll": ">= 0.1"}).data
    assert found["stages"][0]["expect"] == {
        "tone": "<= 1",
        "nll change": "< 0",
        "nll": ">= 0.1",
    }
    assert found["renderer"] == {"system": "Hi."}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("hello", "list of evals"),
        ("{}", "no evals"),
        ("[]", "the suite is empty"),
        ("- {use: nll, every: 5, dataset: {use: jsonl, path: q.jsonl}}", "stage that trains"),
        ("eval: []", "the suite is empty"),
        ("stages: []", "'ptl run' is for recipes"),
        ("model: ptl/tiny\neval: []", "on the command line"),
        ("eval: []\nevals: []", "nothing that a suite has"),
        ("eval: [nll]\nexpect: 3", "mapping of bounds"),
    ],
)
def test_anything_else_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told) as raised:
        recipe(suite(tmp_path, text), OF, {})
    assert all("held.yaml:" in str(fault.location) for fault in raised.value.faults)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no suite"):
        recipe(tmp_path / "none.yaml", OF, {})


@pytest.mark.parametrize(
    "text",
    ["./models/a b", "/tmp/x", "ptl/tiny", "1-run/ä", "a" * 90, "tinker://x:train:0/w/n", "-"],
)
def test_anything_has_a_name(text: str) -> None:
    import re

    name = name_of(text)
    assert re.fullmatch(NAME["pattern"], name)
    assert len(name) <= NAME["maxLength"]
    assert name_of(f"{text}{'b' * 90}") != name_of(f"{text}{'b' * 89}c")
