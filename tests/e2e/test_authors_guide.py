"""docs/authors.md: its commands and its code, as a reader would run them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHAT, ROOT

GUIDE = (ROOT / "docs" / "authors.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, flags=re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def run(line: str, folder: Path) -> None:
    """A line of the guide; `pip install -e` becomes an install that needs no network."""
    words = shlex.split(line)
    if words[:3] == ["pip", "install", "-e"]:
        options = ["--no-index", "--no-deps", "--no-build-isolation", "--upgrade"]
        target = ["--disable-pip-version-check", "--target", str(folder / "site")]
        words = [sys.executable, "-m", "pip", "install", "-q", *options, *target, words[3]]
    else:
        assert words[0] == "ptl", line
        words = [sys.executable, "-m", "posttrain_recipes.cli", *words[1:]]
    path = os.pathsep.join([str(folder / "site"), *filter(None, sys.path)])
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.nightly
def test_from_nothing_to_a_run(tmp_path: Path) -> None:
    begin, install, check, use = blocks("bash")
    (code,) = blocks("python")
    (recipe,) = blocks("yaml")
    for line in begin.splitlines() + install.splitlines():
        run(line, tmp_path)
    (tmp_path / "ptl-even-sft" / "ptl_even_sft" / "__init__.py").write_text(code)
    run(install.splitlines()[0], tmp_path)
    for line in check.splitlines():
        run(line, tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "chat.jsonl").write_text(CHAT * 64)
    for line in use.splitlines():
        run(line, tmp_path)
