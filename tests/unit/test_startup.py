"""Commands that look import none of what trains: each starts in a fraction of a second."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from tests.conftest import ROOT

HEAVY = (
    "torch", "tinker", "transformers", "mlflow", "datasets", "huggingface_hub", "gguf", "peft"
)  # fmt: skip

PROBE = """
import sys

def tell():
    loaded = sorted(set({heavy!r}) & {{name.split(".")[0] for name in sys.modules}})
    print("HEAVY", *loaded, file=sys.stderr)

try:
{code}
finally:
    tell()
"""

RUN = "sys.argv = {words!r}\nfrom posttrain_recipes.cli import main\nmain()"
RECIPE = "recipes/sft_then_dpo.yaml"

CODE = {
    "import posttrain_recipes": "import posttrain_recipes",
    "from posttrain_recipes.plugin import Method": "from posttrain_recipes.plugin import Method",
    **{
        " ".join(words): RUN.format(words=list(words))
        for words in (
            ("ptl", "--help"),
            ("ptl", "--version"),
            ("ptl", "validate", RECIPE),
            ("ptl", "plan", RECIPE),
            ("ptl", "plan", "posttrain_recipes/starter/recipe.yaml"),
            ("ptl", "plugins", "list"),
            ("ptl", "explain", "dpo"),
            ("ptl", "schema"),
            ("ptl", "runs"),
            ("ptl", "gc", "--help"),
            ("ptl", "preflight", RECIPE, "--offline"),
            ("ptl", "ui", "--help"),
            ("ptl", "serve", "--help"),
            ("ptl", "chat", "--help"),
            ("ptl", "export", "--help"),
            ("ptl", "deploy", "--help"),
            ("ptl", "promote", "--help"),
            ("ptl", "data", "check", "recipes/data/held_out.jsonl"),
        )
    },
}


def run(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY, code=indent(code, "    "))],
        cwd=ROOT,
        env={"PTL_HOME": str(home), "PATH": "", "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("name", CODE)
def test_imports_nothing_heavy(name: str, tmp_path: Path) -> None:
    result = run(CODE[name], tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "HEAVY"
    assert list(tmp_path.iterdir()) == []  # and it writes nothing


def test_validating_imports_only_the_plugins_of_the_recipe(tmp_path: Path) -> None:
    code = indent(CODE[f"ptl validate {RECIPE}"], "    ")
    code = f"try:\n{code}\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    loaded = set(run(code, tmp_path).stderr.split())
    assert {"posttrain_recipes.methods.sft", "posttrain_recipes.methods.dpo"} <= loaded
    assert not {"posttrain_recipes.methods.grpo", "posttrain_recipes.rewards.judge"} & loaded


def test_the_probe_sees_what_is_loaded(tmp_path: Path) -> None:
    result = run(
        "import sys, types\nsys.modules['torch.nn'] = types.ModuleType('torch.nn')", tmp_path
    )
    assert result.stderr.splitlines()[-1] == "HEAVY torch"


def test_no_module_takes_the_place_of_a_verb(tmp_path: Path) -> None:
    """A submodule of the same name would, as soon as anything imports it."""
    code = """
import importlib, pkgutil
import posttrain_recipes as ptl
names = {module.name for module in pkgutil.iter_modules(ptl.__path__)}
assert not names & set(ptl.__all__), names & set(ptl.__all__)
"""
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr


WITHOUT = """
import sys
sys.modules[{module!r}] = None
sys.argv = {words!r}
from posttrain_recipes.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "words", "told"),
    [
        ("fcntl", ("runs",), "next: on Windows, use WSL2"),
        ("torch", ("serve",), "next: pip install torch"),
        ("torch", ("run", RECIPE, "--preset", "tiny"), "next: pip install torch"),
    ],
)
def test_what_is_not_installed_is_told_without_a_traceback(
    module: str, words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    done = run(WITHOUT.format(module=module, words=["ptl", *words]), tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


ABORTS = """
import os, sys
class Late:
    def __del__(self):
        os.abort()
late = Late()
sys.argv = ["ptl", *{words!r}]
from posttrain_recipes.cli import main
main()
"""


@pytest.mark.parametrize(("words", "code"), [(("runs",), 0), (("validate", "no.yaml"), 2)])
def test_what_breaks_as_python_is_taken_down_changes_no_exit_code(
    words: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    done = run(ABORTS.format(words=words), tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout + done.stderr


TOKENIZER = """
from posttrain_recipes import models, pretrained
pretrained.load_tokenizer(models.resolve("ptl/nano"))
left_out = {"transformers.generation.utils", "transformers.modeling_utils", "torch._dynamo"}
assert not left_out & set(sys.modules), left_out & set(sys.modules)

from transformers.models.auto import auto_factory

class Old:
    def generate(self): ...
    def prepare_inputs_for_generation(self): ...

auto_factory.add_generation_mixin_to_remote_model(Old)
from transformers import GenerationMixin
assert auto_factory.GenerationMixin is GenerationMixin
"""


@pytest.mark.nightly
def test_a_tokenizer_is_loaded_without_what_generates_and_models_still_have_it(
    tmp_path: Path,
) -> None:
    done = run(TOKENIZER, tmp_path)
    assert done.returncode == 0, done.stderr
