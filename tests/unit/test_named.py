"""Recipes by name: those that ship, of a package that is installed, of a repository at a commit."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from posttrain_recipes import api, shipped
from tests.conftest import Project, Ptl, flat

ROWS = '{"prompt": "1 + 1?", "completion": "2", "answer": "2"}\n'
RECIPE = """\
name: kqk
model: ptl/nano
stages:
  - name: rl
    dataset: {use: jsonl, path: data/rows.jsonl}
    method: {use: grpo, learning_rate: 1e-4, max_steps: 1, max_tokens: 4}
    reward: {use: function, call: "rule:score"}
"""
RULE = "def score(sample):\n    return 1.0\n"


def fill(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "kqk.yaml").write_text(RECIPE)
    (folder / "rule.py").write_text(RULE)
    (folder / "data" / "rows.jsonl").write_text(ROWS)


def test_one_that_ships_runs_by_its_name_and_a_file_of_that_name_goes_first(
    project: Project, ptl: Ptl
) -> None:
    assert ptl("validate", "sft", "posttrain-recipes:dpo").code == 0
    assert "sft: ptl/tiny" in ptl("plan", "sft", "--preset", "tiny").out
    assert api.plan("sft", preset="tiny").name == "sft"
    project.write("sft", RECIPE)
    said = ptl("plan", "sft")
    assert said.code == 2
    assert "data/rows.jsonl" in said.out + said.err
    assert ptl("plan", "no_such_recipe").code == 2


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel as pip unpacks it, whose module cannot be imported: nobody has to."""
    there = tmp_path / "site"
    fill(there / "my_games" / "recipes")
    (there / "my_games" / "__init__.py").write_text("raise SystemExit('imported')\n")
    info = there / "my_games-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-games\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(there)
    return info


def test_one_of_a_package_is_found_without_importing_it(
    package: Path, ptl: Ptl, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain_recipes.language import named

    (package / "entry_points.txt").write_text("[posttrain_recipes]\ngames = my_games\n")
    found = named.find("my-games:kqk")
    assert found == package.parent / "my_games" / "recipes" / "kqk.yaml"
    with pytest.raises(Exception, match="has no recipe 'kqkk'") as told:
        named.find("my-games:kqkk")
    assert told.value.hint == "did you mean my-games:kqk?"  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="no package my-game is installed") as told:
        named.find("my-game:kqk")
    assert told.value.hint == "did you mean my-games?"  # type: ignore[attr-defined]


def git(folder: Path, *words: str) -> str:
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a"}
    environment = {
        **os.environ,
        **who,
        "GIT_COMMITTER_EMAIL": "a@b",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    done = subprocess.run(
        ["git", *words], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A repository, and its commit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = tmp_path / "repository"
    fill(there / "rl")
    (there / "rl" / "link.yaml").symlink_to("/etc/passwd")
    git(there, "init", "--quiet")
    git(there, "add", "-A")
    git(there, "commit", "--quiet", "-m", "first")
    git(there, "tag", "v1")
    return there, git(there, "rev-parse", "HEAD")


def test_one_of_a_commit_is_fetched_once(
    repository: tuple[Path, str], project: Project, ptl: Ptl
) -> None:
    there, commit = repository
    name = f"git+file://{there}@{commit}#rl/kqk.yaml"
    said = ptl("plan", name)
    assert said.code == 0, said.err
    assert "kqk: ptl/nano" in said.out
    link = ptl("plan", name.replace("kqk.yaml", "link.yaml"))
    assert link.code == 2
    assert "root:" not in link.out + link.err
    (there / "rl" / "kqk.yaml").write_text("broken")
    git(there, "commit", "--quiet", "-am", "second")
    there.rename(there.with_name("gone"))
    assert ptl("validate", name).code == 0, "what a commit holds never changes"


def test_a_branch_or_a_tag_is_refused_with_the_commit_that_it_is(
    repository: tuple[Path, str], ptl: Ptl
) -> None:
    there, commit = repository
    said = ptl("plan", f"git+file://{there}@v1#rl/kqk.yaml")
    assert said.code == 2
    assert f"'v1' is {commit} now: write that" in flat(said.err)
    assert commit in flat(ptl("plan", f"git+file://{there}#rl/kqk.yaml").err)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("git+https://host/r@{}", "names no recipe"),
        ("git+ext://sh -c x@{}#a.yaml", "names no recipe"),
        ("git+ftp://host/r@{}#a.yaml", "one of git+https://"),
        ("git+file://{there}@{}#../a.yaml", "a path in the repository"),
        ("git+file://{there}@{}#rl/kqq.yaml", "that commit has no file 'rl/kqq.yaml'"),
        ("git+file:///nowhere@{}#a.yaml", "cannot fetch"),
    ],
)
def test_what_cannot_be_had_is_told_in_a_line(
    repository: tuple[Path, str], ptl: Ptl, name: str, said: str
) -> None:
    there, commit = repository
    found = ptl("plan", name.replace("{there}", str(there)).replace("{}", commit))
    assert found.code in (1, 2)
    assert said in flat(found.err)
    assert "Traceback" not in found.err


def test_what_extends_one_finds_its_data_and_functions(
    repository: tuple[Path, str], project: Project, ptl: Ptl
) -> None:
    there, commit = repository
    base = f"git+file://{there}@{commit}#rl/kqk.yaml"
    project.write("mine.yaml", f"extends: '{base}'\nname: mine\n")
    planned = json.loads(ptl("plan", "mine.yaml", "--json").out)
    (stage,) = planned["stages"]
    assert stage["data"].endswith("/rl/data/rows.jsonl")
    project.write("ours.yaml", "extends: rlhf\nname: ours\n")
    assert ptl("validate", "ours.yaml").code == 0
    project.write("bad.yaml", "extends: 'git+https://h/r@main#a.yaml'\nname: bad\n")
    said = ptl("validate", "bad.yaml")
    assert said.code == 2
    assert "bad.yaml:1:10" in said.out


def test_every_shipped_recipe_can_be_extended_from_elsewhere(project: Project, ptl: Ptl) -> None:
    for name in shipped.recipes():
        project.write(f"{name}_mine.yaml", f"extends: {name}\nname: mine\n")
    names = [f"{name}_mine.yaml" for name in shipped.recipes()]
    said = ptl("validate", *names, "--preset", "tiny")
    assert said.code == 0, said.out
