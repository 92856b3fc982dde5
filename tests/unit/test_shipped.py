"""What ships beside the code: found in a checkout, carried by a wheel, copied whole by init."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from posttrain_recipes import shipped
from tests.conftest import ROOT, Project, Ptl


@pytest.mark.parametrize("name", sorted(shipped.recipes()))
def test_init_writes_a_shipped_recipe_with_all_that_it_needs(
    ptl: Ptl, project: Project, name: str
) -> None:
    said = ptl("init", "mine", "--recipe", name)
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith(f"\nnext: ptl run mine/{name}.yaml\n")
    written = (project.path / "mine" / f"{name}.yaml").read_text().splitlines()
    shown = (ROOT / "recipes" / f"{name}.yaml").read_text().splitlines()
    assert written[0] == "# yaml-language-server: $schema=recipe.schema.json"
    assert (project.path / "mine" / "recipe.schema.json").is_file()
    assert written[1:] == shown[1:]
    checked = ptl("validate", f"mine/{name}.yaml", "--preset", "tiny")
    assert checked.code == 0, checked.err


def test_init_lists_the_recipes_with_what_they_teach(ptl: Ptl, project: Project) -> None:
    before = set(project.path.iterdir())
    said = ptl("init", "--list")
    names = [
        line.split()[0] for line in said.out.partition("\n\n")[0].splitlines() if line[0] != " "
    ]
    assert names == list(shipped.recipes())
    assert set(project.path.iterdir()) == before


def test_pages_that_only_the_site_has_are_told_by_what_says_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "(docs/reference/recipe.md), docs/evals.md, /a/docs/evals.md, docs/no-page.md"
    page = shipped.ROOT / "docs" / "evals.md"
    assert shipped.with_pages(text) == f"('ptl schema'), {page}, /a/docs/evals.md, docs/no-page.md"


def test_init_names_the_nearest_recipe(ptl: Ptl) -> None:
    said = ptl("init", "--recipe", "sft_then_dop")
    assert (said.code, said.err) == (
        2,
        "error: no shipped recipe is named 'sft_then_dop'\n  next: did you mean 'sft_then_dpo'?\n"
        "help: ptl explain unknown-name\n",
    )


def test_a_recipe_is_copied_with_its_functions_and_over_nothing(ptl: Ptl, project: Project) -> None:
    assert ptl("init", "--recipe", "recipes/rlhf.yaml").code == 0
    assert (project.path / "formality.py").is_file()
    again = ptl("init", "--recipe", "rlhf")
    assert again.code == 2
    assert "rlhf.yaml is already there; nothing was written" in again.err


def test_data_of_others_is_copied_with_its_licence(ptl: Ptl, project: Project) -> None:
    assert ptl("init", "--recipe", "sft_gsm8k").code == 0
    copied = {path.name for path in (project.path / "data").iterdir()}
    assert {"gsm8k.jsonl", "gsm8k_held_out.jsonl", "gsm8k.LICENSE.txt"} <= copied


def test_two_recipes_may_share_a_directory(ptl: Ptl, project: Project) -> None:
    assert ptl("init", "--recipe", "tool_use", "one").code == 0
    said = ptl("init", "--recipe", "grpo_arithmetic", "one")
    assert (said.code, said.err) == (0, "")
    assert "recipe.schema.json" not in said.out  # it was there, and the same
    project.write("two/recipe.schema.json", "mine")
    refused = ptl("init", "--recipe", "tool_use", "two")
    assert refused.code == 2
    assert "next: name another directory: ptl init --recipe tool_use my_project" in refused.err
    assert (project.path / "two/recipe.schema.json").read_text() == "mine"
    assert not (project.path / "two/tool_use.yaml").exists()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", "-q", *offline, "-w", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.mark.nightly
def test_an_installed_wheel_explains_and_writes_recipes(site: Path, tmp_path: Path) -> None:
    def ptl(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "posttrain_recipes.cli", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "PTL_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    explained = ptl("explain", "sft_then_dpo")
    assert "run      ptl init --recipe sft_then_dpo\n" in explained
    assert "showed   " in explained
    assert "recipe  ptl init --recipe sft, " in ptl("explain", "sft")
    # Pages are where they lie in here, and none is named that is not there.
    for name in ("sft", "unknown-key", "grpo_arithmetic", "too-long", "bad-row"):
        pages = re.findall(r"\S*docs/\S+\.md", ptl("explain", name))
        assert all(Path(page.strip("(),.:")).is_file() for page in pages), pages
    page = re.search(r"\ndocs\s+(\S+)", ptl("explain", "sft"))  # on a line of its own if it is long
    assert page is not None
    assert Path(page[1]).is_file()
    assert "\nsft_then_dpo " in ptl("init", "--list")
    assert "next: ptl run x/sft_then_dpo.yaml" in ptl("init", "x", "--recipe", "sft_then_dpo")
    assert ptl("validate", "x/sft_then_dpo.yaml") == "x/sft_then_dpo.yaml: ok\n"
