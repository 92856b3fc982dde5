"""What `ptl plugins new` writes, and what it refuses to."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from posttrain_recipes import scaffold
from posttrain_recipes.cli.plugins import plugins
from posttrain_recipes.errors import UsageError


@pytest.mark.parametrize("kind", ["method", "dataset", "reward", "eval", "engine"])
def test_the_set_of_files(kind: str, tmp_path: Path) -> None:
    written = scaffold.write(kind, "my_own", tmp_path / "new")
    assert [path.relative_to(tmp_path / "new").as_posix() for path in written] == [
        "pyproject.toml",
        "README.md",
        ".github/workflows/test.yml",
        "ptl_my_own/__init__.py",
        "tests/test_my_own.py",
    ]
    for path in written:
        text = path.read_text()
        assert "$" not in text.replace("${{", ""), path
        assert "my_own" in text or "my-own" in text or path.suffix == ".yml", path
    compile(written[3].read_text(), str(written[3]), "exec")


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
