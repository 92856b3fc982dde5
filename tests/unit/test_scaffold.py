"""What `ptl plugins new` writes, and what it refuses to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from posttrain_recipes import scaffold
from posttrain_recipes.cli.plugins import plugins
from posttrain_recipes.errors import UsageError


@pytest.mark.parametrize("kind", ["method", "dataset", "reward", "eval", "engine", "tracker"])
def test_the_set_of_files(kind: str, tmp_path: Path) -> None:
    written = scaffold.write(kind, "my_own", tmp_path / "new")
    found = {path.relative_to(tmp_path / "new").as_posix(): path.read_text() for path in written}
    data = {name for name in found if name.endswith(".jsonl")}
    assert found.keys() - data == {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "results.py",
        "conformance.svg",
        ".gitignore",
        ".github/workflows/test.yml",
        ".github/workflows/release.yml",
        "ptl_my_own/__init__.py",
        "ptl_my_own/recipes/my_own.yaml",
        "tests/test_my_own.py",
    }
    assert ".ptl/" in found[".gitignore"].splitlines()
    for path, text in found.items():
        # What is left of "$" is GitHub's and the shell's.
        assert not re.search(r"\$(?!\{\{ matrix|\{GITHUB_REF_NAME)", text), path
        if path.endswith(".py"):
            compile(text, path, "exec")
        elif path.endswith((".yml", ".yaml")):
            assert yaml.safe_load(text), path
    for path in ("pyproject.toml", "README.md", "LICENSE", "results.py", "tests/test_my_own.py"):
        assert "my_own" in found[path] or "my-own" in found[path], path
    assert "not checked yet" in found["conformance.svg"]
    # The recipe names what lies beside it, and nothing lies there for nobody.
    named = re.findall(r"path: (\w+\.jsonl)", found["ptl_my_own/recipes/my_own.yaml"])
    assert set(named) == {name.rpartition("/")[2] for name in data}


def test_it_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("mine")
    with pytest.raises(UsageError, match="nothing was written"):
        scaffold.write("reward", "own", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["here.txt"]


@pytest.mark.parametrize("name", ["My", "two words", "a-b", "1a", ""])
def test_a_name_that_is_no_word(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a plugin's name"):
        scaffold.files("reward", name)


def test_it_says_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(plugins, ["new", "reward", "own"])
    assert done.exit_code == 0
    assert done.output.splitlines()[-1] == (
        "next: pip install -e './ptl-own[test]' && ptl plugins check own"
    )
