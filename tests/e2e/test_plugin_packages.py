"""The packages under `plugins/`: built, installed as a stranger's would be, and tested."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
SLOW = [
    path
    for path in PACKAGES
    if any("mark.nightly" in test.read_text(encoding="utf-8") for test in path.glob("tests/*.py"))
]
LONG = (
    *("ptl-chess", "ptl-gymnasium", "ptl-inspect", "ptl-lm-eval", "ptl-reasoning-gym"),
    *("ptl-textgames", "ptl-wandb"),
)
"""Packages whose tests take about a minute each, or whose library is there at night alone: the
others are as much of a stranger's."""
PUBLIC = ("posttrain_recipes.plugin", "posttrain_recipes.training", "posttrain_recipes.testing")
"""What a plugin imports of this package: the plugin API, the loops, and the checks in its tests."""


def test_there_are_packages() -> None:
    assert len(PACKAGES) >= 2


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_it_imports_the_public_api_alone(package: Path) -> None:
    for path in package.glob("ptl_*/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                if name.startswith("posttrain_recipes"):
                    assert name.startswith(PUBLIC[:2]), f"{path}:{node.lineno} imports {name}"


@pytest.mark.parametrize(
    "package",
    [
        pytest.param(path, marks=[pytest.mark.nightly] * (path.name in LONG), id=path.name)
        for path in PACKAGES
    ],
)
def test_it_passes_its_tests_where_it_is_installed(package: Path, tmp_path: Path) -> None:
    _passes(package, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("package", SLOW, ids=lambda path: path.name)
def test_it_passes_those_that_take_long(package: Path, tmp_path: Path) -> None:
    _passes(package, tmp_path, "-m", "nightly")


def _passes(package: Path, tmp_path: Path, *options: str) -> None:
    """Install a package as a stranger's would be, and run its tests; one that can run none, as what
    it stands on is not installed, is skipped."""
    site = tmp_path / "site"
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    install = [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(site)]
    subprocess.run([*install, str(package)], check=True)
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_, "--import-mode=importlib", *options],
        cwd=package,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        pytest.skip(f"what {package.name} stands on is not installed: {done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
