"""The packages under `plugins/`: built, installed as a stranger's would be, and tested."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
SLOW = [
    path
    for path in PACKAGES
    if any("mark.nightly" in test.read_text(encoding="utf-8") for test in path.glob("tests/*.py"))
]
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


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_it_passes_its_tests_where_it_is_installed(package: Path, tmp_path: Path) -> None:
    _passes(package, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("package", SLOW, ids=lambda path: path.name)
def test_it_passes_those_that_take_long(package: Path, tmp_path: Path) -> None:
    _passes(package, tmp_path, "-m", "nightly")


def _passes(package: Path, tmp_path: Path, *options: str) -> None:
    """Install a package as a stranger's would be, and run its tests; a package whose own
    requirements are not installed is skipped, and named."""
    if missing := [name for name in needs(package) if not installed(name)]:
        pytest.skip(f"{package.name} needs {', '.join(missing)}: pip install {' '.join(missing)}")
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
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def needs(package: Path) -> list[str]:
    """The distributions that a package requires."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in project["dependencies"]]


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
