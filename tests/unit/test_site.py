"""What the site writes from the code is whole: keys, variables; and shells complete."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import posttrain_recipes
from posttrain_recipes import registry
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.language.validation import structural_faults

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(posttrain_recipes.__file__).parent
sys.path.insert(0, str(ROOT / "tools"))

import site_reference  # noqa: E402

NAMES = re.compile(r"(PTL|TINKER|HF|HUGGINGFACE|MLFLOW|RAY|OMP|GOMP|GIT|XDG)_[A-Z_]+")
OF_ENVIRON = re.compile(r"(os\.)?(getenv|environ(\.(get|pop|setdefault))?)")
NO_VARIABLES = {"PTL_API", "MLFLOW_RUN_ID", "MLFLOW_MODEL_IS_EXTERNAL"}
"""Names of that form that are no variables of the environment."""


def test_every_key_of_a_recipe_has_an_example() -> None:
    paths = {path for _, path, _ in site_reference.every_key()}
    described = {p for p in paths if not p.startswith(("lora.", "renderer."))}
    assert set(site_reference.EXAMPLES) == described


@pytest.mark.parametrize("path", sorted(site_reference.EXAMPLES))
def test_an_example_is_yaml_with_the_key(path: str) -> None:
    text = site_reference.EXAMPLES[path]
    assert path.split(".")[-1] in str(yaml.safe_load(text))


def test_every_key_says_what_it_means() -> None:
    assert not [
        path for _, path, about in site_reference.every_key() if not about.get("description")
    ]


FRONT = ("index.md", "quickstart.md", "variants.md")


def blocks() -> list[tuple[str, str]]:
    """The recipes on the pages for newcomers: blocks of YAML that are whole, with their page."""
    pages = [*(ROOT / "docs" / "how-to").glob("*.md"), *map((ROOT / "docs").joinpath, FRONT)]
    found = []
    for page in pages:
        for _, text in re.findall(r"^( *)```yaml\n(.*?)^ *```$", page.read_text(), re.M | re.S):
            block = textwrap.dedent(text)
            if {"model", "stages"} <= set(
                re.findall(r"^(\w+):", block, re.M)
            ) and "..." not in block:
                found.append((page.name, block))
    return found


@pytest.mark.parametrize(("page", "text"), blocks())
def test_a_recipe_on_a_page_has_the_form_of_one(page: str, text: str) -> None:
    recipe = recipes.load(yaml.safe_load(text))
    assert [str(fault) for fault in structural_faults(recipe, registry.load())] == []


def test_there_are_recipes_on_pages() -> None:
    pages = {page for page, _ in blocks()}
    assert {"quickstart.md", "index.md", "own-data.md", "own-reward.md", "from-trl.md"} <= pages


def literals(path: Path) -> set[str]:
    """The names of variables that a file has as texts, and those that it asks `environ` for."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if NAMES.fullmatch(node.value):
                found.add(node.value)
            found |= set(re.findall(r"\$\{env:([A-Z_]+)\}", node.value))
        if isinstance(node, ast.Call | ast.Subscript):
            called = isinstance(node, ast.Call)
            of = ast.unparse(node.func if called else node.value)
            first = next(iter(node.args), None) if called else node.slice
            if not OF_ENVIRON.fullmatch(of):
                continue
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value)
    return found


def test_every_variable_that_is_read_is_in_the_table() -> None:
    page = (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([A-Za-z_]+)`", page))
    read = {name for path in PACKAGE.rglob("*.py") for name in literals(path)}
    assert {"PTL_HOME", "TINKER_API_KEY", "NO_COLOR", "PTL_PRICES"} <= read
    assert read - NO_VARIABLES - {"NAME"} <= told


@pytest.mark.nightly
def test_every_command_and_plugin_is_in_the_reference() -> None:
    pages = site_reference.pages()
    assert "\n## ptl explain\n" in pages["reference/commands.md"]
    assert "\n### ptl data check\n" in pages["reference/commands.md"]
    assert "\n## grpo\n" in pages["reference/plugins/methods.md"]
    assert "| `num_generations` | `group_size` or `n` |" in pages["reference/words.md"]
    assert "\n## unknown-key\n" in pages["troubleshooting.md"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion_without_torch(shell: str) -> None:
    script = (
        "import sys\n"
        "sys.argv = ['ptl']\n"
        "from posttrain_recipes.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    sys.stderr.write(str('torch' in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "_PTL_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_PTL_COMPLETE=" in done.stdout
    assert done.stderr == "False"
