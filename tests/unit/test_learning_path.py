"""The notebooks of the learning path, without running them: form, parts, links and recipes.

`tests/e2e/test_notebooks.py` runs them.
"""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import posttrain_recipes as ptl
from posttrain_recipes import shipped
from tests.conftest import ROOT

LEARN = ROOT / "docs" / "learn"
NOTEBOOKS = sorted(LEARN.glob("*.ipynb"))
NEEDS = {"01_rl_foundations": {"gymnasium", "chess"}, "13_invent_your_own": {"balanced_sft"}}
"""Entry points of plugins that the package does not bring."""
PARTS = (
    "## Dataflow",
    "## The idea",
    "## The loss",
    "## The recipe",
    "## Run it",
    "## What to look at",
    "## What goes wrong",
    "## Exercises",
)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _text(path: Path, kind: str) -> str:
    cells = _read(path)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == kind)


def test_there_are_thirteen_in_order() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02}" for n in range(1, 14)]
    index = (LEARN / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\d\d_\w+\.ipynb)\)", index) == [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path: Path) -> None:
    content = _read(path)
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    cells = content["cells"]
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)
    # Outputs are what CI computes; nobody types them.
    for cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), cell["id"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parts(path: Path) -> None:
    text = _text(path, "markdown")
    places = [text.index(f"\n{part}\n") for part in PARTS]
    assert places == sorted(places)
    assert "```mermaid" in text
    assert "$$" in text
    loss = text[places[2] : places[3]]
    assert re.search(r"\b(18|19|20)\d\d\b", loss), "the loss names its source, with the year"
    exercises = text[places[-1] :]
    assert len(re.findall(r"^\*\*\d\.\*\*", exercises, re.M)) == 3
    answers = exercises.count('<details markdown="1"><summary>Answer</summary>')
    assert answers == exercises.count("</details>") == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", _text(path, "markdown")):
        assert (LEARN / link).is_file(), link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_recipes_are_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells tagged `data` and `recipe` are run, in order; what they define is validated."""
    installed = {entry.name for entry in entry_points(group="posttrain_recipes")}
    missing = NEEDS.get(path.stem, set()) - installed
    for name in re.findall(r"^!ptl init \. --recipe (\w+)", _text(path, "code"), re.M):
        recipe = shipped.find(name)
        for part in (Path(recipe.name), *shipped.parts(recipe)):
            (tmp_path / part).parent.mkdir(exist_ok=True)
            shutil.copy(recipe.parent / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    recipes: dict[str, dict[str, Any]] = {}
    for cell in _read(path)["cells"]:
        tags = set(cell["metadata"].get("tags", ()))
        if not tags & {"data", "recipe"} or (missing and "needs-plugin" in tags):
            continue
        exec(compile("".join(cell["source"]), f"{path.name}:{cell['id']}", "exec"), names)
        for value in names.values():
            if isinstance(value, dict) and "stages" in value:
                recipes[value["name"]] = value
    assert recipes or missing
    for recipe in recipes.values():
        ptl.validate(recipe)
