"""What plugins import of `posttrain_recipes.training`: one door, and the old ones for a while."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest

from posttrain_recipes import training
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
def test_old_paths_work_and_say_what_is_new(old: str, name: str) -> None:
    module = importlib.import_module(f"posttrain_recipes.training.{old}")
    with pytest.warns(DeprecationWarning, match=f"{old}.{name} is now") as told:
        found = getattr(module, name)
    now = RENAMED.get(f"{old}.{name}", name)
    assert found is getattr(importlib.import_module(f"{training.__name__}.{MOVED[old]}"), now)
    assert told[0].filename == __file__


@pytest.mark.parametrize("old", sorted(OLD))
def test_an_old_path_says_what_it_never_had(old: str) -> None:
    module = importlib.import_module(f"posttrain_recipes.training.{old}")
    with pytest.raises(AttributeError, match=rf"training\.{old}' has no attribute 'nonesuch'"):
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
    for old in ("gradient.GradientConfig", "estimates.mean", "examples.Example", "generate is now"):
        assert old in done.stderr
    assert "training.supervised.GradientConfig" in done.stderr


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
    assert "is now posttrain_recipes" not in done.stderr
