"""Variants of a matrix: none is dropped, and each has a name of its own."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain_recipes.context import checkpoint_name
from posttrain_recipes.language import expansion
from posttrain_recipes.language.labels import first_equal
from posttrain_recipes.language.nodes import Node
from posttrain_recipes.language.parsing import parse
from posttrain_recipes.language.recipe import Recipe
from posttrain_recipes.tracking.mlruns import metric_name
from tests.conftest import Project
from tests.unit.test_expansion import COMPARE, TWO, faults


def names(matrix: dict[str, list[Any]]) -> list[str]:
    """The stages of `dpo` in a recipe with this matrix."""
    stages = [{"name": "sft", "method": {}}, {"name": "dpo", "method": {"x": "was", "y": "was"}}]
    root = Node.of({"name": "demo", "stages": stages, "matrix": matrix})
    _, origins, wrong = expansion.expand(Recipe(root, Path()))
    assert not wrong, wrong
    return [origin.name for origin in origins if origin.source == "dpo"]


def values(*given: Any) -> list[str]:
    """What the values on one axis are called."""
    return [name.removeprefix("dpo@x=") for name in names({"stages.dpo.method.x": list(given)})]


LABELS: list[tuple[list[Any], list[str]]] = [
    # As they always were.
    ([0.05, 0.1, 1e-6, 1e6], ["0.05", "0.1", "1e-06", "1e+06"]),
    ([0.12345678, 0.2], ["0.123457", "0.2"]),
    (["./model", "org/other"], ["model", "other"]),
    ([True, None, 1, "a b"], ["true", "null", "1", "a b"]),
    ([{"path": "a/x.jsonl"}, {"path": "b/x.jsonl"}, {"k": 0}], ["1-x", "2-x", "3"]),
    ([[1], [2]], ["1", "2"]),
    (["中", "文", "A", "a"], ["中", "文", "A", "a"]),
    # Labels that were the same.
    (["a/train.jsonl", "b/train.jsonl"], ["a-train.jsonl", "b-train.jsonl"]),
    (["orgA/math", "other", "orgB/math"], ["orgA-math", "other", "orgB-math"]),
    (["x/a/t", "y/a/t", "y/b/t"], ["x-a-t", "y-a-t", "y-b-t"]),
    (["math", "org/math"], ["math", "org-math"]),
    (["a/", "b/"], ["a-", "b-"]),
    ([0.00123456, 0.001234561], ["0.00123456", "0.001234561"]),
    ([0.1, 0.1 + 1e-16], ["0.1", "0.1" + "0" * 14 + "1"]),
    ([5, 5.0000001], ["5", "5.0000001"]),
    ([1, "1"], ["1-number", "1-text"]),
    ([True, "true"], ["true-boolean", "true-text"]),
    ([None, "null"], ["null-null", "null-text"]),
    ([0.1, "0.1", 0.10000001], ["0.1-number", "0.1-text", "0.10000001"]),
    ([[7], 1, 2, [8]], ["1-list", "1-number", "2", "4"]),
    (["a/b-c", "a-b/c", "z/b-c"], ["a-b-c", "c", "z-b-c"]),
    # One name, once MLflow has cleaned them.
    (["1,b", "1_b"], ["1-1,b", "2-1_b"]),
    (["a/m", "b/m", "a-m"], ["1-m", "2-m", "a-m"]),
    (["é", unicodedata.normalize("NFD", "é")], ["1-é", "2-" + unicodedata.normalize("NFD", "é")]),
    (["a\nb", "a\0b", "a\\b"], ["1-a_b", "2-a_b", "3-a_b"]),
]


@pytest.mark.parametrize(("given_values", "labels"), LABELS)
def test_what_values_are_called(given_values: list[Any], labels: list[str]) -> None:
    assert values(*given_values) == labels


def test_what_tells_colliding_texts_apart_does_not_depend_on_the_others() -> None:
    found = values("org/x", "b/t", 3, "a/t")
    assert found == ["x", "b-t", "3", "a-t"]
    assert values("a/t", "b/t", 3, "org/x") == ["a-t", "b-t", "3", "x"]


def test_long_texts_have_the_number_of_the_variant() -> None:
    assert names({"stages.dpo.method.x": ["a" * 80, "a" * 79 + "b"]}) == ["dpo@1", "dpo@2"]
    longest = names({"stages.dpo.method.x": ["\U0001f600" * 50, "\U0001f600" * 51]})
    assert longest == ["dpo@1", "dpo@2"]


def test_labels_that_read_the_same_in_a_row_are_numbered() -> None:
    grid = {
        "stages.dpo.method.x": ["p", "p,y=q"],
        "stages.dpo.method.y": ["r", "q,y=r"],
    }
    assert names(grid) == ["dpo@x=p,y=r", "dpo@2", "dpo@3", "dpo@x=p,y=q,y=q,y=r"]


def test_pairs_are_told_apart_by_the_values_that_differ() -> None:
    pair = {"stages.dpo.method.x": ["a/t", "b/t"], "stages.dpo.method.y": [1, 1]}
    assert names({"pair": pair}) == ["dpo@x=a-t,y=1", "dpo@x=b-t,y=1"]  # type: ignore[dict-item]
    pair = {"stages.dpo.method.x": ["a/t", "b/t"], "stages.dpo.method.y": [1, 2]}
    assert names({"pair": pair}) == ["dpo@x=t,y=1", "dpo@x=t,y=2"]  # type: ignore[dict-item]


TEXTS = st.sampled_from(
    [
        "a",
        "b",
        "a/b",
        "c/b",
        "a-b",
        "a,b",
        "a_b",
        "1",
        "1.0",
        "true",
        "null",
        "./b",
        "b/",
        "/",
        "1-b",
        "2",
        "a=b",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.00123456, 0.001234561, 1e20, 10**20 + 1, 0.1, 0.1000000001])
    | TEXTS
    | st.text(max_size=80)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["use", "path", "label", "k"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def distinct(given_values: list[Any]) -> list[Any]:
    first = first_equal(given_values)
    return [value for index, value in enumerate(given_values) if first[index] == index]


@settings(max_examples=400, deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=8).map(distinct))
def test_distinct_values_are_as_many_variants_with_names_of_their_own(given_values: Any) -> None:
    found = names({"stages.dpo.method.x": given_values})
    assert len(found) == len(given_values)
    for cleaned in (str, checkpoint_name, metric_name):
        assert len({cleaned(name) for name in found}) == len(found), cleaned
    assert all(not set(name) & set("/\\\0\n") for name in found)
    assert all(len(name.encode()) <= 180 for name in found)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(SCALARS, min_size=2, max_size=4).map(distinct),
    st.lists(SCALARS, min_size=2, max_size=4).map(distinct),
)
def test_a_grid_of_distinct_values_has_every_cell(one: list[Any], other: list[Any]) -> None:
    found = names({"stages.dpo.method.x": one, "stages.dpo.method.y": other})
    assert len({metric_name(name) for name in found}) == len(one) * len(other)


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=6))
def test_equal_values_are_equal_however_they_are_ordered_and_typed(given_values: Any) -> None:
    first = first_equal(given_values)
    for index, same in enumerate(first):
        assert given_values[index] == given_values[same]
        kinds = json.dumps([type(given_values[i]) is bool for i in (index, same)])
        assert kinds in ("[true, true]", "[false, false]")


SAME = {
    "[0, 0.0]": 2,
    "[1e-3, 0.001]": 2,
    "[1, 2, 1]": 3,
    '[a, b, "a"]': 3,
    "[{k: 1, j: [1, 2]}, {j: [1.0, 2], k: 1.0}]": 2,
    "[~, null]": 2,
}


@pytest.mark.parametrize("given_values", SAME)
def test_a_value_that_is_given_twice_is_said(project: Project, given_values: str) -> None:
    text = TWO + f"matrix: {{stages.dpo.method.beta: {given_values}}}\n"
    line = text.count("\n")
    node = parse(text, "mine.yaml").value["matrix"].value["stages.dpo.method.beta"]
    at = node.value[SAME[given_values] - 1].at
    expected = (
        f"mine.yaml:{line}:{at.column}  matrix.stages.dpo.method.beta\n"
        f"  value {SAME[given_values]} is the same as value 1; remove one"
    )
    assert expected in faults(project, text)


def test_values_that_only_look_alike_are_not_the_same() -> None:
    assert first_equal([1, True, "1", [1], {"k": 1}, {"k": True}, None, "null"]) == tuple(range(8))


def test_a_pair_that_is_given_twice_is_said(project: Project) -> None:
    pair = "{seed: [0, 1, 0.0], stages.dpo.method.beta: [0.1, 0.1, 0.1]}"
    found = faults(project, TWO + f"matrix: {{pair: {pair}}}\n")
    assert found == ["mine.yaml:13:30  matrix.pair\n  value 3 is the same as value 1; remove one"]


def test_a_seed_of_a_comparison_is_one_however_it_is_written(project: Project) -> None:
    found = faults(project, COMPARE.replace("[0, 1]", "[0, 0.0]"))
    assert found == [
        "mine.yaml:9:5  stages.losses.seeds\n"
        "  a seed is given twice: value 2 is the same as value 1; remove one"
    ]


def test_two_branches_of_one_name_are_said(project: Project) -> None:
    text = COMPARE.replace("- name: both\n", "- name: ipo\n")
    assert "  two branches are named 'ipo'; rename one" in "\n".join(faults(project, text))


def test_names_of_checkpoints_stay_apart() -> None:
    assert checkpoint_name("dpo@beta=0.1,seed=0") == "dpo_beta_0.1_seed_0"
    for one, other in (("dpo@x=中", "dpo@x=文"), ("a" * 100 + "b", "a" * 100 + "c")):
        assert checkpoint_name(one) != checkpoint_name(other)
        assert len(checkpoint_name(one)) <= 100
