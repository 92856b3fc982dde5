"""The JSON Schema of recipes: committed, complete, and the same as what the code generates."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import posttrain_recipes as ptl
from posttrain_recipes import registry
from posttrain_recipes.errors import PtlError
from posttrain_recipes.language import recipe as recipes
from posttrain_recipes.language import schema, validation
from posttrain_recipes.language.parsing import parse
from posttrain_recipes.language.schema import recipe_schema
from posttrain_recipes.plugin import PluginConfig
from tests.conftest import ROOT, Install
from tests.presets import preset_names

COMMITTED = ROOT / "schemas" / "recipe.schema.json"
SHIPPED = sorted((ROOT / "recipes").rglob("*.yaml")) + sorted(
    (ROOT / "posttrain_recipes" / "starter").rglob("*.yaml")
)


@pytest.fixture(scope="module")
def generated() -> dict[str, Any]:
    return recipe_schema(registry.load())


@pytest.fixture(scope="module")
def validator(generated: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(generated)


def data_of(path: Path, preset: str | None) -> dict[str, Any]:
    return recipes.load(path, preset=preset).data


CASES = [
    (path, preset) for path in SHIPPED for preset in [None, *(name for name in preset_names(path))]
]


def test_the_committed_schema_is_what_the_code_generates(install: Install) -> None:
    # `install` with nothing installed: the built-ins alone, whatever this machine has.
    assert COMMITTED.read_text(encoding="utf-8") == schema.dump(recipe_schema(registry.load())), (
        "run: ptl schema -o schemas/recipe.schema.json"
    )


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The classes whose JSON Schema was made, once for each time."""
    found: list[type] = []
    original = PluginConfig.model_json_schema.__func__  # type: ignore[attr-defined]

    def counted(cls: type, *args: Any, **more: Any) -> Any:
        found.append(cls)
        return original(cls, *args, **more)

    monkeypatch.setattr(PluginConfig, "model_json_schema", classmethod(counted))
    monkeypatch.setattr(schema, "_lora", functools.cache(schema._lora.__wrapped__))
    monkeypatch.setattr(schema, "_renderer", functools.cache(schema._renderer.__wrapped__))
    return found


def test_validating_makes_a_schema_once_and_only_of_what_a_recipe_uses(
    install: Install, made: list[type], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = ROOT / "recipes" / "sft_then_dpo.yaml"
    for preset in [None, *preset_names(path)]:
        ptl.validate(path, preset=preset)
    found = registry.load()
    used = {
        found.get(kind, name).config
        for kind, name in (
            ("dataset", "jsonl"),
            ("method", "sft"),
            ("method", "dpo"),
            ("eval", "exact_match"),
            ("eval", "preference_accuracy"),
            ("eval", "nll"),
            ("engine", "local"),
        )
    }
    assert len(made) == len(set(made)), "some were made again"
    assert used - set(made) == set()
    assert len(made) < len(list(found)) / 2


def test_the_schema_is_made_once_for_all_who_ask(install: Install, made: list[type]) -> None:
    found = registry.load()
    whole = recipe_schema(found)
    assert len(made) == len(list(found)) + 2  # and those of lora and renderer
    assert recipe_schema(found) == whole
    assert len(made) == len(list(found)) + 2
    registry.load.cache_clear()  # as in another process: nothing is kept of plugins since changed
    recipe_schema(registry.load())
    assert len(made) == 2 * len(list(found)) + 2


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), None),
        (("stages", 0, "method", "use"), "sftt"),
        (("stages", 0, "method", "learning_rate"), "fast"),
        (("stages", 1, "method", "beta"), {}),
        (("stages", 0, "dataset", "rows"), 3),
        (("stages", 1, "eval"), [{"use": "nll", "name": 3}, "nll"]),
        (("stages", 1, "reward"), {"use": "length", "least": "grpo"}),
        (("engine",), {"use": "server"}),
        (("engine",), "nowhere"),
        (("lora",), {"rank": 0}),
    ],
)
def test_a_schema_of_what_is_used_finds_what_the_whole_one_finds(
    generated: dict[str, Any], path: tuple[str | int, ...], value: Any
) -> None:
    data = copy.deepcopy(data_of(ROOT / "recipes" / "sft_then_dpo.yaml", None))
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    if path:
        inner[path[-1]] = value
    part = recipe_schema(registry.load(), of=set(validation.texts(data)))
    assert len(part["$defs"]) < len(generated["$defs"])
    found, expected = (
        [(list(e.absolute_path), e.message) for e in Draft202012Validator(s).iter_errors(data)]
        for s in (part, generated)
    )
    assert found == expected
    assert bool(found) == bool(path)


def test_it_is_a_schema(generated: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(generated)
    assert generated["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert generated["$id"] == "urn:posttrain-recipes:recipe.schema.json"


def properties(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property that is defined anywhere, with where."""
    if isinstance(node, dict):
        for name, inner in node.get("properties", {}).items():
            if isinstance(inner, dict):
                yield f"{path}.{name}", inner
        for key, inner in node.items():
            yield from properties(inner, f"{path}.{key}")
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from properties(inner, f"{path}[{index}]")


def test_an_editor_finds_a_description_for_every_option(generated: dict[str, Any]) -> None:
    found = dict(properties(generated))
    assert len(found) > 80
    # `use` of one plugin is a constant: what it means is said where the plugin is chosen.
    bare = [
        path
        for path, option in found.items()
        # ... nor is one completed that stands in a condition.
        if "const" not in option and ".if." not in path and not option.get("description")
    ]
    assert bare == []


def test_defaults_are_valid_where_they_stand(generated: dict[str, Any]) -> None:
    defaults = [(path, o) for path, o in properties(generated) if "default" in o]
    assert len(defaults) > 30
    for path, option in defaults:
        own = {**option, "$defs": generated["$defs"]}
        assert list(Draft202012Validator(own).iter_errors(option["default"])) == [], path


def test_every_reference_leads_somewhere(generated: dict[str, Any]) -> None:
    text = json.dumps(generated)
    names = {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert names == set(generated["$defs"])


def test_there_are_recipes_that_ship() -> None:
    names = {path.name for path in SHIPPED}
    assert {"sft.yaml", "dpo.yaml", "sft_then_dpo.yaml", "recipe.yaml"} <= names
    assert {preset for _, preset in CASES} >= {None, "tiny", "full"}


@pytest.mark.parametrize(("path", "preset"), CASES, ids=lambda v: getattr(v, "stem", v))
def test_what_ships_is_valid_under_every_preset(
    path: Path, preset: str | None, validator: Draft202012Validator
) -> None:
    assert [e.message for e in validator.iter_errors(data_of(path, preset))] == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_an_editor_accepts_the_file_as_it_is_written(
    path: Path, validator: Draft202012Validator
) -> None:
    written = parse(path.read_text(encoding="utf-8"), path.name).plain()
    assert [e.message for e in validator.iter_errors(written)] == []


BREAKS: dict[str, dict[str, Any]] = {
    "no model": {"model": None},
    "an unknown key": {"modle": "x"},
    "an engine that is not there": {"engine": "cloud"},
    "a seed below zero": {"seed": -1},
    "an adapter without rank": {"lora": {"rank": 0}},
    "a name with a space": {"name": "my recipe"},
    "no stages": {"stages": []},
    "another plugin's option": {
        "stages": [{"name": "a", "method": {"use": "sft", "beta": 0.1}}],
    },
    "text for a number": {
        "stages": [{"name": "a", "method": {"use": "sft", "learning_rate": "1e-3"}}],
    },
    "a dataset without its path": {"stages": [{"name": "a", "dataset": {"use": "jsonl"}}]},
    "an eval that is not there": {"stages": [{"name": "a", "eval": [{"use": "nl"}]}]},
    "a bound of nothing": {"limits": {"max_hours": 0}},
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_a_broken_one_is_not(change: dict[str, Any], validator: Draft202012Validator) -> None:
    good = data_of(ROOT / "recipes" / "sft_then_dpo.yaml", None)
    assert validator.is_valid(good)
    broken = copy.deepcopy(good) | change
    assert not validator.is_valid(broken)


def test_a_preset_may_hold_any_key(validator: Draft202012Validator) -> None:
    """What a preset holds is checked once it is merged, where a fault has a meaning."""
    good = data_of(ROOT / "recipes" / "sft.yaml", None)
    assert validator.is_valid(good | {"presets": {"later": {"limits": {"max_hours": 2}}}})
    assert not validator.is_valid(good | {"presets": {"later": 3}})


RECIPE = data_of(ROOT / "recipes" / "sft.yaml", None)
STAGE = RECIPE["stages"][0]["name"]
VALUES = {
    "name": st.sampled_from(["mine", "no name", 3]),
    "model": st.sampled_from(["ptl/nano", ""]),
    "engine": st.sampled_from(["local", "cloud", {"use": "local"}]),
    "lora": st.sampled_from([{"rank": 4}, {"rank": 0}, {"r": 4}]),
    "limits": st.sampled_from([{"max_hours": 2}, {}]),
    "stages": st.sampled_from(
        [
            RECIPE["stages"],
            {STAGE: {"method": {"batch_size": 8}}},
            {STAGE: {"seed": 1, "eval": {"0": {"name": "other"}}}},
            [{"name": "only"}],
            [{"name": "a", "method": {"use": "sft", "lr": 1}}],
        ]
    ),
}
CHANGES = st.fixed_dictionaries({}, optional=VALUES)
WRITTEN = st.one_of(
    CHANGES.map(lambda change: {"extends": "base.yaml", **change}),
    CHANGES.map(lambda change: RECIPE | change),
    st.builds(lambda own, quick: own | {"presets": {"quick": quick}}, CHANGES, CHANGES),
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(written=WRITTEN)
def test_an_editor_accepts_what_validate_accepts(
    tmp_path: Path, validator: Draft202012Validator, written: dict[str, Any]
) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(RECIPE))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(written))
    try:
        faults = validation.structural_faults(recipes.load(path), registry.load())
    except PtlError:
        return
    if not faults:
        assert [e.message for e in validator.iter_errors(written)] == []


def test_a_recipe_that_extends_another_may_name_no_model(
    tmp_path: Path, validator: Draft202012Validator
) -> None:
    change = {"extends": "base.yaml", "stages": {STAGE: {"method": {"batch_size": 8}}}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(change))
    loaded = recipes.load(tmp_path / "recipe.yaml")
    assert validation.structural_faults(loaded, registry.load()) == []
    assert validator.is_valid(change)
    assert not validator.is_valid(change | {"modle": "x"})
    for key in ("name", "model", "stages"):
        assert not validator.is_valid({k: v for k, v in RECIPE.items() if k != key})
