"""The plugin packages of the last release, as they were built then, beside today's tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

WHEELS = sorted((ROOT / "tests" / "compat" / "wheels").glob("*.whl"))
PLUGINS = {
    "dataset": {"kqk", "gymnasium", "released_dataset"},
    "method": {"chess_q_learning", "q_learning", "released_method"},
    "reward": {"released_reward"},
    "eval": {"released_eval"},
    "engine": {"released_engine"},
}
RECIPE = """\
name: released
model: ptl/nano
stages:
  - name: sums
    dataset: {use: released_dataset, count: 12, test_size: 4}
    method: {use: released_method, max_steps: 2, batch_size: 4}
    eval: [{use: released_eval, max_tokens: 4, dataset: {use: jsonl, path: prompts.jsonl}}]
"""
PROGRAM = """
import json
from posttrain_recipes import registry
from posttrain_recipes.testing.reading import read_checks
from posttrain_recipes.testing.working import work_checks
found = registry.load()
mine = [entry for entry in found if entry.distribution != registry.OWN]
told = {}
for entry in mine:
    findings = read_checks(entry, {}, probe=False)
    if entry.name in ("released_dataset", "released_reward"):  # they need no engine
        findings += work_checks(entry, {})
    told[f"{entry.kind} {entry.name}"] = [one.told for one in findings if not one.passed]
print(json.dumps({
    "from": sorted({entry.distribution for entry in mine}),
    "broken": [vars(one) for one in found.broken],
    "told": told,
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels, installed as from an index."""
    folder = tmp_path_factory.mktemp("released") / "site"
    offline = ["--no-index", "--no-deps", "--disable-pip-version-check", "--no-compile"]
    install = [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(folder)]
    subprocess.run([*install, *map(str, WHEELS)], check=True)
    return folder


def python(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_they_are_there_and_small() -> None:
    assert len(WHEELS) >= 7
    assert sum(path.stat().st_size for path in WHEELS) < 100_000


def test_they_load_and_conform(site: Path, tmp_path: Path) -> None:
    done = python(site, tmp_path, "-c", PROGRAM)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["broken"] == []
    wheels = {path.name.partition("-")[0].replace("_", "-") for path in WHEELS}
    assert wheels <= set(said["from"])
    for kind, names in PLUGINS.items():
        assert {f"{kind} {name}" for name in names} <= said["told"].keys()
    assert {name: told for name, told in said["told"].items() if told} == {}


def test_recipes_of_theirs_run_by_name(site: Path, tmp_path: Path) -> None:
    done = python(site, tmp_path, "-m", "posttrain_recipes.cli", "validate", "ptl-chess:kqk")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.nightly
def test_they_train_and_measure(site: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    prompts = [{"prompt": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    done = python(site, tmp_path, "-m", "posttrain_recipes.cli", "run", "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "words" in done.stdout


@pytest.mark.nightly
@pytest.mark.parametrize("kind", PLUGINS)
def test_they_pass_every_check_of_today(site: Path, tmp_path: Path, kind: str) -> None:
    names = sorted(name for name in PLUGINS[kind] if name.startswith("released_"))
    check = "from posttrain_recipes.testing import check_plugin; check_plugin(*sys.argv[1:])"
    for name in names:
        done = python(site, tmp_path, "-c", f"import sys; {check}", kind, name)
        assert done.returncode == 0, done.stdout + done.stderr
