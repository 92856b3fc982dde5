"""What plugins import of `posttrain_recipes.training`: one door, and the old ones for a while."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest

from posttrain_recipes import training
from posttrain_recipes.deprecation import PluginDeprecationWarning
from posttrain_recipes.training.moved import FLAT, MODULES, MOVED, RENAMED

OLD = {
    "gradient": ("GradientConfig", "Objective", "Order", "train", "total_steps", "examples_seen"),
    "examples": ("Example", "tokenize", "datum"),
    "sampling": ("workload", "generate", "log_likelihoods", "IN_FLIGHT"),
    "estimates": ("proportion", "ratio", "mean"),
    "answers": ("Extract", "extract", "fenced", "equal"),
    "replies": ("Replies", "Logps", "Metrics", "Loss", "train", "pairs", "Reference", "Objective"),
    "pairs": ("PairConfig", "PairMethod"),
    "losses": ("dpo_sigmoid", "dpo_robust", "orpo", "simpo", "cpo", "kto", "bradley_terry"),
    "verdicts": ("QUESTION", "NEEDS", "Judgement", "judgement", "question", "choice", "score"),
}
"""The nine modules that the reference of version 0.1 published, and what was in them."""


def test_every_name_is_there_and_listed() -> None:
    assert sorted(training.__all__) == sorted({**FLAT, **MODULES})
    assert dir(training) == training.__all__
    for name in training.__all__:
        assert getattr(training, name) is not None
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = training.nonesuch  # type: ignore[attr-defined]


@pytest.mark.parametrize(("old", "name"), [(old, name) for old in OLD for name in OLD[old]])
def test_old_paths_work_and_say_what_to_write(old: str, name: str) -> None:
    module = importlib.import_module(f"posttrain_recipes.training.{old}")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = getattr(module, name)
    now = RENAMED.get(f"{old}.{name}", name)
    assert found is getattr(importlib.import_module(f"{training.__name__}.{MOVED[old]}"), now)
    if old in MODULES:  # where it always was
        assert told == []
        return
    assert told[0].category is PluginDeprecationWarning
    assert told[0].filename == __file__
    said = str(told[0].message)
    assert said.startswith(f"posttrain_recipes.training.{old}.{name} has moved: ")
    # What it says to write works.
    names = said.split("'")[1::2]
    space: dict[str, object] = {}
    for line in names:
        if line.startswith("from "):
            exec(line, space)
    if names:
        last = names[-1].rpartition(" ")[2]
        assert eval(last, space) is found


@pytest.mark.parametrize("name", [*MODULES])
def test_modules_of_the_api_can_be_imported_by_their_path(name: str) -> None:
    program = f"""
import posttrain_recipes.training.{name}
from posttrain_recipes.training import {name} as one
import posttrain_recipes.training.{name} as two
from posttrain_recipes.training.{name} import *
assert one is two
print(len([n for n in dir() if not n.startswith("_")]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", program],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) > 3  # the package, and the module twice


def test_star_imports_dir_specs_and_patches_of_old_paths_work() -> None:
    program = """
import importlib.util, unittest.mock as mock
from posttrain_recipes.training.gradient import *
from posttrain_recipes.training.sampling import *
import posttrain_recipes.training.gradient as old
from posttrain_recipes.training import supervised
assert GradientConfig is supervised.GradientConfig and generate and "train" in dir(old)
assert importlib.util.find_spec("posttrain_recipes.training.gradient") is not None
with mock.patch("posttrain_recipes.training.gradient.train", 5):
    assert supervised.train == 5
assert callable(supervised.train)
"""
    done = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", "-c", program],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "gradient.GradientConfig has moved" in done.stderr


@pytest.mark.parametrize("old", sorted(OLD))
def test_an_old_path_says_what_it_never_had(old: str) -> None:
    module = importlib.import_module(f"posttrain_recipes.training.{old}")
    with pytest.raises(AttributeError, match=rf"{old}' has no attribute 'nonesuch'"):
        _ = module.nonesuch


def test_the_statements_of_old_plugins_work() -> None:
    program = """
import posttrain_recipes.training.losses
from posttrain_recipes.training import gradient, losses, sampling, verdicts
from posttrain_recipes.training.estimates import mean
from posttrain_recipes.training.examples import Example, datum, tokenize
from posttrain_recipes.training.sampling import generate
class Config(gradient.GradientConfig):
    pass
print(Config().batch_size, generate.__module__, losses.orpo.__name__, mean([1.0]).value)
"""
    done = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", "-c", program],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[:3] == [
        "32",
        "posttrain_recipes.training.sampling.generation",
        "orpo",
    ]
    for old in ("gradient.GradientConfig", "estimates.mean", "examples.Example", "generate"):
        assert f"{old} has moved" in done.stderr
    assert "write 'from posttrain_recipes.training import mean'" in done.stderr


@pytest.mark.nightly
def test_nothing_of_this_package_uses_an_old_path() -> None:
    program = (
        "import pkgutil, importlib, posttrain_recipes as p\n"
        "for m in pkgutil.walk_packages(p.__path__, 'posttrain_recipes.'):\n"
        "    m.name.endswith('__main__') or importlib.import_module(m.name)\n"
    )
    with warnings.catch_warnings():
        done = subprocess.run(
            [sys.executable, "-W", "always::DeprecationWarning", "-c", program],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert "has moved" not in done.stderr
