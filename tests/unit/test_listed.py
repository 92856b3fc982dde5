"""The index of plugin packages, and the search in it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes import listed
from posttrain_recipes.errors import UsageError
from posttrain_recipes.language.schema import dump
from tests.conftest import ROOT, Ptl, flat

ONE: dict[str, Any] = {
    "name": "ptl-far",
    "summary": "Far away, and not of this repository",
    "license": "Apache-2.0",
    "source": "https://example.org/far",
    "api": 1,
    "plugins": [{"kind": "reward", "name": "far", "summary": "Scores how far away it is."}],
}


def test_it_lists_the_packages_of_this_repository_as_they_are() -> None:
    index = {package.name: package for package in listed.read().packages}
    for path in (ROOT / "plugins").glob("*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        package = index.pop(project["name"])
        assert package.summary == project["description"]
        assert package.license == project["license"]
        code = "\n".join(file.read_text() for file in path.parent.glob("ptl_*/**/*.py"))
        names = set(re.findall(r'^    name = "(\w+)"', code, flags=re.MULTILINE))
        assert {plugin.name for plugin in package.plugins} == names
        for plugin in package.plugins:
            assert f'"""{plugin.summary}' in code
    assert all(not package.source.startswith("plugins/") for package in index.values())


def test_the_committed_schema_is_that_of_the_code() -> None:
    committed = (ROOT / "schemas" / "plugin-index.schema.json").read_text(encoding="utf-8")
    assert committed == dump(listed.schema()), (
        "run: ptl schema --plugins -o schemas/plugin-index.schema.json"
    )


def test_it_is_searched_by_words_and_by_kind(ptl: Ptl) -> None:
    said = flat(ptl("plugins", "search", "CHESS").out)
    assert "ptl-chess King and queen" in said
    assert "method chess_q_learning: " in said
    assert "1 of " in said
    assert "to be listed is no review" in said
    kinds = json.loads(ptl("plugins", "search", "--kind", "reward", "--json").out)
    assert [one["name"] for one in kinds] == ["ptl-reasoning-gym"]
    assert kinds[0]["installed"] is None
    assert (
        "none of 10 listed packages has 'chess poker'"
        in ptl("plugins", "search", "chess", "poker").out
    )


def test_another_index(ptl: Ptl, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"packages": [{**ONE, "api": 9}]}))
    said = ptl("plugins", "search", "--index", str(path)).out
    assert "needs a newer ptl: it is written for version 9 of the API" in said


@pytest.mark.parametrize(
    ("packages", "told"),
    [
        ([{**ONE, "name": "Far Away"}], "packages.0.name: String should match pattern"),
        ([{**ONE, "source": "javascript:alert(1)"}], "packages.0.source"),
        ([{**ONE, "summary": "Far away \x1b[31m and red"}], "packages.0.summary"),
        ([{**ONE, "stars": 5}], "packages.0.stars: Extra inputs are not permitted"),
        ([ONE, ONE], "names a package twice"),
        ("none", "packages: Input should be a valid list"),
    ],
)
def test_an_index_that_is_none_is_refused(packages: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"packages": packages}))
    with pytest.raises(UsageError) as caught:
        listed.read(path)
    assert told in str(caught.value)


def test_a_file_that_is_not_there_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        listed.read(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(UsageError, match="is no JSON"):
        listed.read(tmp_path / "text.json")
