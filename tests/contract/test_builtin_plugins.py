"""What holds for every plugin that a recipe can name, ours first."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

from posttrain_recipes import registry
from posttrain_recipes.plugin import (
    Dataset,
    DatasetConfig,
    Engine,
    Eval,
    Method,
    Plugin,
    PluginConfig,
    Reward,
)
from posttrain_recipes.records import RECORD_TYPES
from posttrain_recipes.registry import BUILTINS, KINDS, Entry
from posttrain_recipes.schema import EXTRA_OPTIONS

ENTRIES = list(registry.load())
VERBS: dict[type[Plugin], tuple[str, ...]] = {
    Dataset: ("load",),
    Method: ("train",),
    Reward: ("score",),
    Eval: ("evaluate",),
    Engine: ("connect", "identity"),
}
HEAVY = {"torch", "tinker", "transformers", "mlflow", "datasets", "pyarrow", "safetensors"}

every = pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.kind}.{e.name}")


def of_kind(*kinds: str) -> Any:
    found = [entry for entry in ENTRIES if entry.kind in kinds]
    return pytest.mark.parametrize("entry", found, ids=lambda e: f"{e.kind}.{e.name}")


def properties(entry: Entry) -> dict[str, dict[str, Any]]:
    return entry.config.model_json_schema().get("properties", {})


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_one_of_every_kind(kind: str) -> None:
    assert registry.load().names(kind)


def test_every_hook_is_implemented_by_us() -> None:
    ours = {entry.kind for entry in ENTRIES if entry.distribution == "posttrain-recipes"}
    assert ours == set(KINDS)
    assert len(BUILTINS) == len(KINDS)


def test_no_plugin_of_this_environment_is_broken() -> None:
    assert registry.load().broken == []


# --- every plugin --------------------------------------------------------------------------------


@every
def test_its_name_is_a_word(entry: Entry) -> None:
    assert entry.name.isidentifier()
    assert entry.name == entry.name.lower()


@every
def test_its_first_line_is_a_sentence(entry: Entry) -> None:
    assert entry.summary == inspect.cleandoc(entry.cls.__doc__ or "").split("\n")[0]
    assert 20 <= len(entry.summary) <= 100
    assert entry.summary.endswith(".")
    assert entry.summary[0].isupper() or entry.summary[0].isdigit()


@every
def test_every_option_is_described(entry: Entry) -> None:
    bare = [name for name, option in properties(entry).items() if not option.get("description")]
    assert bare == []
    unfinished = [
        name for name, option in properties(entry).items() if option["description"][-1] not in ".:"
    ]
    assert unfinished == []


@every
def test_its_defaults_are_valid(entry: Entry) -> None:
    """Pydantic does not check defaults by itself."""
    fields = entry.config.model_fields
    required = {"path": "x", "base_url": "http://x"}
    given = {
        name: required[name]
        if field.is_required()
        else field.get_default(call_default_factory=True)
        for name, field in fields.items()
    }
    assert entry.config.model_validate(given).model_dump() == given


@every
def test_an_unknown_option_is_refused(entry: Entry) -> None:
    assert issubclass(entry.config, PluginConfig)
    assert entry.config.model_config.get("extra") == "forbid"
    assert entry.config.model_config.get("frozen") is True
    assert entry.config.model_json_schema()["additionalProperties"] is False


@every
def test_its_options_leave_the_recipes_own_words_alone(entry: Entry) -> None:
    taken = {"use", *EXTRA_OPTIONS.get(entry.kind, {})}
    assert not taken & properties(entry).keys()


@every
def test_it_can_be_made_from_its_options(entry: Entry) -> None:
    required = {
        name: "x" for name, field in entry.config.model_fields.items() if field.is_required()
    }
    made = entry.cls(entry.config.model_validate(required))
    assert isinstance(made, KINDS[entry.kind])
    assert made.config == entry.config(**required)


@every
def test_it_does_its_own_work(entry: Entry) -> None:
    for verb in VERBS[KINDS[entry.kind]]:
        assert getattr(entry.cls, verb) is not getattr(KINDS[entry.kind], verb)


@every
def test_what_it_needs_is_installed_or_named(entry: Entry) -> None:
    assert not entry.missing or entry.cls.extra


# --- kinds ---------------------------------------------------------------------------------------


@of_kind("method", "eval")
def test_it_says_which_records_it_takes(entry: Entry) -> None:
    assert issubclass(entry.cls, (Method, Eval))
    assert isinstance(entry.cls.takes, tuple)
    assert entry.cls.takes
    assert set(entry.cls.takes) <= set(RECORD_TYPES)


@of_kind("method")
def test_it_says_its_loss_and_where_it_comes_from(entry: Entry) -> None:
    assert issubclass(entry.cls, Method)
    assert "log p" in entry.cls.loss
    authors, year = entry.cls.paper.split(",")[0].rsplit(" ", 1)
    assert authors
    assert 1900 < int(year) < 2100
    assert "arXiv " in entry.cls.paper


@of_kind("method")
def test_it_says_when_to_use_it(entry: Entry) -> None:
    text = " ".join((entry.cls.__doc__ or "").split())
    assert " When: " in text
    assert " When not: " in text


@of_kind("dataset")
def test_it_can_be_split_and_limited(entry: Entry) -> None:
    assert issubclass(entry.config, DatasetConfig)
    assert {"test_size", "limit"} <= properties(entry).keys()


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
    assert loaded & HEAVY == set()
