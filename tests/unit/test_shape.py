"""The sizes of a model, as its config tells them: read once, for memory, time and learning rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain_recipes.engine import calibrate
from posttrain_recipes.shape import Shape, hidden_size, read_config

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}


def test_what_also_sees_has_its_decoder_in_a_part() -> None:
    nested = {"hidden_size": 8, "text_config": CONFIG}
    assert Shape.of(nested) == Shape.of(CONFIG) is not None
    assert hidden_size(nested) == 64


def test_a_width_is_told_where_the_rest_is_not() -> None:
    assert Shape.of({"hidden_size": 64}) is None
    assert hidden_size({"hidden_size": 64}) == 64


@pytest.mark.parametrize("name", ["n_embd", "d_model"])
def test_a_width_has_other_names_in_some_families(name: str) -> None:
    assert hidden_size({name: 48}) == 48
    assert hidden_size({name: 48, "hidden_size": 64}) == 64
    assert hidden_size({name: 48, "hidden_size": None}) == 48
    assert hidden_size({name: "48"}) is None


@pytest.mark.parametrize("wrong", [None, "64", 0, -1, 6.5, True, 1 << 24, [64]])
def test_what_is_no_size_is_none(wrong: Any) -> None:
    assert hidden_size({"hidden_size": wrong}) is None
    assert Shape.of({**CONFIG, "hidden_size": wrong}) is None


def test_a_mixture_of_experts_has_a_shape_whose_products_are_not_measured(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_experts": 8}))
    found = Shape.read(tmp_path)
    assert found is not None
    assert found.experts
    assert calibrate.shape(tmp_path) is None


@pytest.mark.parametrize("text", ["[1]", "{", "", "[" * 100_000, "\xff"])
def test_what_is_no_config_tells_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert read_config(tmp_path) == {}
    assert Shape.read(tmp_path) is None
    assert read_config(tmp_path / "nowhere") == {}
