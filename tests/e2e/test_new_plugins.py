"""`ptl plugins new`: what it writes installs, conforms and passes its own tests, as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain_recipes import scaffold

KINDS = ("method", "dataset", "reward", "eval", "engine", "tracker")
SLOW = ("eval", "method")
"""Kinds whose tests run at night."""

RECIPE = """\
name: mine
model: ptl/nano
engine: {use: my_engine, base_url: http://127.0.0.1:1}
trackers: [my_tracker]
stages:
  - name: train
    dataset: {use: my_dataset, count: 40, test_size: 8}
    method: {use: my_method, power: 0.5}
    eval: [{use: my_eval}]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a new package of every kind, installed from their wheels into `site`."""
    folder = tmp_path_factory.mktemp("authors")
    packages = []
    for kind in KINDS:
        scaffold.write(kind, f"my_{kind}", folder / kind)
        packages.append(str(folder / kind))
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "-q", *offline]
    subprocess.run([*command, "--target", str(folder / "site"), *packages], check=True)
    return folder


def call(installed: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed / "site"), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd or installed,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_they_are_listed_under_their_names(installed: Path) -> None:
    listed = json.loads(
        call(installed, "posttrain_recipes.cli", "plugins", "list", "--json").stdout
    )
    assert listed["broken"] == []
    mine = {p["name"]: p["distribution"] for p in listed["plugins"] if p["name"].startswith("my_")}
    assert mine == {f"my_{kind}": f"ptl-my-{kind}" for kind in KINDS}


def test_editors_complete_their_options(installed: Path) -> None:
    schema = json.loads(call(installed, "posttrain_recipes.cli", "schema").stdout)
    assert "power" in schema["$defs"]["method.my_method"]["properties"]
    assert "floor" in schema["$defs"]["reward.my_reward"]["properties"]


def test_a_recipe_with_them_is_checked(installed: Path) -> None:
    (installed / "mine.yaml").write_text(RECIPE)
    good = call(installed, "posttrain_recipes.cli", "validate", "mine.yaml")
    assert good.returncode == 0, good.stdout + good.stderr
    (installed / "wrong.yaml").write_text(RECIPE.replace("power", "powers"))
    bad = call(installed, "posttrain_recipes.cli", "validate", "wrong.yaml")
    assert bad.returncode == 2
    assert "unknown option for method 'my_method'; did you mean 'power'?" in bad.stdout


def test_their_recipes_are_found_by_name(installed: Path) -> None:
    names = [f"ptl-my-{kind}:my_{kind}" for kind in KINDS]
    done = call(installed, "posttrain_recipes.cli", "validate", *names)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "engine"])
def test_their_readmes_take_the_results_of_their_recipes(installed: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "results.py"],
        cwd=installed / kind,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(installed / "site"), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    readme = (installed / kind / "README.md").read_text(encoding="utf-8")
    assert "| eval | metric | n | before | after |\n" in readme
    assert "Not run yet" not in readme
    assert len(re.findall(r"^\| \w+ \| \w+ \| \d+ \| [\d.]+ \[", readme, re.MULTILINE)) >= 1


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.nightly] * (k in SLOW), id=k) for k in KINDS]
)
def test_they_pass_their_own_tests(installed: Path, kind: str) -> None:
    done = call(installed, "pytest", "-q", "-p", "no:cacheprovider", cwd=installed / kind)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_written_as_this_package_is(installed: Path, kind: str) -> None:
    for words in (("check", "--select", "E,F,I,UP,B"), ("format", "--check")):
        options = ("--line-length", "100", "--no-cache", ".")
        done = call(installed, "ruff", *words, *options, cwd=installed / kind)
        assert done.returncode == 0, done.stdout + done.stderr
