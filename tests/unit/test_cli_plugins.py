"""`ptl plugins`, `ptl explain` and `ptl schema`: what recipes can use, told in the terminal."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from posttrain_recipes import registry
from posttrain_recipes.language.schema import recipe_schema
from tests.conftest import ROOT, Project, Ptl, flat


def test_plugins_are_listed_by_kind(ptl: Ptl) -> None:
    said = flat(ptl("plugins", "list").out)
    kinds = ["datasets:", "methods:", "rewards:", "evals:", "engines:"]
    assert [word for word in said.split() if word in kinds] == kinds
    assert "dpo Direct preference optimization: prefer the chosen reply" in said


def test_a_plugins_options_as_json(ptl: Ptl) -> None:
    [shown] = json.loads(ptl("plugins", "show", "sft", "--json").out)
    assert (shown["kind"], shown["name"], shown["takes"]) == ("method", "sft", ["Conversation"])
    options = shown["options"]["properties"]
    assert (options["batch_size"]["default"], options["batch_size"]["minimum"]) == (32, 1)
    assert options["train_on"]["enum"] == ["last", "all"]


def test_a_name_of_two_kinds_shows_both(ptl: Ptl) -> None:
    shown = json.loads(ptl("plugins", "show", "exact_match", "--json").out)
    assert [one["kind"] for one in shown] == ["reward", "eval"]


def test_explain_names_the_loss_and_the_paper(ptl: Ptl) -> None:
    said = ptl("explain", "dpo")
    assert said.code == 0
    lines = said.out.splitlines()
    assert (
        lines[0]
        == f"dpo, a method of posttrain-recipes {registry.load().get('method', 'dpo').version}"
    )
    assert "data    Preference records" in lines
    assert "loss    -log sigmoid(beta * (log p/p_ref(chosen) - log p/p_ref(rejected)))" in lines
    assert "paper   Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290" in lines
    assert "  beta: number  [default 0.1]" in lines
    assert any(line.startswith("recipe  ptl run ") and "dpo.yaml" in line for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_explain_fits_the_terminal(ptl: Ptl, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for entry in registry.load():
        said = ptl("explain", entry.name)
        assert said.code == 0
        assert max(map(len, said.out.splitlines())) <= width, entry.name
        for option in entry.config.model_fields:
            assert f"  {option}: " in said.out


@pytest.mark.parametrize("width", [80, 120])
def test_explain_tells_what_a_recipe_teaches_and_showed(
    ptl: Ptl, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for path in (ROOT / "recipes").glob("*.yaml"):
        said = ptl("explain", path.stem)
        assert said.code == 0
        assert max(map(len, said.out.splitlines())) <= width, path.stem
    said = ptl("explain", "rlhf")
    assert said.out.startswith("rlhf, a recipe\n\nSFT, a reward model from preferences, and RL")
    assert "\nWhat to look at: `accuracy` is how often" in said.out
    assert "\nmethods  sft, reward_model, grpo\n" in said.out
    assert re.search(r"^showed   accuracy after rm [\d.]+% to", said.out, re.MULTILINE)


def test_explain_of_a_name_that_a_method_has_too_is_the_methods_and_tells_what_it_showed(
    ptl: Ptl,
) -> None:
    assert re.search(r"^showed  dpo: tone after dpo [\d.]+% to", ptl("explain", "dpo").out, re.M)
    assert ptl("explain", "recipes/dpo.yaml").out == ptl("explain", "dpo.yaml").out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("explain", "dppo"), "plugin, shipped recipe or option"),
        (("plugins", "show", "dppo"), "plugin"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(ptl: Ptl, words: Any, what: str) -> None:
    said = ptl(*words)
    assert (said.code, said.err) == (
        2,
        f"error: no {what} is named 'dppo'\n  next: did you mean 'dpo'?\n"
        "help: ptl explain unknown-name\n",
    )


def test_the_schema_is_printed_or_written(ptl: Ptl, project: Project) -> None:
    said = ptl("schema")
    assert json.loads(said.out) == recipe_schema(registry.load())
    assert ptl("schema", "-o", "new/schema.json").out == "wrote new/schema.json\n"
    assert (project.path / "new/schema.json").read_text(encoding="utf-8") == said.out


def test_an_environment_begins_as_a_dataset(ptl: Ptl) -> None:
    said = ptl("plugins", "new", "environment", "maze")
    assert said.code == 2
    assert "an environment is a dataset" in said.err
    assert "ptl plugins new dataset NAME" in flat(said.err)
    assert "is not one of dataset, method" in ptl("plugins", "new", "metohd", "maze").err
