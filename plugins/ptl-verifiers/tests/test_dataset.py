"""What can be said of an environment before verifiers is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from ptl_verifiers.dataset import Verifiers, found, module_of

RECIPES = Path(__file__).parents[1] / "recipes"


def dataset(**options: object) -> Verifiers:
    return Verifiers(Verifiers.Config(**options), RECIPES)


def test_an_id_of_the_hub_is_a_module() -> None:
    assert module_of("primeintellect/GSM8K-v1@0.2.0") == "gsm8k_v1"


def test_a_module_beside_the_recipe_is_found_and_nothing_else_is() -> None:
    assert found("sums-v1", "tasksets", RECIPES) == RECIPES / "sums_v1.py"
    assert found("sums_v2", "tasksets", RECIPES) is None
    assert found("../sums_v1", "tasksets", RECIPES) == RECIPES / "sums_v1.py", "an id has an owner"
    assert found("sums v1", "tasksets", RECIPES) is None


def test_a_changed_module_is_another_dataset(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("a = 1")
    mine = Verifiers(Verifiers.Config(env="mine"), tmp_path)
    before = mine.digest()
    assert mine.digest() == before
    (tmp_path / "mine.py").write_text("a = 2")
    assert mine.digest() != before


def test_both_parts_of_a_name_count() -> None:
    spec = dataset(env="user-sim+sums_v1").spec
    assert (spec.environment, spec.taskset) == ("user-sim", "sums_v1")
    assert dataset(env="sums_v1").spec.environment == ""


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ("sums_v2", "no module 'sums_v2'"),
        ("primeintellect/none-such", "no module 'none_such' for 'primeintellect/none-such'"),
        ("no-such-env+sums_v1", "no module 'no_such_env'"),
    ],
)
def test_an_unknown_environment_is_told_before_anything_runs(env: str, told: str) -> None:
    pytest.importorskip("verifiers")
    [(option, message)] = dataset(env=env).problems()
    assert option == "env"
    assert told in message
    assert "prime env install" in message


@pytest.mark.parametrize("env", ["sums_v1", "user-sim+sums_v1", "textarena", "best-of-n+sums_v1"])
def test_a_known_one_has_no_problem(env: str) -> None:
    pytest.importorskip("verifiers")
    assert not list(dataset(env=env).problems())


@pytest.mark.parametrize("recipe", ["sums", "running_sum", "calculator"])
def test_a_check_of_a_recipe_imports_nothing_heavy(recipe: str) -> None:
    pytest.importorskip("verifiers")
    code = (
        "import sys\n"
        "from posttrain_recipes import api\n"
        f"api.validate({str(RECIPES / f'{recipe}.yaml')!r})\n"
        "heavy = {'torch', 'numpy', 'verifiers', 'openai', 'tinker', 'mcp'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
