"""Each kind of error has a section that `ptl explain` prints, and no section is of none."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import posttrain_recipes
from posttrain_recipes import registry
from posttrain_recipes.cli import codes, main
from posttrain_recipes.errors import Fault, Location, PtlError, RecipeError, TooLongError

PACKAGE = Path(posttrain_recipes.__file__).parent
NAMED = {"gate-failed"}
"""Told without an error: the run is whole."""


def used() -> set[str]:
    """Every text that stands as a `code` in the package, by keyword, default or assignment."""
    found = set(NAMED)
    for path in PACKAGE.rglob("*.py"):
        if "engine" in path.relative_to(PACKAGE).parts[:1]:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code":
                found |= texts(node.value)
            elif isinstance(node, ast.Assign):
                names = ast.unparse(node.targets[0]).strip("()").split(", ")
                found |= texts(node.value) if "code" in names else set()
    return {text for text in found if text}


def texts(node: ast.AST) -> set[str]:
    if isinstance(node, ast.IfExp):
        return texts(node.body) | texts(node.orelse)
    if isinstance(node, ast.Tuple):
        return {t for part in node.elts for t in texts(part) if "-" in t}
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def test_each_code_has_a_section_and_each_section_a_code() -> None:
    assert used() | {Fault(Location("x"), "", "").code} == set(codes.sections())


def test_no_code_is_a_plugins_name() -> None:
    assert not set(codes.sections()) & {entry.name for entry in registry.load()}


@pytest.mark.parametrize("code", sorted(codes.sections()))
def test_a_section_shows_says_why_and_what_to_do(code: str) -> None:
    text = codes.sections()[code].text
    assert "```text\n" in text
    assert "\nWhy: " in text
    assert "\nDo: " in text


def test_an_error_has_the_code_of_its_class_or_its_own() -> None:
    assert PtlError("x").code == "failed"
    assert TooLongError("x").code == "too-long"
    assert PtlError("x", code="hub").code == "hub"
    first = Fault(Location("a", 1), "k", "m", "unknown-key")
    faults = [Fault(Location("a", 2), "k", "m"), first, Fault(Location("a", 3), "k", "m")]
    assert list(RecipeError(faults).codes) == ["unknown-key", "wrong-value"]
    assert first.as_dict()["code"] == "unknown-key"


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["ptl", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_the_command_line_names_a_kind_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nmodel: ptl/nano\nstages: [{name: a, evl: 1}, {name: b, evl: 2}]\n")
    assert run(["plan", str(recipe)], monkeypatch) == 2
    told = capsys.readouterr().err
    assert told.count("help: ptl explain unknown-key") == 1


def test_explain_prints_a_section_without_marks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", "no-such-file"], monkeypatch) == 0
    told = capsys.readouterr().out
    assert told.startswith("no-such-file, a kind of error")
    assert "    recipe.yaml:15:33  stages.sft.dataset.path" in told
    assert "`" not in told
