"""Recipes built in Python are those of the text."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import posttrain_recipes as ptl
from posttrain_recipes import typed as t
from posttrain_recipes.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import typed_stub  # noqa: E402


def test_what_editors_see_is_what_the_schema_says() -> None:
    """`python tools/typed_stub.py` writes it."""
    assert typed_stub.STUB.read_text(encoding="utf-8") == typed_stub.stub()


def rebuilt(value: Any, key: str = "") -> Any:
    """The same through the builders, wherever there is one."""
    if isinstance(value, list):
        one = {"stages": "stage", "eval": "eval", "reward": "reward", "compare": "stage"}.get(
            key, ""
        )
        return [rebuilt(each, one) if isinstance(each, Mapping) else each for each in value]
    if not isinstance(value, Mapping):
        return value
    inside = {name: rebuilt(each, name) for name, each in value.items()}
    if "use" in value and key in t.KINDS:
        return getattr(getattr(t, key), inside.pop("use"))(**inside)
    if key == "stage" and "stages" not in value and "compare" not in value:
        return t.stage(**inside)
    return inside


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_can_be_built_of_pieces(path: Path) -> None:
    text = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "extends" in text:
        pytest.skip("is another one, changed")
    pieces = {key: rebuilt(value, key) for key, value in text.items()}
    made = t.recipe(**pieces)
    assert made == text
    assert yaml.safe_load(str(made)) == text


def test_a_recipe_of_pieces_is_checked_and_planned(tmp_path: Path) -> None:
    data = t.dataset.jsonl(path=ROOT / "recipes" / "data" / "chat.jsonl", test_size=8)
    stage = t.stage(name="sft", dataset=data, method=t.method.sft(learning_rate=1e-3, max_steps=3))
    recipe = t.recipe(name="first", model="ptl/tiny", stages=[stage])
    plan = ptl.plan(recipe)
    assert plan.stages[0].method is not None
    assert plan.stages[0].method.config.learning_rate == 1e-3
    stage["method"]["learning_rate"] = -1
    with pytest.raises(ptl.RecipeError, match=r"stages\.sft\.method\.learning_rate"):
        ptl.validate(recipe)


def test_a_word_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(UsageError, match="sft has no option 'learning_rte'") as told:
        t.method.sft(learning_rte=1)
    assert "learning_rate" in str(told.value)
    with pytest.raises(AttributeError, match="there is no method 'sfft'.*sft"):
        _ = t.method.sfft
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = t.nonsense  # type: ignore[attr-defined]


def test_a_notebook_sees_what_there_is() -> None:
    assert {"sft", "dpo", "grpo"} <= set(dir(t.method))
    assert set(t.KINDS) < set(dir(t))
    parameters = inspect.signature(t.method.sft).parameters
    assert parameters["train_on"].default == "last"
    assert "learning_rate" in parameters
    assert "arXiv" in (t.lora.__doc__ or "")


@pytest.mark.nightly
def test_a_type_checker_finds_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from posttrain_recipes import typed as t\n"
        "t.stage(name='a', dataset=t.dataset.jsonl(path='x'), method=t.method.sft())\n"
        "t.stage(name='a', dataset=t.method.sft())\n"
        "t.method.sft(learning_rte=1)\n"
    )
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", wrong], capture_output=True, text=True, cwd=ROOT
    ).stdout
    lines = [line.split(":") for line in found.splitlines() if ": error:" in line]
    assert [parts[1] for parts in lines] == ["3", "4"]
