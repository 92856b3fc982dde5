"""What holds for every plugin that a recipe can name, ours first."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from posttrain_recipes import registry
from posttrain_recipes.plugin import (
    Method,
)
from posttrain_recipes.registry import BUILTINS, KINDS, Entry
from posttrain_recipes.testing.reading import HEAVY, read_checks

ENTRIES = list(registry.load())

every = pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.kind}.{e.name}")


def of_kind(*kinds: str) -> Any:
    found = [entry for entry in ENTRIES if entry.kind in kinds]
    return pytest.mark.parametrize("entry", found, ids=lambda e: f"{e.kind}.{e.name}")


OWN = [kind for kind in KINDS if kind != "tracker"]  # MLflow hears of every run, and is no plugin


@pytest.mark.parametrize("kind", OWN)
def test_there_is_one_of_every_kind(kind: str) -> None:
    assert registry.load().names(kind)


def test_every_hook_is_implemented_by_us() -> None:
    ours = {entry.kind for entry in ENTRIES if entry.distribution == "posttrain-recipes"}
    assert ours == set(OWN)
    assert len(BUILTINS) == len(OWN)


@pytest.mark.parametrize("kind", KINDS)
def test_every_plugin_is_where_its_name_says(kind: str) -> None:
    assert [entry.name for entry in ENTRIES if entry.kind == kind] == [
        *registry.load().entries[kind]
    ]


def test_no_plugin_of_this_environment_is_broken() -> None:
    assert registry.load().broken == []


# --- every plugin --------------------------------------------------------------------------------


@every
def test_it_holds_what_a_strangers_plugin_has_to(entry: Entry) -> None:
    found = read_checks(entry, {}, probe=False)  # imports are probed below, all at once
    assert len(found) >= 9
    assert {f.check: f.told for f in found if not f.passed} == {}


@of_kind("method")
def test_it_says_its_loss_and_where_it_comes_from(entry: Entry) -> None:
    assert issubclass(entry.cls, Method)
    assert "log p" in entry.cls.loss
    authors, year = entry.cls.paper.split(",")[0].rsplit(" ", 1)
    assert authors
    assert 1900 < int(year) < 2100
    assert "arXiv " in entry.cls.paper


@of_kind("engine")
def test_a_key_is_never_shown_with_its_options(entry: Entry) -> None:
    fields = entry.config.model_fields
    if "api_key" in fields:
        assert fields["api_key"].default == "${env:TINKER_API_KEY}"
        required = {n: "http://x" for n, field in fields.items() if field.is_required()}
        made = entry.config.model_validate(required | {"api_key": "tml-secret"})
        assert "tml-secret" not in repr(made)


# --- imports -------------------------------------------------------------------------------------

PROBE = """
import importlib, sys
for name in sys.argv[1].split():
    importlib.import_module(name)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_no_plugin_loads_what_it_works_with_when_it_is_imported() -> None:
    """In one process for all of them: a fresh one is needed to see an import."""
    modules = sorted({entry.cls.__module__ for entry in ENTRIES})
    assert len(modules) >= 8
    result = subprocess.run(
        [sys.executable, "-c", PROBE, " ".join(modules)],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(result.stdout.split())
    assert "posttrain_recipes" in loaded
    assert loaded & set(HEAVY) == set()
